"""The buses that one suite holds to the port."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contract.streams import real, scripted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.contract.streams import Stream

OPENERS = {"nats": real, "scripted": scripted}


@pytest.fixture(params=OPENERS)
async def stream(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stream]:
    """A stream, empty, whose bus has reached NATS."""
    async with OPENERS[request.param](tmp_path) as opened:
        yield opened
