"""Each metric moves for the right reason: a real broker, something done to it, and a scrape."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography import x509

from tests.e2e.test_lag import EVENTS, SMALL, flood, read_to
from tests.e2e.test_reload import serve
from tests.support.broker import Broker, configure, run_broker
from tests.support.metrics import Scrape, scrape, scraped
from tests.support.raw import ask

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


async def until(broker: Broker, condition: Callable[[Scrape], bool]) -> Scrape:
    return await scraped(broker.running.admin, condition)


async def test_connections_come_and_go(broker: Broker) -> None:
    """By tenant and transport while they are there; by who ended them and how afterwards."""
    async with broker.client(), broker.client(user="bob"), broker.client("globex"), broker.stranger():
        found = await scrape(broker.running.admin)
        for tenant, count in (("acme", 2), ("globex", 1), ("_none", 1), ("_other", 0)):
            assert found.total("broker_connections", tenant=tenant, transport="websocket") == count
        assert found.total("broker_connections_opened_total", transport="websocket") == 4
        assert found.total("broker_connections_closed_total") == 0
        assert found.total("broker_http_responses_total", code="101") == 4
    found = await until(broker, lambda found: found.total("broker_connections") == 0)
    assert found.total("broker_connections_closed_total", by="link", code="1006") == 4
    async with broker.client() as client:
        await client.socket.aclose(code=1000)
    async with broker.client() as client:
        await client.socket.aclose(code=4711)
    async with broker.stranger() as client:
        await client.send("authenticate", {"token": "x"})
        assert await client.closed() == 4500
    found = await until(broker, lambda found: found.total("broker_connections") == 0)
    assert found.total("broker_connections_closed_total", by="client", code="1000") == 1
    assert found.total("broker_connections_closed_total", by="client", code="other") == 1
    assert found.total("broker_connections_closed_total", by="broker", code="4500") == 1
    assert found.total("broker_connections_closed_total") == 7
    assert found.total("broker_errors_total", code="token_invalid") == 1


async def test_deliveries(broker: Broker, publisher: RawNats) -> None:
    """Each event once a connection, with the bytes that went out; ticks and their durations beside it."""
    before = await scrape(broker.running.admin)
    async with broker.client() as one, broker.client(user="bob") as two, broker.client("globex") as other:
        for client in (one, two, other):
            await client.subscribe(["a", "live.a"])
        for number in range(5):
            await publisher.store("events.acme.a", b"%d" % number)
        await publisher.publish("live.acme.a", b"5")
        await publisher.store("events.acme.unheard", b"6")
        await publisher.store("events._all.a", b"7")
        for client, count in ((one, 7), (two, 7), (other, 1)):
            await client.events(count)
        found = await until(broker, lambda found: found.total("broker_deliveries_total") == 15)
    assert found.total("broker_deliveries_total", tenant="acme") == 14
    assert found.total("broker_deliveries_total", tenant="globex") == 1
    size = found.total("broker_delivered_bytes_total", tenant="globex")
    assert 60 < size < 200  # one frame
    assert 12 * size < found.total("broker_delivered_bytes_total", tenant="acme") < 16 * size
    assert found.total("broker_events_received_total", kind="live") == 1
    stored = found.total("broker_events_received_total", kind="stored")
    assert stored - before.total("broker_events_received_total", kind="stored") >= 7
    ticks = found.total("broker_tick_events_count")
    assert found.total("broker_tick_events_sum") == 9  # 8 of acme, 1 of globex
    assert 0 < found.total("broker_fan_out_duration_seconds_count") <= ticks
    samples = found.total("broker_publish_to_write_seconds_count")
    assert 0 < samples <= 8  # at most one for each that was stored
    assert found.total("broker_publish_to_write_seconds_sum") < 60 * samples


async def test_a_slow_client_is_behind(broker: Broker, publisher: RawNats) -> None:
    """While it does not read it is behind, and by how much; in the end each event was delivered once."""
    async with broker.client(receive_buffer=SMALL) as slow, broker.client("globex"):
        await slow.subscribe("q.*")
        await flood(publisher, 10)
        found = await until(
            broker, lambda found: found.total("broker_lag_positions_max", tenant="acme") > EVENTS / 10
        )
        assert found.total("broker_connections_behind", tenant="acme") == 1
        assert found.total("broker_connections_behind", tenant="globex") == 0
        furthest = found.total("broker_lag_positions_max", tenant="acme")
        assert found.total("broker_lag_positions", tenant="acme") == furthest
        assert found.total("broker_deliveries_total", tenant="acme") < EVENTS
        await read_to(slow, EVENTS - 1)
        found = await until(broker, lambda found: found.total("broker_connections_behind") == 0)
        assert found.total("broker_lag_positions") == found.total("broker_lag_positions_max") == 0
        assert found.total("broker_deliveries_total", tenant="acme") == EVENTS
        assert found.total("broker_replay_duration_seconds_count") == 0  # it was slow, it did not resume


async def test_replays(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume from memory, one that reads the stream, a catch-up and a snapshot; each where it was read."""
    monkeypatch.setattr("broker.actors.supervisor.KEPT_SECONDS", 0.0)  # beside the ring nothing is remembered
    settings = configure(tmp_path / "b", nats.url, ring={"events": 8})

    async def of(source: str, count: int) -> None:
        await until(
            broker, lambda found: found.total("broker_replay_duration_seconds_count", source=source) == count
        )

    async with run_broker(tmp_path / "b", settings) as broker:
        async with broker.client() as client:
            await client.subscribe("a")
            positions = []
            for number in range(40):
                await publisher.store("events.acme.a", b"%d" % number)
                positions.append((await client.until("event"))["position"])
            await of("ring", 0)
            await of("stream", 0)
            await client.subscribe("a", position=positions[-3])  # not beside it, but anew: a start sets P
            await client.events(2)
            await of("ring", 1)
        async with broker.client() as client:
            await client.subscribe("a", position=positions[0])
            await client.events(39)
            await of("stream", 1)
            await client.subscribe("b")
            await client.subscribe(["c", "a"], position=positions[-2])
            await client.until("subscription.live")
            await of("ring", 2)
        async with broker.client() as client:
            await client.subscribe("a", snapshot=True)
            await client.until("subscription.live")
            await of("stream", 2)


