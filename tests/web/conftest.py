"""A port that runs for the length of a test, and what TLS needs."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from broker.config import Limits
from broker.web import links
from tests.web.harness import Running, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

AUTHORITY = trustme.CA()


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """For clients that do not leave when they should."""
    monkeypatch.setattr(links, "LINGER_SECONDS", 0.2)


@pytest.fixture
async def port() -> AsyncIterator[Running]:
    async with running(limits=Limits(head_seconds=0.5)) as run:
        yield run


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
