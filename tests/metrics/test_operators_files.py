"""The dashboard, the alerts and the example for Prometheus speak of what the broker really shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trustme

from broker import config
from tests.support.broker import configure, run_broker
from tests.support.metrics import Scrape, scrape, scraped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

CONFIG = Path(__file__).parents[2] / "config"
ALERTS = CONFIG / "prometheus" / "alerts.yml"
DASHBOARD = json.loads((CONFIG / "grafana" / "broker.json").read_text())
PROMETHEUS_OWN = {"up"}  # series that Prometheus makes
ADDED = {"job", "instance"}  # labels that it adds
promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (prometheus)")


def panels() -> list[dict[str, Any]]:
    return [each for each in DASHBOARD["panels"] if each["type"] != "row"]


def alert_expressions() -> list[str]:
    found = re.findall(r"^ +expr: (?:\|\n((?: {10,}.*\n)+)|(.*)\n)", ALERTS.read_text(), re.MULTILINE)
    return [block or line for block, line in found]


def expressions() -> list[str]:
    variables = [each["definition"] for each in DASHBOARD["templating"]["list"] if "definition" in each]
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [*alert_expressions(), *queries, *variables]


def named(expression: str) -> set[str]:
    """The metrics in an expression."""
    bare = re.sub(r'"[^"]*"|\[[^]]*\]|\b(by|on|ignoring|group_left) *\([^)]*\)|\{[^}]*\}', " ", expression)
    return set(re.findall(r"\b(?:broker_|process_|python_)\w+|\bup\b", bare))


def labels(expression: str) -> set[str]:
    """The labels in an expression, wherever they stand."""
    found = {
        label for part in re.findall(r"\{([^}]*)\}", expression) for label in re.findall(r"(\w+) *[=!]", part)
    }
    for part in re.findall(r"\b(?:by|on|ignoring) *\(([^)]*)\)", expression):
        found |= set(re.findall(r"\w+", part))
    found |= set(re.findall(r"label_values\(\w+, (\w+)\)", expression))
    return found


@pytest.fixture
async def shown(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> Scrape:
    """All that a broker with TLS shows once it has looked at its stream."""
    authority = trustme.CA()
    made = authority.issue_cert("localhost")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
    key.touch(mode=0o600)
    key.write_bytes(made.private_key_pem.bytes())
    server = {"tls_certificate": certificate, "tls_key": key}
    often = {"share_seconds": 0.2}
    settings = configure(tmp_path / "b", nats.url, server=server, metrics=often)
    away = config.Key(
        name="idp", algorithms=("RS256",), jwks_url="http://127.0.0.1:1/", audience="*", tenants=("acme",)
    )
    auth = attrs.evolve(settings.auth, keys=(*settings.auth.keys, away))
    settings = attrs.evolve(settings, auth=auth)
    async with run_broker(tmp_path / "b", settings) as broker:
        await publisher.store("events.acme.a")
        return await scraped(
            broker.running.admin,
            lambda found: (
                "broker_stream_bytes" in found.samples and found.total("broker_tenant_stream_messages") > 0
            ),
        )


async def test_every_name_and_label_is_one_that_the_broker_shows(shown: Scrape) -> None:
    """No panel is empty and no alert silent because of a name that nobody exports."""
    for expression in expressions():
        metrics = named(expression) - PROMETHEUS_OWN
        assert metrics or "up" in named(expression), expression
        assert metrics <= set(shown.samples), expression
        known = set(ADDED)
        for metric in metrics:
            known |= {label for sample, _ in shown.samples[metric] for label in sample}
        assert labels(expression) <= known, expression


async def test_every_metric_of_ours_is_on_the_dashboard(shown: Scrape) -> None:
    """What the broker counts an operator can see without writing a query."""
    ours = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown.samples if name.startswith("broker_")}
    drawn = {re.sub(r"_(bucket|count|sum)$", "", name) for each in expressions() for name in named(each)}
    left_out = {
        "broker_tenants",
        "broker_draining",
        "broker_filters",
        "broker_paced_channels",
        "broker_documents",
        "broker_document_bytes",
        "broker_document_opens",
        "broker_ring_events",
        "broker_gc_longest_pause_seconds",
        "broker_config_last_reload_success_timestamp_seconds",
    }
    assert ours - drawn <= left_out
    assert drawn - {"up"} - ours <= {each for each in shown.samples if each.startswith("process_")}


def test_the_dashboard_is_whole() -> None:
    """Its panels have a description of their own or say all in the title, ids once, and do not overlap."""
    ids = [each["id"] for each in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for each in DASHBOARD["panels"]:
        place = each["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, each["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used - {"__rate_interval"} == variables == {"datasource", "instance", "tenant"}


def alerts() -> Iterator[str]:
    yield from re.split(r"^      - alert: ", ALERTS.read_text(), flags=re.MULTILINE)[1:]


def test_every_alert_says_what_to_do() -> None:
    """Who is woken reads what has happened, what it means, and the next step."""
    found = list(alerts())
    assert len(found) == len(alert_expressions()) > 15
    for alert in found:
        for key in ("severity: ", "summary: ", "description: ", "action: "):
            assert alert.count(key) == 1, alert


@promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", ALERTS),
        ("check", "config", CONFIG / "prometheus" / "prometheus.yml"),
        ("test", "rules", Path(__file__).with_name("alerts_test.yml")),
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:2])),
)
def test_prometheus_takes_them(arguments: tuple[str, ...]) -> None:
    """A real Prometheus loads the rules and the configuration, and the alerts fire when they should."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
async def test_prometheus_finds_no_fault_with_the_names(tmp_path: Path, nats: NatsServer) -> None:
    """`promtool check metrics` reads the exposition and knows Prometheus's conventions."""
    from tests.support.raw import ask

    async with run_broker(tmp_path / "b", configure(tmp_path / "b", nats.url)) as broker:
        await scrape(broker.running.admin)
        text = (await ask(broker.running.admin, "/metrics")).body
    done = await trio.run_process(
        ["promtool", "check", "metrics"], stdin=text, capture_stdout=True, capture_stderr=True, check=False
    )
    ours = [line for line in (done.stdout + done.stderr).decode().splitlines() if "broker_" in line]
    assert done.returncode in (0, 3)
    assert ours == []
