"""The files that pages load, and the demo page of development mode."""

from __future__ import annotations

import gzip
import re
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import pytest

from broker.web.site import library
from tests.support.http import ask

if TYPE_CHECKING:
    from tests.support.broker import Broker


async def test_every_module_is_served(broker: Broker) -> None:
    """What a page loads, followed from the entries: each import has an answer that any origin may load."""
    url = broker.running.http
    found, waiting = set(), ["/client.js", "/react.js"]
    while waiting:
        path = waiting.pop()
        found.add(path)
        answer = await ask(url, "GET", path)
        assert (answer.status, answer.headers["content-type"]) == (200, "text/javascript; charset=utf-8"), (
            path
        )
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
        imported = {
            urljoin(path, name)
            for name in re.findall(r'^(?:im|ex)port .* from "(\..*)";$', answer.body.decode(), re.M)
        }
        waiting += imported - found - set(waiting)
    assert found == {f"/{path}" for path in library() if path.endswith(".js")}
    assert len(found) > 20


@pytest.mark.parametrize("path", ["/client.js", "/react.js", "/client/http.js"])
async def test_a_script_is_sent_once(broker: Broker, path: str) -> None:
    """A browser asks again with the tag that it has, and is told that it has it; HEAD says what GET would."""
    url = broker.running.http
    whole = await ask(url, "GET", path)
    assert (whole.status, whole.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert (whole.headers["cache-control"], whole.headers["x-content-type-options"]) == (
        "no-cache",
        "nosniff",
    )
    assert b"export" in whole.body
    tag = whole.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = await ask(url, "GET", path, headers={"If-None-Match": known})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    assert (await ask(url, "GET", path, headers={"If-None-Match": '"other"'})).status == 200
    head = await ask(url, "HEAD", path)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(whole.body)))
    assert (await ask(url, "POST", path)).status == 405


@pytest.mark.parametrize(
    ("accepted", "small"),
    [
        ("gzip", True),
        ("br;q=1.0, GZIP;q=0.8, *;q=0.1", True),
        ("deflate, gzip;q=0", False),
        ("gzip;q=0.000", False),
        ("x-gzip, br", False),
    ],
)
async def test_a_script_is_sent_small(broker: Broker, accepted: str, small: bool) -> None:
    """Compressed for whom that suits, under a tag of its own."""
    url = broker.running.http
    plain = await ask(url, "GET", "/client.js")
    answer = await ask(url, "GET", "/client.js", headers={"Accept-Encoding": accepted})
    assert answer.headers["vary"] == "Accept-Encoding"
    assert (answer.headers.get("content-encoding") == "gzip") is small
    assert (gzip.decompress(answer.body) if small else answer.body) == plain.body
    assert (answer.headers["etag"] != plain.headers["etag"]) is small
    known = {"Accept-Encoding": accepted, "If-None-Match": answer.headers["etag"]}
    assert (await ask(url, "GET", "/client.js", headers=known)).status == 304


async def test_the_package_is_sent_once(broker: Broker) -> None:
    """As it is, which is compressed, whatever the client accepts; and not again to who has it."""
    url = broker.running.http
    accepts = {"Accept-Encoding": "gzip"}
    whole = await ask(url, "GET", "/client.tgz", headers=accepts)
    assert (whole.status, whole.headers["content-type"]) == (200, "application/gzip")
    assert "content-encoding" not in whole.headers
    assert b'"name": "nats-websocket-broker"' in gzip.decompress(whole.body)
    known = {**accepts, "If-None-Match": whole.headers["etag"]}
    assert (await ask(url, "GET", "/client.tgz", headers=known)).status == 304


async def test_the_demo_page_is_for_development(broker: Broker) -> None:
    """In production there is no such page; the answer to HEAD has no body, whatever it is."""
    for path in (
        "/",
        "/docs",
        "/docs/protocol",
        "/docs.css",
        "/palette.css",
        "/demo.js",
        "/dev/token",
        "/client.js/",
        "/client",
        "/client/",
        "/client/../demo.js",
        "/../broker.json",
        "/static/client.js",
    ):
        assert (await ask(broker.running.http, "GET", path)).status == 404
    head = await ask(broker.running.http, "HEAD", "/")
    assert (head.status, head.body) == (404, b"")


async def test_the_documentation_is_on_the_admin_port(broker: Broker) -> None:
    """In production operators have it, beside the metrics and without a token."""
    for path in ("/docs", "/docs/operate", "/docs.css", "/palette.css"):
        assert (await ask(broker.running.admin, "GET", path)).status == 200
