"""The examples in config/proxy under the real proxies, without their TLS: every way in, and who is seen."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.e2e.test_buffering_proxies import asked
from tests.support.admin import Admin
from tests.support.broker import configure, run_broker
from tests.support.outer_proxies import example, needs_haproxy, needs_nginx
from tests.support.sse import listen
from tests.support.websocket import connect

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


@pytest.mark.parametrize(
    "name",
    [pytest.param("nginx.conf", marks=needs_nginx), pytest.param("haproxy.cfg", marks=needs_haproxy)],
)
async def test_example(tmp_path: Path, nats: NatsServer, publisher: RawNats, name: str) -> None:
    """WebSocket, SSE and polls pass; the broker knows the address of the client, not of the proxy."""
    directory = tmp_path / "b"
    server = {"trusted_proxies": ("127.0.0.1",), "proxy_protocol": name == "haproxy.cfg"}
    settings = configure(directory, nats.url, server=server)
    async with (
        run_broker(directory, settings) as broker,
        example(tmp_path, urlsplit(broker.running.http).port, name) as front,
    ):
        token = broker.token()
        async with (
            connect(f"ws://127.0.0.1:{front}/ws", token=token) as client,
            listen(f"http://127.0.0.1:{front}", "a", token=token) as sse,
        ):
            await client.subscribe("a")
            _, first = await asked(broker, front, "/poll", {"channels": ["a"]})
            known = {name: first[name] for name in ("session", "position")}
            await sse.until("subscribed")
            await publisher.store("events.acme.a", b"1")
            assert [each["event"] for each in await client.events(1)] == [1]
            assert (await sse.until("event"))["event"] == 1
            _, polled = await asked(broker, front, "/poll", {"channels": ["a"], **known})
            assert [each["event"] for each in polled["events"]] == [1]
            admin = await Admin.of(broker.running.admin, directory)
            found = (await admin.ask("GET", "/connections"))["connections"]
            assert {each["transport"] for each in found} >= {"websocket", "sse"}
            hosts = {each["address"].rpartition(":")[0] for each in found}
            ports = {int(each["address"].rpartition(":")[2]) for each in found}
            assert hosts == {"127.0.0.1"}
            assert (0 in ports) == (name == "nginx.conf")  # of X-Forwarded-For, which has no port
