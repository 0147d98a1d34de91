"""What the ports, the logs, the metrics and a drain have of each key."""

from __future__ import annotations

import signal
import socket
import ssl
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio

from tests.auth.issuer import Issuer, response
from tests.keys.files import ADMIN_TOKEN
from tests.keys.world import World, row
from tests.support.http import ask
from tests.support.metrics import scrape

if TYPE_CHECKING:
    from collections.abc import Iterator

TLS = {"server.tls_certificate": "FILES/a.pem", "server.tls_key": "FILES/a.key"}
CLIENT_CA = TLS | {"server.tls_client_ca": "FILES/a.ca"}
PROXY = {"server.trusted_proxies": ["127.0.0.1/32"]}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

# --- server ----------------------------------------------------------------------------------------


@row("server.listen", "127.0.0.2:0")
async def address(world: World) -> object:
    return urlsplit(world.running.http).hostname


@row("server.admin_listen", "127.0.0.2:0")
async def admin_address(world: World) -> object:
    return urlsplit(world.running.admin).hostname


@row("server.admin_token_file", "FILES/admin-token")
async def admin_token(world: World) -> object:
    return (await ask(world.running.admin, "GET", "/api/v1/connections", token=ADMIN_TOKEN)).status


@row("server.data_dir", "FILES/elsewhere", how="process")
async def data_directory(world: World) -> object:
    await world.process.until('"ready"' if world.settings.log.format == "json" else "ready", "stderr")
    return (world.files / "elsewhere" / "broker.json").exists()


@row("server.origins", ["https://page.example"])
async def page(world: World) -> object:
    return await world.opening(origin="https://page.example")


@row("server.query_token", True)
async def token_in_the_query(world: World) -> object:
    return await world.opening(f"/ws?access_token={world.broker.token()}")


@row("server.trusted_proxies", ["127.0.0.1/32"], beside={"limits.address.connections": 1})
async def peer(world: World) -> object:
    return [await world.opening(x_forwarded_for=f"192.0.2.{number}") for number in range(2)]


@row("server.proxy_protocol", True, beside=PROXY)
async def proxy_protocol(world: World) -> object:
    parts = urlsplit(world.running.http)
    stream = await trio.open_tcp_stream(parts.hostname or "", parts.port or 0)
    async with stream:
        await stream.send_all(
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
        )
        return bytes(await stream.receive_some())[:12]


async def shaken(world: World, *, certificate: str | None = None) -> object:
    """What a TLS client gets for a request."""
    context = ssl.create_default_context(cafile=world.files / "a.ca")
    if certificate:
        context.load_cert_chain(world.files / f"{certificate}.pem", world.files / f"{certificate}.key")
    stream = await trio.open_ssl_over_tcp_stream(
        "127.0.0.1", urlsplit(world.running.http).port or 0, ssl_context=context, https_compatible=True
    )
    try:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        return bytes(await stream.receive_some())[:12]
    except trio.BrokenResourceError:
        return "refused"
    finally:
        await trio.aclose_forcefully(stream)


@row("server.tls_certificate", "FILES/a.pem", basis="FILES/b.pem", beside=TLS, how="starting")
@row("server.tls_key", "FILES/a.key", basis="FILES/b.key", beside=TLS, how="starting")
async def with_tls(world: World) -> object:
    if not await started(world):
        return "not started"
    return await shaken(world)


@row("server.tls_client_ca", "FILES/b.ca", basis="FILES/a.ca", beside=TLS)
async def certificate_of_a_client(world: World) -> object:
    return await shaken(world, certificate="b")


@row("server.tls_client_required", True, beside=CLIENT_CA)
async def without_a_certificate(world: World) -> object:
    return await shaken(world)


async def started(world: World) -> bool:
    """Run the broker; return whether it is ready within the world's patience, before it ends."""
    world.nursery.start_soon(world.serve)

    async def known() -> bool:
        return world.ready.is_set() or world.ended.is_set()

    await world.until(known)
    return world.ready.is_set()


@row("server.plain", True, beside={"server.listen": "0.0.0.0:0"}, how="starting")
@row("server.admin_plain", True, beside={"server.admin_listen": "0.0.0.0:0"}, how="starting")
async def exposed(world: World) -> object:
    return await started(world)