async def test_gaps_and_errors(broker: Broker) -> None:
    """What clients are told of losses and of their mistakes, by reason and code."""
    async with broker.client() as client:
        await client.subscribe("a", position="abc-5")
        await client.until("gap")
        await client.send("subscribe", {"channel": "users.bob.x"})
        assert (await client.until("error"))["code"] == "forbidden"
        await client.send("publish", {"channel": "a", "event": "x" * 20000})
        assert (await client.until("error"))["code"] == "too_large"
        found = await scrape(broker.running.admin)
    assert found.total("broker_gaps_total", reason="reset") == found.total("broker_gaps_total") == 1
    assert found.total("broker_errors_total", code="forbidden") == 1
    assert found.total("broker_errors_total", code="too_large") == 1
    assert found.total("broker_errors_total") == 2


async def test_limits_hit(tmp_path: Path, nats: NatsServer) -> None:
    """By whose limit it was and of what; those that can be in the way are there before they are."""
    limits = {"connections": 2, "connections_per_user": 1}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker, broker.client():
        found = await scrape(broker.running.admin)
        assert found.total("broker_limits_hit_total", scope="process", resource="connections") == 0
        async with broker.stranger() as second:
            await second.send("authenticate", {"token": broker.token()})
            assert (await ask(broker.running.ws, "/ws")).status == 503
            assert await second.closed() == 4010
        found = await scrape(broker.running.admin)
        assert found.total("broker_limits_hit_total", scope="user", resource="connections") == 1
        assert found.total("broker_limits_hit_total", scope="process", resource="connections") == 1
        assert found.total("broker_limits_hit_total") == 2
        assert found.total("broker_http_responses_total", code="503") == 1


async def test_nats_goes_and_comes(broker: Broker, nats: NatsServer) -> None:
    """Connected or not, how often it was lost, how long canaries travel and since when none has come."""
    found = await until(broker, lambda found: found.total("broker_canary_travel_seconds_count") > 1)
    assert found.total("broker_nats_connected") == found.total("broker_ready") == 1
    assert found.total("broker_nats_interruptions_total") == 0
    assert found.total("broker_nats_round_trip_seconds_count") >= 1
    assert 0 < found.total("broker_canary_travel_seconds_sum") < 60
    await nats.kill9()
    found = await until(broker, lambda found: found.total("broker_nats_connected") == 0)
    assert found.total("broker_ready") == 0
    assert found.total("broker_nats_interruptions_total") == 1
    await until(broker, lambda found: found.total("broker_canary_age_seconds") > 2.5)
    await nats.start()
    found = await until(broker, lambda found: found.total("broker_canary_age_seconds") < 2.5)
    assert found.total("broker_nats_connected") == 1
    assert found.total("broker_nats_interruptions_total") == 1


