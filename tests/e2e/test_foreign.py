"""Clients of other people: `curl`, and the npm package `eventsource` under Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trustme

from tests.support.broker import Broker, configure, run_broker
from tests.support.http import SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

# Where `npm install` has been run; NODE_MODULES says another place.
MODULES = Path(os.environ.get("NODE_MODULES", Path(__file__).parents[1] / "browser" / "node_modules"))
SCRIPT = """
import { EventSource } from MODULE;
const [url, token] = process.argv.slice(2);
const source = new EventSource(url, {
  fetch: (input, { headers, ...init }) =>
    fetch(input, { ...init, headers: { ...headers, Authorization: `Bearer ${token}` } }),
});
source.onmessage = ({ data, lastEventId }) => {
  const { type, payload } = JSON.parse(data);
  console.log(JSON.stringify({ type, event: payload.event, lastEventId }));
};
source.onerror = ({ code }) => console.log(JSON.stringify({ type: "lost", event: code ?? null }));
"""


@asynccontextmanager
async def lines(*command: str) -> AsyncIterator[trio.MemoryReceiveChannel[str]]:
    """What a program writes, as it writes it; it is killed at the end."""
    send, receive = trio.open_memory_channel[str](1000)
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(list(command), stdout=subprocess.PIPE)
        assert process.stdout

        async def read() -> None:
            rest = b""
            assert process.stdout
            async for data in process.stdout:
                *complete, rest = (rest + data).split(b"\n")
                for line in complete:
                    send.send_nowait(line.decode())

        nursery.start_soon(read)
        try:
            yield receive
        finally:
            process.kill()
            await process.wait()
            nursery.cancel_scope.cancel()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl(broker: Broker, publisher: RawNats) -> None:
    """A stream in a terminal, event by event; a poll and a publish by flags alone."""
    url, bearer = broker.running.http, f"Authorization: Bearer {broker.token()}"
    curl = ("curl", "--silent", "--show-error", "--max-time", str(SECONDS), "--header", bearer)
    async with lines(*curl, "--no-buffer", f"{url}/sse?channel=orders.>") as told:
        async for line in told:
            if '"subscribed"' in line:
                break
        sequence = await publisher.store("events.acme.orders.7", b'{"n":1}')
        with trio.fail_after(SECONDS):
            async for line in told:
                if line.startswith("data:") and '"event"' in line:
                    break
            assert json.loads(line.removeprefix("data: "))["payload"]["event"] == {"n": 1}
            assert (await told.receive()).endswith(f"-{sequence}")
    async with lines(*curl, f"{url}/poll?channel=orders.>&last=1&wait=5", "--write-out", "\n") as told:
        with trio.fail_after(SECONDS):
            assert [each["event"] for each in json.loads(await told.receive())["events"]] == [{"n": 1}]
    body = '{"channel":"orders.8","event":2}'
    async with lines(*curl, f"{url}/publish", "--json", body, "--write-out", "\n%{http_code}\n") as told:
        with trio.fail_after(SECONDS):
            assert set(json.loads(await told.receive())) == {"position"}
            assert await told.receive() == "202"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_over_tls(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Where all sends wait, and pieces of a share cannot be taken back."""
    authority, issued = trustme.CA(), tmp_path / "issued.pem"
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(issued)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    settings = configure(tmp_path / "b", nats.url, server={"tls_certificate": issued})
    async with run_broker(tmp_path / "b", settings) as broker:
        url, bearer = broker.running.http, f"Authorization: Bearer {broker.token()}"
        curl = ("curl", "-sS", "--cacert", str(tmp_path / "ca.pem"), "--max-time", str(SECONDS), "-H", bearer)
        async with lines(*curl, "--no-buffer", f"{url}/sse?channel=a") as told:
            with trio.fail_after(SECONDS):
                while '"subscribed"' not in await told.receive():
                    pass
                for number in range(20):
                    await publisher.store("events.acme.a", b'"%d' % number + b"x" * 10000 + b'"')
                found: list[str] = []
                while len(found) < 20:
                    line = await told.receive()
                    found += [line] if '"type":"event"' in line else []
        numbers = [json.loads(line[5:])["payload"]["event"].rstrip("x") for line in found]
        assert numbers == [str(number) for number in range(20)]
        async with lines(*curl, f"{url}/poll?channel=a&last=3&wait=5", "-w", "\n") as told:
            with trio.fail_after(SECONDS):
                assert len(json.loads(await told.receive())["events"]) == 3


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
@pytest.mark.skipif(
    not (MODULES / "eventsource").exists(), reason="npm install has not been run in tests/browser"
)
async def test_eventsource(broker: Broker, publisher: RawNats, tmp_path: Path) -> None:
    """Cut off in the middle, it comes back by itself with its id, and gets what it missed, once."""
    script = tmp_path / "client.mjs"
    script.write_text(
        SCRIPT.replace("MODULE", json.dumps(str(MODULES / "eventsource" / "dist" / "index.js")))
    )
    cutting = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener[0].socket.getsockname()[1]
        here = broker.running.http.rpartition(":")[2]

        async def relay(client: trio.SocketStream) -> None:
            async with client, await trio.open_tcp_stream("127.0.0.1", int(here)) as server:
                with cutting:
                    async with trio.open_nursery() as both:

                        async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                            async for data in source:
                                await sink.send_all(data)
                            both.cancel_scope.cancel()

                        both.start_soon(copy, client, server)
                        both.start_soon(copy, server, client)

        nursery.start_soon(trio.serve_listeners, relay, listener)
        url = f"http://127.0.0.1:{port}/sse?channel=a"
        async with lines("node", str(script), url, broker.token()) as told:
            seen: list[dict[str, object]] = []

            async def until(kind: str, count: int = 1) -> None:
                with trio.fail_after(2 * SECONDS):
                    while count:
                        seen.append(json.loads(await told.receive()))
                        count -= seen[-1]["type"] == kind

            await until("subscribed")
            for number in range(3):
                await publisher.store("events.acme.a", b"%d" % number)
            await until("event", 3)
            cutting.cancel()
            for number in range(3, 6):
                await publisher.store("events.acme.a", b"%d" % number)
            cutting = trio.CancelScope()
            await until("event", 3)
            assert [each["event"] for each in seen if each["type"] == "event"] == list(range(6))
            assert any(each["type"] == "lost" for each in seen)
        nursery.cancel_scope.cancel()
