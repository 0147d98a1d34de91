"""What may be changed of a stream of ours, over any settings: what is promised, read naively."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import config
from broker.bus import streams, terms
from broker.subjects import Names

LIMITS = st.sampled_from([-1, 0, 1, 5, 10**6, 10**12])
SETTINGS = st.fixed_dictionaries(
    {
        "max_age": st.sampled_from([0, 10**9, 10**12, 10**15]),
        "max_bytes": LIMITS,
        "max_msgs_per_subject": LIMITS,
        "num_replicas": st.sampled_from([1, 3, 5]),
        "allow_rollup_hdrs": st.booleans(),
    }
)
EVENTS = streams.events(config.Stream(), Names())


def wanted(settings: dict[str, Any]) -> streams.Wanted:
    """A stream with these settings, as somebody may configure it."""
    return streams.Wanted(
        name="EVENTS", required=EVENTS.required, settings=settings, keys={"name": "stream.name"}
    )


def room(value: int) -> float:
    return value if value > 0 else float("inf")


@given(found=SETTINGS, ours=SETTINGS, left=st.one_of(st.just({}), SETTINGS))
def test_only_what_is_as_we_left_it_and_only_upwards(
    found: dict[str, Any], ours: dict[str, Any], left: dict[str, Any]
) -> None:
    """Without consent a change never makes room smaller, nor touches what somebody else has set."""
    changed = terms.plan({**EVENTS.required, **found}, wanted(ours), left, consent=False)
    for key, value in changed.items():
        assert value == ours[key] != found[key]
        assert left[key] == found[key]
        if key == "num_replicas":
            assert value > found[key]
        elif key != "allow_rollup_hdrs":
            assert room(value) > room(found[key])
    if left == found:
        for key in ours.keys() - changed.keys():
            assert ours[key] == found[key] or room(ours[key]) <= room(found[key])


@given(found=SETTINGS, ours=SETTINGS, left=SETTINGS)
def test_with_consent_all_is_as_wanted(
    found: dict[str, Any], ours: dict[str, Any], left: dict[str, Any]
) -> None:
    """And everything that the broker needs; a duplicate window that would be too long is cut with the age."""
    theirs = {**EVENTS.required, "allow_direct": False, "duplicate_window": 10**13, **found}
    changed = terms.plan(theirs, wanted(ours), left, consent=True)
    becomes = {**theirs, **changed}
    for key, value in ours.items():
        assert becomes[key] == value or room(becomes[key]) == room(value)
    assert becomes["allow_direct"] is True
    assert not becomes["max_age"] or becomes["duplicate_window"] <= becomes["max_age"]


@given(files=st.lists(SETTINGS, min_size=1, max_size=4), order=st.lists(st.integers(0, 3), max_size=12))
def test_brokers_with_any_files_come_to_rest(files: list[dict[str, Any]], order: list[int]) -> None:
    """Whoever starts in whichever order: after each has started twice nothing changes any more."""
    found: dict[str, Any] = {**EVENTS.required, **files[0]}
    left = dict(files[0])

    def start(settings: dict[str, Any]) -> dict[str, Any]:
        changed = terms.plan(found, wanted(settings), left, consent=False)
        found.update(changed)
        left.update({key: value for key, value in settings.items() if found[key] == value})
        return {key: value for key, value in changed.items() if key != "allow_rollup_hdrs"}

    for number in order:
        start(files[number % len(files)])
    for settings in files * 2:
        start(settings)
    assert [start(settings) for settings in files] == [{}] * len(files)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("max_age", 0, "unlimited"),
        ("max_age", 7 * 86400 * 10**9, "7d"),
        ("max_age", 36 * 3600 * 10**9, "36h"),
        ("duplicate_window", 90 * 10**9, "90s"),
        ("duplicate_window", 120 * 10**9, "2m"),
        ("duplicate_window", 1_500_000_000, "1.5s"),
        ("duplicate_window", 0, "0s"),
        ("max_bytes", -1, "unlimited"),
        ("max_bytes", 1024, "1024"),
        ("num_replicas", 3, "3"),
        ("allow_direct", False, "false"),
        ("retention", "interest", "interest"),
        ("subjects", None, "null"),
        ("subjects", ["events.>"], '["events.>"]'),
    ],
)
def test_a_value_for_people(key: str, value: object, text: str) -> None:
    assert terms.shown(key, value) == text


@pytest.mark.parametrize(
    ("theirs", "loses"),
    [
        ({"subjects": ["events.acme.>", "events.*"]}, set()),
        ({"subjects": ["events.>", "orders.>"]}, {"subjects"}),
        ({"subjects": [">"]}, {"subjects"}),
        ({"subjects": None}, set()),
        ({"republish": {"src": "_broker.>", "dest": "seen.>"}}, {"republish"}),
        ({"republish": None}, set()),
    ],
)
def test_what_others_would_miss(theirs: dict[str, Any], loses: set[str]) -> None:
    """Subjects that a stream would not keep any more, or not publish again, are told like events that go."""
    whole = streams.own(config.Stream(), Names()) if "republish" in theirs else EVENTS
    found = {**whole.required, **whole.settings, **theirs}
    assert {each.setting for each in terms.all_changes(found, whole)} == theirs.keys()
    assert {each.setting for each in terms.all_changes(found, whole) if each.loses} == loses


def test_a_mirror() -> None:
    """Nobody can publish into one, nor can it be given a subject: no command is proposed."""
    found = {**EVENTS.required, "mirror": {"name": "OTHER"}}
    del found["subjects"]
    fault = terms.unusable(found, EVENTS)
    assert fault == (
        "the stream EVENTS is a mirror of OTHER, which keeps no subjects. "
        "Set stream.name or subjects.events to use another one"
    )
