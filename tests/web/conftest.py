"""A port that runs for the length of a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker.config import Limits
from broker.web import links
from tests.web.harness import Running, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """For clients that do not leave when they should."""
    monkeypatch.setattr(links, "LINGER_SECONDS", 0.2)


@pytest.fixture
async def port() -> AsyncIterator[Running]:
    async with running(limits=Limits(head_seconds=0.5)) as run:
        yield run
