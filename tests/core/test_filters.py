"""Filters: what passes them, and what is none; the shared cases are those of JavaScript too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from broker import filters
from broker.errors import BadMessage

SHARED = json.loads((Path(__file__).parents[1] / "client" / "filters.json").read_text())
ABSENT = object()


@pytest.mark.parametrize("case", SHARED["cases"], ids=lambda case: case["about"])
def test_what_passes(case: dict[str, Any]) -> None:
    wanted = filters.parse(case["filter"])
    assert [text for text in case["passes"] if not wanted.passes(msgspec.json.decode(text))] == []
    assert [text for text in case["fails"] if wanted.passes(msgspec.json.decode(text))] == []


@pytest.mark.parametrize("case", SHARED["bad"], ids=lambda case: case["names"])
def test_what_is_no_filter(case: dict[str, Any]) -> None:
    """The error names the node."""
    with pytest.raises(BadMessage) as refused:
        filters.parse(case["filter"], "filter")
    assert refused.value.message.startswith(f"{case['names']}: ")


@pytest.mark.parametrize(
    "document",
    [
        {"/a": "x" * 4097},
        {"/" + "x" * 4097: 1},
        {"/a": {"in": [*range(2000)]}},
        {"/" + "/".join("x" * 3000): 1},
        json.loads('{"not":' * 1000 + "{}" + "}" * 1000),
        {"x" * 60_000: 1},
        {"/a": {"x" * 60_000: 1}},
        {"/a": {"eq": json.loads("[" * 1000 + "]" * 1000)}},
    ],
    ids=[
        "a long text",
        "a long pointer",
        "a long list",
        "deep in",
        "nested",
        "a name",
        "an operator",
        "a value",
    ],
)
def test_too_much(document: Any) -> None:
    """The error is short, whatever was sent."""
    with pytest.raises(BadMessage) as refused:
        filters.parse(document, "payload.filter")
    assert len(refused.value.message.encode()) < 400


def test_what_is_near() -> None:
    """The error names the nearest thing that would be right."""
    for document, near in [({"status": 1}, "/status"), ({"anny": []}, "any"), ({"/a": {"gtt": 1}}, "gt")]:
        with pytest.raises(BadMessage, match=f"did you mean '{near}'"):
            filters.parse(document)


def test_equal_filters() -> None:
    """The order of members does not count; 1 and true do, which are equal in Python."""
    one, other = {"/a": 1, "/b": {"gt": 1, "lt": 2}}, {"/b": {"lt": 2, "gt": 1}, "/a": 1}
    assert len({filters.parse(one), filters.parse(other)}) == 1
    assert len({filters.parse({"/a": 1}), filters.parse({"/a": True})}) == 2


@pytest.mark.parametrize("case", SHARED["unions"], ids=lambda case: str(case["filters"])[:40])
def test_either(case: dict[str, Any]) -> None:
    """What passes one of several filters, passes their union."""
    joined = filters.either(None if each is None else filters.parse(each) for each in case["filters"])
    assert (joined is not None) == case["joined"]
    if joined is not None:
        assert all(joined.passes(json.loads(text)) for text in case["passes"])
        assert not any(joined.passes(json.loads(text)) for text in case["fails"])
    assert filters.either([]) is None


# --- a naive twin ----------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "0", "1", "", "a/b", "~"])
SCALARS = st.sampled_from(
    [None, True, False, 0, 1, -1, 1.0, 1.5, 2**53, 2**53 + 1, "", "a", "ab", "\U0001f600", "\uffee"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
POINTERS = st.lists(NAMES, max_size=3).map(
    lambda names: "".join(f"/{name.replace('~', '~0').replace('/', '~1')}" for name in names)
)
CONDITIONS = (
    VALUES.filter(lambda value: not isinstance(value, dict))
    | st.fixed_dictionaries({}, optional={"eq": VALUES, "ne": VALUES, "exists": st.booleans()}).filter(bool)
    | st.dictionaries(st.sampled_from(["in", "nin"]), st.lists(VALUES, max_size=3), min_size=1)
    | st.dictionaries(
        st.sampled_from(["gt", "gte", "lt", "lte"]),
        st.sampled_from([0, 1.5, 2**53, "a", "\uffee"]),
        min_size=1,
    )
    | st.fixed_dictionaries({"prefix": st.sampled_from(["", "a", "\uffee"])})
)
FILTERS = st.recursive(
    st.dictionaries(POINTERS, CONDITIONS, max_size=2),
    lambda inner: (
        st.fixed_dictionaries({"not": inner})
        | st.dictionaries(
            st.sampled_from(["any", "all"]), st.lists(inner, min_size=1, max_size=3), min_size=1
        )
    ),
    max_leaves=4,
)


def twin(document: dict[str, Any], event: Any) -> bool:
    """What the protocol page says, word by word."""
    return event is None or all(holds(name, value, event) for name, value in document.items())


def holds(name: str, value: Any, event: Any) -> bool:
    if name == "any":
        return any(twin_of(each, event) for each in value)
    if name == "all":
        return all(twin_of(each, event) for each in value)
    if name == "not":
        return not twin_of(value, event)
    found = event
    for token in [each.replace("~1", "/").replace("~0", "~") for each in name.split("/")[1:]]:
        if isinstance(found, dict) and token in found:
            found = found[token]
        elif isinstance(found, list) and token in map(str, range(len(found))):
            found = found[int(token)]
        else:
            found = ABSENT
    operators = value if isinstance(value, dict) else {"eq": value}
    return all(says(each, operand, found) for each, operand in operators.items())


def twin_of(document: dict[str, Any], event: Any) -> bool:
    return all(holds(name, value, event) for name, value in document.items())


def canonical(value: Any) -> str:
    """The JSON of a value, of which equal ones have the same."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{canonical(value[name])}" for name in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    return json.dumps(float(value) if type(value) in (int, float) else value)


def says(name: str, operand: Any, found: Any) -> bool:
    if name == "exists":
        return bool((found is not ABSENT) == operand)
    if found is ABSENT:
        return name in ("ne", "nin")
    match name:
        case "eq":
            return canonical(found) == canonical(operand)
        case "ne":
            return canonical(found) != canonical(operand)
        case "in":
            return canonical(found) in map(canonical, operand)
        case "nin":
            return canonical(found) not in map(canonical, operand)
        case "prefix":
            return isinstance(found, str) and found[: len(operand)] == operand
    if isinstance(found, str) and isinstance(operand, str):
        pair: tuple[Any, Any] = [*map(ord, found)], [*map(ord, operand)]
    elif type(found) in (int, float) and not isinstance(operand, str):
        pair = float(found), float(operand)
    else:
        return False
    before, same = pair[0] < pair[1], pair[0] == pair[1]
    return bool({"lt": before, "lte": before or same, "gt": not (before or same), "gte": not before}[name])


def nodes(document: dict[str, Any]) -> int:
    """Of how many nodes a filter consists."""
    count = 0
    for name, value in document.items():
        if name in ("any", "all"):
            count += 1 + sum(map(nodes, value))
        elif name == "not":
            count += 1 + nodes(value)
        else:
            count += len(value) if isinstance(value, dict) else 1
    return count


@settings(deadline=None, max_examples=500)
@given(document=FILTERS, events=st.lists(VALUES, min_size=1, max_size=8))
def test_a_naive_twin(document: dict[str, Any], events: list[Any]) -> None:
    """Whatever the filter and the event, both say the same."""
    assume(nodes(document) <= filters.MAX_NODES)
    wanted = filters.parse(document)
    assert [wanted.passes(event) for event in events] == [twin(document, event) for event in events]
