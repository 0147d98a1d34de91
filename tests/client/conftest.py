from __future__ import annotations

import pytest

from tests.client.shells import SHELLS, Running


@pytest.fixture(params=SHELLS)
def running(request: pytest.FixtureRequest) -> Running:
    """Runs a session at an address for the length of a block: on Trio, and on asyncio."""
    return SHELLS[request.param]
