"""SIGHUP on a real `broker serve`: what changes, what stays, and who is told."""

from __future__ import annotations

import json
import secrets
import signal
import socket
import ssl
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import pytest
import tomlkit
import trio
import trustme

from broker import config
from broker.auth import tokens
from tests.support import command, websocket
from tests.support.admin import Admin
from tests.web import harness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

READY_SECONDS = 60


@attrs.define(eq=False)
class Served:
    """A `broker serve` and its configuration file."""

    directory: Path
    tables: dict[str, dict[str, Any]]
    running: command.Running | None = None
    ws: str = ""

    @property
    def file(self) -> Path:
        return self.directory / "broker.toml"

    def write(self, **sections: dict[str, Any]) -> None:
        """The configuration with other values in some sections; from then on that is the one."""
        for name, values in sections.items():
            self.tables[name] = self.tables.get(name, {}) | values
        self.file.write_text(tomlkit.dumps(self.tables))

    def secret(self, name: str, content: str | None = None) -> str:
        file = self.directory / name
        file.touch(mode=0o600)
        file.write_text(content or secrets.token_hex(32))
        return name

    def token(self, key: str = "main", *, ttl: float = 3600, **claims: Any) -> str:
        """A token signed with the key of that name, as the file has it now."""
        auth = config.load(self.file, {}, production=True).auth
        chosen = [each for each in auth.keys if each.name == key]
        signing = attrs.evolve(auth, keys=tuple(chosen))
        claims = {"tenant": "acme", "user": "alice"} | claims
        return tokens.sign(signing, now=time.time(), ttl=ttl, **claims)

    def client(self, token: str) -> AbstractAsyncContextManager[websocket.Client]:
        return websocket.connect(self.ws, token=token)

    async def refused(self, token: str) -> int:
        """The code with which a client with such a token is closed."""
        async with websocket.connect(self.ws, token=None) as client:
            await client.expect("connection.established")
            await client.send("authenticate", {"token": token})
            return await client.closed()

    async def hup(self) -> dict[str, Any]:
        """Reloads; what the broker logs of it."""
        assert self.running
        self.running.process.send_signal(signal.SIGHUP)
        while True:
            line: dict[str, Any] = json.loads(await self.running.line("stderr"))
            if line["event"] in ("reloaded", "reload_refused"):
                return line


def prepared(directory: Path, nats: NatsServer, /, **sections: dict[str, Any]) -> Served:
    """A configuration that `broker serve` can run with."""
    served = Served(directory, {})
    served.secret("main.key")
    served.write(
        server={"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0", "data_dir": "state"},
        nats={"urls": [nats.url]},
        stream={"max_bytes": "64MiB"},
        auth={"keys": [{"name": "main", "secret_file": "main.key", "tenants": ["acme"]}]},
        log={"format": "json"},
    )
    served.write(**sections)
    return served


@asynccontextmanager
async def serve(directory: Path, nats: NatsServer, /, **sections: dict[str, Any]) -> AsyncIterator[Served]:
    served = prepared(directory, nats, **sections)
    async with command.start("serve", "--config", served.file) as running:
        served.running = running
        with trio.fail_after(READY_SECONDS):
            ready = await running.until('"ready"', "stderr")
        served.ws = json.loads(ready)["ws"]
        yield served


