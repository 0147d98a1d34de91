"""Which brokers are alive: who is judged, when, and by whom not."""

from __future__ import annotations

from broker.features.presence.lives import Lives


def heard(lives: Lives, *brokers: str, begin: float, end: float) -> None:
    """Leases of these, each 2 s."""
    while begin <= end:
        for each in brokers:
            lives.lease(each, begin)
        begin += 2


def test_one_that_is_silent_has_died() -> None:
    """And so have its messages up to then; what it writes later counts again."""
    lives = Lives("a")
    heard(lives, "a", "b", begin=0, end=20)
    assert list(lives.dying(20, 5)) == []
    heard(lives, "a", begin=22, end=30)
    assert list(lives.dying(29.9, 6)) == []
    assert list(lives.dying(30.1, 7)) == ["b"]
    assert list(lives.dying(30.2, 8)) == []
    assert [lives.lost("b", revision) for revision in (7, 8)] == [True, False]
    heard(lives, "a", begin=32, end=60)
    assert list(lives.overdue(60.0, 30)) == []
    assert list(lives.overdue(60.2, 30)) == ["b"]
    lives.lease("b", 60.3)
    assert list(lives.overdue(60.4, 30)) == []
    assert lives.lost("b", 7)


def test_who_has_not_been_heard_at_all() -> None:
    """Is given the same time, from when this broker hears."""
    lives = Lives("a")
    lives.met("b")
    heard(lives, "a", begin=100, end=110)
    assert list(lives.dying(110, 3)) == []
    assert list(lives.dying(110.1, 3)) == ["b"]
    lives.forget("b")
    assert lives.alive == 1


def test_one_that_does_not_hear_itself_judges_nobody() -> None:
    """Nor does it for a while after that, nor while it has not been heard at all."""
    lives = Lives("a")
    assert not lives.judges(0)
    heard(lives, "a", "b", begin=0, end=20)
    assert lives.judges(21)
    assert not lives.judges(26.1)
    assert list(lives.dying(26.1, 3)) == []
    lives.lease("a", 31)
    assert not lives.judges(31.1)
    heard(lives, "a", begin=33, end=41)
    assert lives.judges(41)
    lives.interrupted()
    assert not lives.judges(41.1)


def test_a_late_lease_of_ours() -> None:
    """After more than 6 s others may have taken us for dead."""
    lives = Lives("a")
    assert not lives.lease("a", 0)
    assert not lives.lease("a", 6)
    assert lives.lease("a", 12.1)
    assert not lives.lease("b", 30)


def test_another_stream_has_other_sequences() -> None:
    """What is known to be lost in one says nothing of another."""
    lives = Lives("a")
    heard(lives, "a", "b", begin=0, end=10)
    heard(lives, "a", begin=12, end=24)
    assert list(lives.dying(24, 1000)) == ["b"]
    lives.begin()
    assert not lives.lost("b", 5)
    assert not lives.judges(24)
