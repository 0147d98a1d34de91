"""The index of the newest events against a naive one."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.eventlog import index as module
from broker.eventlog.index import Index

STEPS = st.lists(st.tuples(st.integers(1, 3), st.sampled_from("abc"), st.integers(0, 2)), max_size=80)


@given(
    steps=STEPS,
    floor=st.integers(0, 5),
    most=st.sampled_from((1, 4, 30)),
    subjects=st.sets(st.sampled_from("abcd"), min_size=1),
    after=st.integers(0, 200),
    span=st.integers(0, 100),
    count=st.integers(1, 10),
    time=st.integers(0, 160),
)
def test_it_is_the_naive_one(
    steps: list[tuple[int, str, int]],
    floor: int,
    most: int,
    subjects: set[str],
    after: int,
    span: int,
    count: int,
    time: int,
) -> None:
    """Sequences, times and subjects of the newest `most` events; what is older is forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "KEPT", most)
        patch.setattr(module, "WASTE", 2)
        index = Index(floor)
    sequences = [floor + each for each in accumulate(step for step, _, _ in steps)]
    times = list(accumulate(later for _, _, later in steps))
    for sequence, (_, subject, _), at in zip(sequences, steps, times, strict=True):
        index.add(sequence, subject, at)
    kept = list(zip(sequences, [subject for _, subject, _ in steps], times, strict=True))[-most:]
    forgotten = sequences[-most - 1] if len(sequences) > most else floor
    assert (len(index), index.floor) == (len(kept), forgotten)
    assert index.subjects.keys() == {subject for _, subject, _ in kept}
    assert {each: index.time(each) for each in range(220)} == dict.fromkeys(range(220)) | {
        sequence: at for sequence, _, at in kept
    }
    matching = [sequence for sequence, subject, _ in kept if subject in subjects]
    upto = after + span
    within = [each for each in matching if after < each <= upto]
    assert index.newest(subjects, upto=upto, count=count) == [e for e in matching if e <= upto][-count:]
    assert index.oldest(subjects, after=after, upto=upto, count=count) == within[:count]
    later = [sequence for sequence, _, at in kept if at >= time]
    if kept and kept[0][2] < time:
        assert index.before(time) == (later[0] - 1 if later else kept[-1][0])
    else:
        assert index.before(time) is None