def listeners(world: World) -> Iterator[socket.socket]:
    """The sockets on which the public port accepts, in this process."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found = socket.socket(fileno=socket.dup(int(descriptor.name)))
            accepts = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if accepts and found.getsockname()[1] == urlsplit(world.running.http).port:
                yield found
            found.close()


@row("server.backlog", 7)
async def backlog(world: World) -> object:
    """What Linux tells of a listening socket as `tcpi_sacked`."""
    size = 32
    found = (each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size) for each in listeners(world))
    return [struct.unpack_from("=I", info, 28)[0] for info in found]


@row("server.reuse_port", True)
async def second_on_the_port(world: World) -> object:
    return [each.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for each in listeners(world)]


# --- drain -----------------------------------------------------------------------------------------


@row("drain.grace_seconds", 1, beside={"drain.reconnects_per_second": 0.01})
@row("drain.reconnects_per_second", 1)
async def drained(world: World) -> object:
    """The longest time that one of two clients is given."""
    two = [await world.client(), await world.client()]
    world.stop.wanted.set()
    return max([(await each.until("connection.draining"))["reconnect_after_ms"] for each in two])


# --- metrics ---------------------------------------------------------------------------------------


@row("metrics.tenants", 1)
async def tenants_shown(world: World) -> object:
    for tenant in ("acme", "globex"):
        await (await world.client(tenant)).subscribe("a")
    found = (await scrape(world.running.admin)).samples
    return sorted({labels["tenant"] for each in found.values() for labels, _ in each if "tenant" in labels})


@row("metrics.share_seconds", 0.05)
async def counted_again(world: World) -> object:
    """The first count may come at any moment, but by default no second one follows it soon."""
    await (await world.client()).subscribe("a")

    async def counted(count: int) -> bool:
        found = (await scrape(world.running.admin)).samples.get("broker_tenant_stream_messages", [])
        return any(labels["tenant"] == "acme" and value == count for labels, value in found)

    seen = []
    for count in (1, 2):
        await world.publisher.store("events.acme.a", b"1")

        async def it_is(count: int = count) -> bool:
            return await counted(count)

        seen.append(await world.until(it_is))
    return all(seen)


# --- log -------------------------------------------------------------------------------------------


async def lines(world: World) -> list[str]:
    """All that a broker writes, from its start to its end."""
    state = Path(world.settings.server.data_dir or world.directory / "state") / "broker.json"
    while not state.exists():
        await trio.sleep(0.02)
    world.process.process.send_signal(signal.SIGTERM)
    written = b""
    assert world.process.process.stderr
    async for data in world.process.process.stderr:
        written += data
    return written.decode().splitlines()


@row("log.level", "error", how="process")
async def level(world: World) -> object:
    return bool(await lines(world))


@row("log.format", "console", how="process")
async def form(world: World) -> object:
    return (await lines(world))[0].startswith("{")


@row("log.burst", 1, how="process")
async def burst(world: World) -> object:
    return await letters(world, 4, pause=0)


@row("log.period", 0.05, beside={"log.burst": 1}, how="process")
async def period(world: World) -> object:
    return await letters(world, 2, pause=0.2)


async def letters(world: World, count: int, *, pause: float) -> int:
    """How many of some dead letters, with pauses between them, the broker has logged."""
    await world.process.until("ready", "stderr")
    for number in range(count):
        await world.publisher.store("events.acme.a", b"no json")
        while (await world.publisher.api("STREAM.INFO.DEADLETTER"))["state"]["messages"] <= number:
            await trio.sleep(0.02)
        await trio.sleep(pause)
    return sum('"dead_letter"' in line for line in await lines(world))


# --- tracing ---------------------------------------------------------------------------------------


@row("tracing.enabled", True, beside={"tracing.clients": True})
@row("tracing.clients", True, beside={"tracing.enabled": True})
async def traced(world: World) -> object:
    client = await world.client()
    await client.subscribe("a")
    head = f"NATS/1.0\r\ntraceparent: {TRACE}\r\n\r\n".encode()
    await world.publisher.store("events.acme.a", b"1", header=head)
    return "traceparent" in (await client.events(1))[0]


@row("tracing.sample_ratio", 0.0, beside={"tracing.enabled": True, "tracing.clients": True})
async def sampled(world: World) -> object:
    client = await world.client()
    await client.subscribe("a")
    await client.send("publish", {"channel": "a", "event": 1})
    return (await client.until("event")).get("traceparent", "")[-2:]


@row("tracing.endpoint", "http://127.0.0.1:PORT/v1/traces", beside={"tracing.enabled": True})
async def collected(world: World) -> object:
    collector = Issuer(response("200 OK", b""))
    await world.listen(collector.serve)
    client = await world.client()
    await client.subscribe("a")
    head = f"NATS/1.0\r\ntraceparent: {TRACE}\r\n\r\n".encode()
    await world.publisher.store("events.acme.a", b"1", header=head)
    await client.events(1)
    world.stop.wanted.set()

    async def asked() -> bool:
        return bool(collector.requests)

    return await world.until(asked)
