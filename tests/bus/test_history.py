"""Reads that lose a part on the way, and header blocks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import config
from broker.bus.api import base36
from broker.errors import Unavailable
from broker.nats import headers
from tests.support.bus import ready_bus

if TYPE_CHECKING:
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("dropped", [0, 2, 4, 5])
async def test_a_read_that_lost_a_part_is_no_page(nats: NatsServer, publisher: RawNats, dropped: int) -> None:
    """The first, one in the middle, the last record or the end of the batch: `Unavailable`, never a hole."""
    async with ready_bus(nats.url, nats=config.Nats(request_seconds=0.3)) as (bus, _):
        for _ in range(5):
            await publisher.store("events.acme.a")
        link = await bus.jetstream.up()
        (number,) = (key for key, handler in link.handlers.items() if handler == link.answered)
        count = iter(range(100))

        def lossy(subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:
            if next(count) != dropped:
                link.answered(subject, reply, block, body)

        link.handlers[number] = lossy
        with pytest.raises(Unavailable):
            await bus.read("events.>", after=0, limit=100)
        assert len((await bus.read("events.>", after=0, limit=100)).records) == 5


@pytest.mark.parametrize("late", [1, 2, 100])
async def test_a_late_replica_does_not_know_the_newest(
    nats: NatsServer, publisher: RawNats, late: int
) -> None:
    """That nothing is so new is asked again while the leader knows better, and never believed then."""
    async with ready_bus(nats.url) as (bus, _):
        sequence = await publisher.store("events.acme.a")
        link = await bus.jetstream.up()
        (number,) = (key for key, handler in link.handlers.items() if handler == link.answered)
        answers = iter(range(100))

        def replica(subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:
            if b"Nats-Sequence" in block and next(answers) < late:
                block, body = b"NATS/1.0 404 Message Not Found\r\n\r\n", b""
            link.answered(subject, reply, block, body)

        link.handlers[number] = replica
        if late > 10:
            with pytest.raises(Unavailable, match="lags behind"):
                await bus.sequence_at(LONG_AGO)
        else:
            assert await bus.sequence_at(LONG_AGO) == sequence
            assert next(answers) == late + 1


def test_a_header_block() -> None:
    """Blanks around values go, the last of a repeated field counts, a status is told apart."""
    block = b"NATS/1.0 404 Not Found\r\nA:  b \r\nA: c:d\r\n\r\n"
    assert headers.parse(block) == {"A": "c:d"}
    assert headers.status(block) == 404
    assert headers.status(b"NATS/1.0\r\nA: b\r\n\r\n") == 0
    assert headers.parse(b"") == {}


@given(st.binary(max_size=200))
def test_no_header_block_is_too_odd(block: bytes) -> None:
    """Whatever a publisher sends as a header block is read as something."""
    headers.parse(block)
    headers.parse(headers.VERSION + b"\r\n" + block)
    headers.status(headers.STATUS + block)


@given(st.integers(min_value=0, max_value=10**18))
def test_base36(number: int) -> None:
    """The text that Python's `int` reads back."""
    assert int(base36(number), 36) == number
