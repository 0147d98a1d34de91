"""A port that runs for the length of a test, and what TLS needs."""

from __future__ import annotations

import ssl
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trustme
from prometheus_client import CollectorRegistry, Gauge

from broker.config import Limits, Server
from broker.web.admin import AdminPort
from broker.web.health import Health
from broker.web.listeners import open_listeners
from broker.web.router import Router
from tests.web.harness import Client, Running, running
from tests.web.routes import ROUTES, TOKEN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.web.harness import Answer

AUTHORITY = trustme.CA()


@pytest.fixture
async def port() -> AsyncIterator[Running]:
    async with running(limits=Limits(head_seconds=0.5)) as run:
        yield run


@pytest.fixture
def reasons() -> list[str]:
    """Why the admin port says that the broker is not ready."""
    return []


@pytest.fixture
async def ask(reasons: list[str], nursery: trio.Nursery) -> Callable[..., Awaitable[Answer]]:
    """Asks a running admin port that was configured under the name metrics.example.

    With `end` the client says that nothing more comes.
    """
    registry = CollectorRegistry()
    Gauge("broker_connections", "Clients.", registry=registry).set(7)
    listeners = await open_listeners("127.0.0.1:0", 16)
    port = AdminPort(
        Server(admin_listen="Metrics.example:8081"),
        Limits(body_seconds=0.5, event_bytes=1000),
        registry=registry,
        health=Health(lambda: reasons[0] if reasons else None),
        router=Router(ROUTES),
        token=TOKEN,
    )
    await nursery.start(partial(port.run, listeners, nursery=nursery))

    async def asked(request: bytes, *, end: bool = False) -> Answer:
        async with await trio.open_tcp_stream(*listeners[0].getsockname()) as stream:
            await stream.send_all(request)
            if end:
                await stream.send_eof()
            return await Client(stream).answer()

    return asked


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost, and its key."""
    issued = AUTHORITY.issue_cert("localhost")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return certificate, key


@pytest.fixture
def trusting() -> ssl.SSLContext:
    """What a client needs to believe that certificate."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context
