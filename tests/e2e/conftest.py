"""The whole broker over a real nats-server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from broker import app
from broker.actors.supervisor import Supervisor
from tests.support.broker import Broker, configure, run_broker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.nats import NatsServer


@pytest.fixture
async def broker(tmp_path: Path, nats: NatsServer) -> AsyncIterator[Broker]:
    settings = configure(tmp_path / "broker", nats.url)
    async with run_broker(tmp_path / "broker", settings) as running:
        yield running


@pytest.fixture
def supervisors(monkeypatch: pytest.MonkeyPatch) -> list[Supervisor]:
    """The insides of the brokers that a test runs, in the order in which it starts them."""
    made: list[Supervisor] = []

    def make(**parts: Any) -> Supervisor:
        made.append(Supervisor(**parts))
        return made[-1]

    monkeypatch.setattr(app, "Supervisor", make)
    return made
