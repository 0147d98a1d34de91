"""What `bus.base.Values` promises, over a real nats-server's buckets and the scripted ones alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from broker.bus.base import Mark, Stale
from broker.errors import Unavailable

if TYPE_CHECKING:
    from broker.bus.base import Values
    from tests.contract.streams import Stream

PERSISTENT = 3


@pytest.fixture(params=["cursors", "control"])
def values(stream: Stream, request: pytest.FixtureRequest) -> Values:
    found: Values = getattr(stream.bus, request.param)
    return found


async def test_a_put_names_the_revision_that_it_replaces(values: Values) -> None:
    """Whoever names another one is told so, as often as it tries, and changes nothing."""
    assert await values.get("user.a") is None
    first = await values.put("user.a", b"1", revision=0)
    for wrong in (0, first + 1, first + 1000) * PERSISTENT:
        with pytest.raises(Stale):
            await values.put("user.a", b"x", revision=wrong)
    with pytest.raises(Stale):
        await values.put("user.b", b"x", revision=first)
    second = await values.put("user.a", b"2", revision=first)
    assert second > first
    held = await values.get("user.a")
    assert held
    assert (held.data, held.revision) == (b"2", second)
    assert await values.get("user.b") is None


async def test_news(values: Values) -> None:
    """What was put since the mark, once and in order; of a key that was put again the newest."""
    found, mark = await values.news("user", None)
    assert found == []
    first = await values.put("user.a", b"1", revision=0)
    await values.put("user.b.c", b"2", revision=0)
    await values.put("users.b", b"another", revision=0)
    found, mark = await values.news("user", mark)
    assert found == [b"1", b"2"]
    assert (await values.news("user", mark))[0] == []
    await values.put("user.a", b"4", revision=first)
    assert (await values.news("user", mark))[0] == [b"4"]
    assert (await values.news("user", None))[0] == [b"2", b"4"]
    assert (await values.count("user"), await values.count("users"), await values.count("u")) == (2, 1, 0)


async def test_a_mark_of_another_bucket_hides_nothing(values: Values) -> None:
    """It was made of a bucket that is gone: all is new."""
    await values.put("user.a", b"1", revision=0)
    _, mark = await values.news("user", None)
    for other in (
        Mark(incarnation="another", sequence=mark.sequence),
        Mark(incarnation=mark.incarnation, sequence=mark.sequence + 9),
    ):
        assert await values.news("user", other) == ([b"1"], mark)


async def test_values_put_together(values: Values) -> None:
    """Each is as if it had been put alone, whichever of them are stale."""
    first = await values.put_all([(f"u.{n}", b"a", 0) for n in range(50)])
    assert len({*first}) == 50
    for round_ in range(PERSISTENT):
        wrong = {7, 30} if round_ else set()
        puts = [
            (f"u.{n}", b"%d" % round_, 999_999 if n in wrong else revision or 0)
            for n, revision in enumerate(first)
        ]
        revisions = await values.put_all(puts)
        assert {n for n, revision in enumerate(revisions) if revision is None} == wrong
        for n, revision in enumerate(revisions):
            held = await values.get(f"u.{n}")
            assert held
            assert held.data == (b"0" if n in wrong else b"%d" % round_)
            assert held.revision == (revision or first[n])
        first = [revision or first[n] for n, revision in enumerate(revisions)]
    assert await values.put_all([("u.0", b"x", first[0] or 0)]) == [max(each or 0 for each in first) + 1]


async def test_a_value_goes_at_its_time(stream: Stream) -> None:
    """A value of `control` with a time to live is gone after it, and the next one begins anew."""
    values = stream.bus.control
    await values.put("user.a", b"1", revision=0, ttl=1)
    with trio.fail_after(45):
        while await values.get("user.a"):
            await trio.sleep(0.05)
    assert await values.count("user") == 0
    await values.put("user.a", b"2", revision=0)
    assert (await values.news("user", None))[0] == [b"2"]


async def test_cursors_stay(stream: Stream) -> None:
    """None of them is put for a time, and each attempt is refused."""
    for _ in range(PERSISTENT):
        with pytest.raises(Unavailable):
            await stream.bus.cursors.put("user.a", b"1", revision=0, ttl=3600)
    assert await stream.bus.cursors.get("user.a") is None


async def test_values_outlive_an_interruption(stream: Stream, values: Values) -> None:
    """What was put is there again with its revision, and nothing of what was refused."""
    revision = await values.put("user.a", b"1", revision=0)
    _, mark = await values.news("user", None)
    await stream.leave()
    for _ in range(PERSISTENT):
        with pytest.raises(Unavailable):
            await values.put("user.a", b"2", revision=revision)
    await stream.come_back()
    await stream.sink.until(lambda: stream.sink.up)
    held = await values.get("user.a")
    assert held
    assert (held.data, held.revision) == (b"1", revision)
    assert await values.news("user", mark) == ([], mark)