async def test_a_bad_file_changes_nothing(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """It is said what is wrong, the old configuration stays in force, and nobody loses a connection."""
    async with serve(tmp_path, nats) as served, served.client(served.token()) as client:
        await client.subscribe("a")
        good = served.file.read_text()
        for text in ("[limits]\nconections = 3\n" + good, good.replace("main.key", "none.key"), "]"):
            served.file.write_text(text)
            assert (await served.hup())["event"] == "reload_refused"
        served.file.write_text(good)
        told = await served.hup()
        assert (told["event"], told["changed"], told["needs_restart"]) == ("reloaded", [], [])
        await publisher.store("events.acme.a", b"1")
        assert (await client.expect("event"))["event"] == 1


async def test_keys_come_and_go(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """A new key is believed at once; clients of one that is gone or made anew are closed, others stay."""
    async with serve(tmp_path, nats) as served:
        other = {"name": "other", "secret_file": served.secret("other.key"), "tenants": ["acme"]}
        keys = served.tables["auth"]["keys"]
        served.write(auth={"keys": [*keys, other]})
        assert await served.refused(served.token("other")) == 4500
        assert (await served.hup())["changed"] == ["auth.keys"]
        async with served.client(served.token()) as kept, served.client(served.token("other")) as dropped:
            await kept.subscribe("a")
            await dropped.subscribe("a")
            other["tenants"] = ["acme", "globex"]
            served.write(auth={"keys": [*keys, other]})
            await served.hup()
            await dropped.quiet()  # it may sign for more than before
            served.secret("other.key")
            old = served.token("other")
            served.secret("other.key")
            await served.hup()
            assert await dropped.closed() == 1012  # come back ...
            assert await served.refused(old) == 4500  # ... and hear it
            await publisher.store("events.acme.a", b"1")
            assert (await kept.expect("event"))["event"] == 1
            keys[0]["tenants"] = ["globex"]
            old = served.token()
            served.write(auth={"keys": keys})
            await served.hup()
            assert await kept.closed() == 1012
            assert await served.refused(old) == 4500
            served.write(auth={"keys": [other], "type": "at+jwt"})
            await served.hup()


async def test_default_permissions(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Subscriptions that the new defaults do not allow end; a token with its own permissions is as it was."""
    async with (
        serve(tmp_path, nats, permissions={"subscribe": [">"]}) as served,
        served.client(served.token()) as client,
        served.client(served.token(user="bob", subscribe=["b"])) as own,
    ):
        await client.subscribe("a")
        await client.subscribe("b")
        await own.subscribe("b")
        served.write(permissions={"subscribe": ["a"], "publish": ["a"]})
        await served.hup()
        ended = await client.expect("unsubscribed")
        assert (ended["channel"], ended["code"]) == ("b", "forbidden")
        await publisher.store("events.acme.b", b"1")
        await publisher.store("events.acme.a", b"2")
        assert (await client.expect("event"))["event"] == 2
        assert (await own.expect("event"))["event"] == 1
        await client.send("publish", {"channel": "a", "event": 3})
        await client.until("published")


async def test_limits_and_origins(tmp_path: Path, nats: NatsServer) -> None:
    """They hold for new connections and for those that there are; what is too many already stays."""
    async with (
        serve(tmp_path, nats, limits={"connections_per_user": 5}) as served,
        served.client(served.token()) as first,
        served.client(served.token()) as second,
    ):
        await first.subscribe(["a", "b"])
        served.write(
            limits={"connections_per_user": 1, "subscriptions_per_connection": 2},
            server={"origins": ["https://pages.example"]},
        )
        told = await served.hup()
        assert set(told["changed"]) == {
            "limits.connections_per_user",
            "limits.subscriptions_per_connection",
            "server.origins",
        }
        await first.send("subscribe", {"channel": "c"})
        assert (await first.expect("error"))["code"] == "limit_subscriptions"
        await second.subscribe("c")
        assert await served.refused(served.token()) == 4010


async def test_trusted_proxies(tmp_path: Path, nats: NatsServer) -> None:
    """From the reload on their word on the client's address counts, by whichever way they give it."""
    async with serve(tmp_path, nats, log={"level": "debug", "format": "json"}) as served:
        address = urlsplit(served.ws)

        async def peer(before: bytes = b"") -> str:
            tcp = await trio.open_tcp_stream(address.hostname or "", address.port or 0)
            await harness.Client(tcp).upgrade(before + harness.head(x_forwarded_for="203.0.113.9"))
            await tcp.aclose()
            assert served.running
            ended: str = json.loads(await served.running.until("connection_ended", "stderr"))["peer"]
            return ended

        assert (await peer()).startswith("127.0.0.1:")
        served.write(server={"trusted_proxies": ["127.0.0.0/8"]})
        assert (await served.hup())["changed"] == ["server.trusted_proxies"]
        assert await peer() == "203.0.113.9:0"
        served.write(server={"proxy_protocol": True})
        assert (await served.hup())["changed"] == ["server.proxy_protocol"]
        assert await peer(b"PROXY TCP6 2001:db8::1 ::1 7 8\r\n") == "[2001:db8::1]:7"


async def test_connections_that_are_there(tmp_path: Path, nats: NatsServer) -> None:
    """They too may send larger messages from then on, or no longer, and are told of the expiry sooner."""
    async with serve(tmp_path, nats) as served, served.client(served.token()) as client:
        served.write(limits={"message_bytes": "1MiB"}, auth={"expiring_seconds": "1h"})
        async with served.client(served.token(ttl=4)) as brief:
            await served.hup()
            assert (await brief.until("connection.expiring"))["expires_at"]
        await client.send("subscribe", {"channel": "x" * 100_000})
        assert (await client.until("error"))["code"] == "invalid_channel"  # it was read
        served.write(limits={"message_bytes": "20KiB"})
        await served.hup()
        await client.send("subscribe", {"channel": "x" * 30_000})
        assert await client.closed() == 1009


async def test_a_server_of_its_own(tmp_path: Path, nats: NatsServer) -> None:
    """It was started for the largest event, so that size changes with the next start."""
    async with serve(tmp_path, nats, nats={"urls": []}) as served:
        served.write(limits={"event_bytes": "8MiB", "stall_seconds": 100})
        told = await served.hup()
        assert (told["changed"], told["needs_restart"]) == (["limits.stall_seconds"], ["limits.event_bytes"])


async def test_a_new_certificate(tmp_path: Path, nats: NatsServer) -> None:
    """Handshakes after the reload get the new one, of another kind of key too; a bad pair changes nothing."""
    here = Served(tmp_path, {})

    def issue(kind: trustme.KeyType) -> bytes:
        issued = trustme.CA(key_type=kind).issue_cert("localhost", key_type=kind)
        here.secret("chain.pem", issued.cert_chain_pems[0].bytes().decode())
        here.secret("key.pem", issued.private_key_pem.bytes().decode())
        return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())

    def shown(port: int) -> bytes:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", port)) as tcp, context.wrap_socket(tcp) as tls:
            return tls.getpeercert(binary_form=True) or b""

    first = issue(trustme.KeyType.ECDSA)
    files = {"tls_certificate": "chain.pem", "tls_key": "key.pem"}
    async with serve(tmp_path, nats, server=files) as served:
        port = urlsplit(served.ws).port or 0
        assert await trio.to_thread.run_sync(shown, port) == first
        second = issue(trustme.KeyType.RSA)
        assert (await served.hup())["event"] == "reloaded"
        assert await trio.to_thread.run_sync(shown, port) == second
        issue(trustme.KeyType.ECDSA)
        served.secret("key.pem", "nothing")
        assert (await served.hup())["event"] == "reload_refused"
        assert await trio.to_thread.run_sync(shown, port) == second


async def test_client_certificates(tmp_path: Path, nats: NatsServer) -> None:
    """Whom clients' certificates must come from, and whether they must have one, changes while it runs."""
    here = Served(tmp_path, {})
    authority, devices = trustme.CA(), trustme.CA()
    issued = authority.issue_cert("localhost")
    here.secret("chain.pem", issued.cert_chain_pems[0].bytes().decode())
    here.secret("key.pem", issued.private_key_pem.bytes().decode())
    here.secret("devices.pem", devices.cert_pem.bytes().decode())

    def served_as(port: int, device: trustme.LeafCert | None) -> bool:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        if device:
            device.configure_cert(context)
        with (
            suppress(OSError),  # with TLS 1.3 a refusal comes with the first answer
            socket.create_connection(("127.0.0.1", port)) as tcp,
            context.wrap_socket(tcp, server_hostname="localhost") as tls,
        ):
            tls.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return tls.recv(100).startswith(b"HTTP/1.1 200 ")
        return False

    async with serve(tmp_path, nats, server={"tls_certificate": "chain.pem", "tls_key": "key.pem"}) as served:
        port = urlsplit(served.ws).port or 0
        device, foreign = devices.issue_cert("one"), authority.issue_cert("two")
        assert await trio.to_thread.run_sync(served_as, port, None)
        served.write(server={"tls_client_ca": "devices.pem", "tls_client_required": True})
        assert (await served.hup())["event"] == "reloaded"
        shown = [await trio.to_thread.run_sync(served_as, port, each) for each in (None, foreign, device)]
        assert shown == [False, False, True]
        served.write(server={"tls_client_required": False})
        await served.hup()
        assert await trio.to_thread.run_sync(served_as, port, None)


async def test_a_new_admin_token(tmp_path: Path, nats: NatsServer) -> None:
    """The admin token is read anew, from its file or another; without a usable one the old one stays."""
    state = tmp_path / "state"
    async with serve(tmp_path, nats) as served:
        admin = await Admin.of(json.loads((state / "broker.json").read_text())["admin"], state)
        own = admin.token

        async def taken(token: str) -> bool:
            admin.token = token
            return (await admin.send("GET", "/api/v1/readiness")).status == 200

        assert await taken(own)
        served.write(server={"admin_token_file": served.secret("first", "first-admin-token")})
        assert "server.admin_token_file" in (await served.hup())["changed"]
        assert (await taken("first-admin-token"), await taken(own)) == (True, False)
        served.secret("first", "second-admin-token")
        await served.hup()
        assert (await taken("second-admin-token"), await taken("first-admin-token")) == (True, False)
        served.secret("first", "short")
        assert (await served.hup())["event"] == "reload_refused"
        assert await taken("second-admin-token")


async def test_the_rest_needs_a_restart(tmp_path: Path, nats: NatsServer) -> None:
    """What cannot change while it runs is named, and stays as it was; the log's level changes."""
    async with serve(tmp_path, nats) as served:
        served.write(server={"backlog": 7}, ring={"events": 9}, log={"level": "warning"})
        told = await served.hup()
        assert told["needs_restart"] == ["server.backlog", "ring.events"]
        assert told["changed"] == ["log.level"]


@pytest.mark.parametrize("times", [20])
async def test_again_and_again(times: int, tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Signals in quick succession, while events flow, lose nothing."""
    async with serve(tmp_path, nats) as served, served.client(served.token()) as client:
        await client.subscribe("a")
        for number in range(times):
            served.write(limits={"stall_seconds": 100 + number})
            assert (await served.hup())["event"] == "reloaded"
            await publisher.store("events.acme.a", b"%d" % number)
        events = await client.events(times)
        assert [event["event"] for event in events] == list(range(times))