async def test_the_stream_and_who_takes_it(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """What the stream holds, and of whom: the largest by name, the rest and what is no tenant together."""
    settings = configure(tmp_path / "b", nats.url, metrics={"tenants": 2, "share_seconds": 0.05})
    async with run_broker(tmp_path / "b", settings) as broker:
        for tenant, count in (("acme", 60), ("globex", 50), ("initech", 7), ("x\u00e4", 3)):
            for number in range(count):
                await publisher.store(f"events.{tenant}.c{number % 5}", b"1")
        found = await until(
            broker,
            lambda found: (
                found.total("broker_tenant_stream_messages") >= 120
                and found.total("broker_stream_messages") >= 120
                and found.total("broker_stream_lag_messages") == 0
            ),
        )
        assert found.total("broker_tenant_stream_messages", tenant="acme") == 60
        assert found.total("broker_tenant_stream_messages", tenant="globex") == 50
        others = {labels["tenant"] for labels, _ in found.samples["broker_tenant_stream_messages"]}
        assert others == {"acme", "globex", "_other"}
        assert found.total("broker_tenant_stream_messages", tenant="_other") >= 10
        assert found.total("broker_stream_max_bytes") == 1 << 28
        assert found.total("broker_stream_bytes") > 120
        assert found.total("broker_stream_last_sequence") >= 120
        assert found.total("broker_stream_first_sequence") == 1


async def test_tenants_beyond_the_largest(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Beyond `metrics.tenants` they are one series each metric, and what they were sent is not lost."""
    settings = configure(tmp_path / "b", nats.url, metrics={"tenants": 1})
    async with (
        run_broker(tmp_path / "b", settings) as broker,
        broker.client() as one,
        broker.client(),
        broker.client("globex") as two,
        broker.client("initech") as three,
    ):
        for client, tenant in ((one, "acme"), (two, "globex"), (three, "initech")):
            await client.subscribe("a")
            await publisher.store(f"events.{tenant}.a", b"1")
            await client.events(1)
        found = await until(broker, lambda found: found.total("broker_deliveries_total") == 3)
        assert found.total("broker_connections", tenant="acme") == 2
        assert found.total("broker_connections", tenant="_other") == 2
        assert found.total("broker_deliveries_total", tenant="_other") == 2
        for name in ("broker_connections_behind", "broker_lag_positions", "broker_deliveries_total"):
            assert {labels["tenant"] for labels, _ in found.samples[name]} == {"acme", "_other"}
        assert found.total("broker_tenants") == 3


async def test_http(broker: Broker) -> None:
    """Answers of the public port by status."""
    assert (await ask(broker.running.ws, "/nowhere")).status == 404
    assert (await ask(broker.running.ws, "/healthz")).status == 200
    found = await scrape(broker.running.admin)
    assert found.total("broker_http_responses_total", code="404") == 1
    assert found.total("broker_http_responses_total", code="200") == 1
    assert found.total("broker_http_responses_total") == 2


async def test_a_loop_that_is_held_up(broker: Broker) -> None:
    """Something that does not yield for longer than the probe sleeps makes it late by the difference."""

    def late(found: Scrape) -> float:
        all_of_them = found.total("broker_loop_lag_seconds_count")
        return all_of_them - found.total("broker_loop_lag_seconds_bucket", le="0.1")

    before = late(await scrape(broker.running.admin))
    time.sleep(0.8)  # noqa: ASYNC251  the broker runs in this very loop
    found = await until(broker, lambda found: late(found) > before)
    assert found.total("broker_tasks") > 10


async def test_certificate(tmp_path: Path, nats: NatsServer) -> None:
    """The expiry is that of the certificate which clients are shown; without TLS there is none."""
    made = trustme.CA().issue_cert("localhost")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
    key.touch(mode=0o600)
    key.write_bytes(made.private_key_pem.bytes())
    server = {"tls_certificate": certificate, "tls_key": key}
    async with run_broker(tmp_path / "b", configure(tmp_path / "b", nats.url, server=server)) as broker:
        found = await scrape(broker.running.admin)
    expires = x509.load_pem_x509_certificate(made.cert_chain_pems[0].bytes()).not_valid_after_utc.timestamp()
    assert found.total("broker_certificate_expiry_timestamp_seconds") == expires
    assert found.total("broker_build_info") == 1


async def test_reloads(tmp_path: Path, nats: NatsServer) -> None:
    """A configuration that is refused shows, and so does the next one that is not."""
    async with serve(tmp_path, nats) as served:
        admin = json.loads((tmp_path / "state" / "broker.json").read_text())["admin"]
        first = await scrape(admin)
        assert first.total("broker_config_last_reload_successful") == 1
        began = first.total("broker_config_last_reload_success_timestamp_seconds")
        served.write(limits={"connections": 0})
        assert (await served.hup())["event"] == "reload_refused"
        found = await scraped(admin, lambda found: found.total("broker_config_last_reload_successful") == 0)
        assert found.total("broker_config_last_reload_success_timestamp_seconds") == began
        served.write(limits={"connections": 77}, metrics={"tenants": 3})
        assert (await served.hup())["event"] == "reloaded"
        found = await scraped(admin, lambda found: found.total("broker_config_last_reload_successful") == 1)
        assert found.total("broker_config_last_reload_success_timestamp_seconds") > began
        assert found.total("broker_connections_limit") == 77


@pytest.mark.parametrize("suffix", ["_total", "_bucket"])
async def test_what_can_happen_is_there_before_it_has(broker: Broker, suffix: str) -> None:
    """A series that begins with its first event would be no increase to Prometheus, and no alert."""
    found = await scrape(broker.running.admin)
    for name, label, value in (
        ("broker_gaps", "reason", "trimmed"),
        ("broker_dead_letters", "reason", "not_json"),
        ("broker_connections_closed", "code", "4510"),
        ("broker_errors", "code", "rate_limited"),
        ("broker_http_responses", "code", "503"),
        ("broker_replay_duration_seconds", "source", "stream"),
    ):
        if name + suffix in found.samples:
            assert [each for each, _ in found.samples[name + suffix] if each[label] == value], name
