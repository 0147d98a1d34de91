"""The whole broker over a real nats-server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

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
