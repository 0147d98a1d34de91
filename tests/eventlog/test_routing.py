"""The trie and its cache, against `subjects.covers` asked of every selection."""

from __future__ import annotations

from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import subjects
from broker.eventlog import routing
from broker.eventlog.routing import Router
from broker.eventlog.selection import Selection

Answer: TypeAlias = tuple[str, tuple[Selection, ...]]

TOKENS = st.sampled_from(["a", "b", "users", "live", "u"])
CHANNELS = st.lists(TOKENS, min_size=1, max_size=4).map(".".join).filter(lambda text: text != "live")
PATTERNS = (
    st.tuples(st.lists(TOKENS | st.just("*"), max_size=3), TOKENS | st.sampled_from(["*", ">"]))
    .map(lambda parts: ".".join([*parts[0], parts[1]]))
    .filter(lambda text: text != "live")
)
ACTIONS = st.lists(
    st.tuples(st.just("add"), PATTERNS, st.lists(PATTERNS, max_size=2).map(tuple))
    | st.tuples(st.just("remove"), st.integers(0, 20))
    | st.tuples(st.just("match"), CHANNELS),
    max_size=40,
)


def make_router() -> Router[Answer]:
    return Router(lambda channel, selections: (channel, selections))


def expected(selections: list[Selection], channel: str) -> set[Selection]:
    return {
        selection
        for selection in selections
        if subjects.covers(selection.pattern, channel)
        and not any(subjects.covers(each, channel) for each in selection.deny)
    }


@settings(deadline=None)
@given(actions=ACTIONS)
def test_finds_what_covers_says(actions: list[tuple[str, ...]]) -> None:
    """Whatever was added and removed before, cached or not, a channel finds exactly what matches."""
    router = make_router()
    selections: list[Selection] = []
    asked: set[str] = set()
    for kind, *rest in actions:
        if kind == "add":
            pattern, deny = rest
            selections.append(Selection(pattern, tuple(deny), len(selections) + 1))
            router.add(selections[-1])
        elif kind == "remove":
            if selections:
                router.remove(selections.pop(int(rest[0]) % len(selections)))
        else:
            asked.add(rest[0])
        for channel in asked:  # again and again, so that a stale answer shows
            found = router.match(channel)
            assert found[0] == channel
            assert len(found[1]) == len(set(found[1]))
            assert set(found[1]) == expected(selections, channel)
            assert all(selection.admits(channel) for selection in found[1])
        assert router.cached == sum(map(len, router.rooms.values()))
    for selection in selections:
        router.remove(selection)
    assert not router.root.children, "an empty branch was left behind"


@pytest.mark.parametrize(
    ("pattern", "channel"),
    [
        (">", "users.u.i"),
        ("*.*.i", "users.u.i"),
        (">", "live.x"),
        ("*.x", "live.x"),
        ("live.>", "live.users.u.i"),
        ("live.*.u.i", "live.users.u.i"),
    ],
)
def test_walls(pattern: str, channel: str) -> None:
    """No wildcard from outside finds a private or a live channel."""
    router = make_router()
    router.add(Selection(pattern, (), 1))
    assert router.match(channel) == (channel, ())


@pytest.mark.parametrize("pattern", ["users.u.>", "users.u.i", "a.*", "live.x"])
def test_change_in_one_room_keeps_the_answers_of_others(pattern: str) -> None:
    """A client that comes and goes with its private pattern costs nobody else a look-up."""
    router = make_router()
    others = ["users.w.i", "b", "users2.u"]
    kept = {channel: router.match(channel) for channel in others}
    selection = Selection(pattern, (), 1)
    router.add(selection)
    router.remove(selection)
    assert all(router.match(channel) is kept[channel] for channel in others)


def test_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of distinct channels takes a bounded memory."""
    monkeypatch.setattr(routing, "CACHED_ROUTES", 10)
    router = make_router()
    for number in range(100):
        router.match(f"a.{number}" if number % 2 else f"users.{number}.i")
        assert router.cached == sum(map(len, router.rooms.values())) <= 10


def test_same_pattern_with_another_denial_is_another_topic() -> None:
    """Removing one of two selections with the same pattern leaves the other."""
    router = make_router()
    one, other = Selection("a.>", (), 1), Selection("a.>", ("a.b",), 2)
    router.add(one)
    router.add(other)
    assert set(router.match("a.c")[1]) == {one, other}
    assert router.match("a.b")[1] == (one,)
    router.remove(one)
    assert router.match("a.c")[1] == (other,)
    assert router.match("a.b")[1] == ()
