"""Documents: values, merge patches, and what becomes of changes. The cases are those of JavaScript too."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from jsonschema import _keywords

from broker.documents import judging, memory, patches, schemas, values
from broker.documents.judging import (
    OUT,
    Accepted,
    Change,
    Conflicting,
    Refused,
    Standing,
    Unknowable,
    Version,
)
from broker.documents.memory import MAX_SESSIONS, Entry, Memory
from broker.documents.values import Invalid
from broker.errors import BadMessage

SHARED = json.loads((Path(__file__).parents[1] / "client" / "documents.json").read_text())
AT = 7  # the revision in the cases


def about(case: dict[str, Any]) -> str:
    return str(case["about"])


def the_change(fields: dict[str, Any], *, session: str = "tab", n: int = 1, user: str = "alice") -> Change:
    """Return a checked change. Raise `BadMessage`."""
    change = Change(
        session=session,
        n=n,
        user=user,
        patch=fields.get("patch", OUT),
        was=fields.get("was", OUT),
        revision=fields.get("revision"),
        add=judging.additions(fields.get("add", {})),
    )
    judging.check(change)
    return change


def stored(value: Any, sequence: int = AT, remembered: Memory | None = None) -> Version:
    return Version(value=value, sequence=sequence, memory=remembered or Memory())


@pytest.mark.parametrize("text", SHARED["values"]["documents"])
def test_documents(text: str) -> None:
    """They are read as JSON says, and written as JSON of the same value."""
    value = values.parse(text.encode())
    assert value == json.loads(text)
    assert values.parse(values.encode(value)) == value


@pytest.mark.parametrize("text", SHARED["values"]["none"])
def test_what_is_no_document(text: str) -> None:
    found = values.parse(text.encode())
    assert isinstance(found, Invalid)
    assert found.reason


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"' + b"x" * values.MAX_BYTES + b'"}',
        b'{"a":"\xff"}',
        b'{"a":' * 33 + b"1" + b"}" * 33,
        b'{"a":' + b"[" * 32 + b"]" * 32 + b"}",
        b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"a":' + b"9" * 5000 + b"}",
    ],
    ids=["too long", "not UTF-8", "deep objects", "deep lists", "very deep", "a long number"],
)
def test_too_much_for_a_document(body: bytes) -> None:
    assert isinstance(values.parse(body), Invalid)


def test_the_deepest_document() -> None:
    assert not isinstance(values.parse(b'{"a":' * 32 + b"1" + b"}" * 32), Invalid)


@pytest.mark.parametrize("case", SHARED["equal"], ids=str)
def test_equality(case: list[Any]) -> None:
    one, other, same = case
    assert patches.equal(one, other) is same
    assert patches.equal(other, one) is same


@pytest.mark.parametrize("case", SHARED["patches"], ids=about)
def test_patches(case: dict[str, Any]) -> None:
    """What is patched stays as it was."""
    before = json.dumps(case)
    new = patches.apply(case["old"], case["patch"])
    assert new == case["new"]
    assert json.dumps(case) == before


@pytest.mark.parametrize("case", SHARED["diffs"], ids=about)
def test_differences(case: dict[str, Any]) -> None:
    patch = patches.diff(case["old"], case["new"])
    assert json.dumps(patch, sort_keys=True) == json.dumps(case["patch"], sort_keys=True)
    if patch is not None:
        assert patches.equal(patches.apply(case["old"], patch), case["new"])


@pytest.mark.parametrize("case", [case for case in SHARED["changes"] if "bad" not in case], ids=about)
def test_changes(case: dict[str, Any]) -> None:
    verdict = judging.judge(the_change(case["change"]), stored(case["value"]))
    if "becomes" in case:
        assert isinstance(verdict, Accepted)
        assert patches.equal(verdict.value, case["becomes"])
        assert verdict.body == (b"" if verdict.value is None else msgspec.json.encode(verdict.value))
    elif "conflict" in case:
        assert verdict == Conflicting(case["conflict"])
    else:
        assert isinstance(verdict, Refused if "refused" in case else Standing)


@pytest.mark.parametrize("case", [case for case in SHARED["changes"] if "bad" in case], ids=about)
def test_changes_that_do_not_say_enough(case: dict[str, Any]) -> None:
    with pytest.raises(BadMessage) as refused:
        the_change(case["change"])
    assert refused.value.message.startswith(case["bad"])


@pytest.mark.parametrize(
    "add",
    [{"/a": True}, {"/a": "1"}, {"/a": None}, {"/a": 2**53 + 1}, {"a": 1}, {"/" + "/".join("x" * 40): 1}],
)
def test_what_cannot_be_added(add: dict[str, Any]) -> None:
    with pytest.raises(BadMessage, match=r"^payload\.add"):
        the_change({"add": add, "revision": 1})


def test_limits_of_a_change() -> None:
    wide = {str(n): n for n in range(1001)}
    with pytest.raises(BadMessage, match="1001 leaves"):
        the_change({"patch": wide, "was": None})
    full = {"a": "x" * (values.MAX_BYTES - 10)}
    verdict = judging.judge(the_change({"patch": {"b": "xxxx"}, "was": {"b": None}}), stored(full))
    assert isinstance(verdict, Refused)
    assert verdict.too_large


# --- what a document remembers ---------------------------------------------------------------------------


def test_a_repetition_is_known_whatever_the_value_is() -> None:
    """There and back again: the change would apply once more if the document did not know it."""
    change = the_change({"patch": {"a": "B"}, "was": {"a": "A"}}, session="tab", n=4)
    knowing = Memory().with_changes([change.entry(6)])
    assert isinstance(judging.judge(change, stored({"a": "A"}, 9, knowing)), Standing)
    assert isinstance(judging.judge(change, stored({"a": "C"}, 9, knowing)), Standing)
    for fields in ({"session": "other"}, {"user": "bob"}, {"n": 5}):
        another = the_change({"patch": {"a": "B"}, "was": {"a": "A"}}, **{"n": 4, **fields})  # type: ignore[arg-type]
        assert isinstance(judging.judge(another, stored({"a": "A"}, 9, knowing)), Accepted)


def test_the_latest_sessions_are_remembered() -> None:
    """A change that may have been forgotten is not added a second time."""
    held = Memory()
    for n in range(MAX_SESSIONS + 1):
        held = held.with_changes([Entry(session=f"s{n}", n=1, user="u", base=100 + n)])
    assert len(held.entries) == MAX_SESSIONS
    assert not held.knows(session="s0", n=1, user="u")
    assert held.knows(session="s1", n=1, user="u")
    assert held.floor == 100
    version = stored({"n": 1}, 300, held)
    forgotten = the_change({"add": {"/n": 1}, "revision": 100}, session="s0")
    assert isinstance(judging.judge(forgotten, version), Unknowable)
    fresh = the_change({"add": {"/n": 1}, "revision": 101}, session="s0")
    assert isinstance(judging.judge(fresh, version), Accepted)
    foreign = the_change({"add": {"/n": 1}, "revision": -1})
    assert isinstance(judging.judge(foreign, version), Unknowable)


def test_a_forgotten_change_by_revision_that_is_there() -> None:
    """Beyond what is remembered it may be a repetition, and then it is no conflict with itself."""
    change = the_change({"patch": {"a": 2}, "revision": 3})
    assert isinstance(judging.judge(change, stored({"a": 2}, 9, Memory(floor=3))), Standing)
    assert isinstance(judging.judge(change, stored({"a": 2}, 9, Memory(floor=2))), Conflicting)
    assert isinstance(judging.judge(change, stored({"a": 1}, 9, Memory(floor=3))), Conflicting)


def test_a_forgotten_change_by_what_it_replaces() -> None:
    """Who repeats it says on which revision it was made: beyond what is remembered nobody knows its outcome.

    It may be what others have changed since, or there and back; but not what is done.
    """
    change = the_change({"patch": {"a": 2}, "was": {"a": 1}, "revision": 3})
    for there, verdict in ((1, Accepted), (2, Standing), (3, Conflicting)):
        covered = judging.judge(change, stored({"a": there}, 9, Memory(floor=2)))
        assert isinstance(covered, verdict)
        forgotten = judging.judge(change, stored({"a": there}, 9, Memory(floor=3)))
        assert isinstance(forgotten, Standing if there == 2 else Unknowable)


def test_what_is_no_document_takes_no_changes() -> None:
    """But it may remember some, and who repeats one that it has forgotten is not refused."""
    change = the_change({"patch": {"a": 2}, "was": {"a": 1}})
    repeated = attrs.evolve(change, revision=3)
    deleted = the_change({"patch": None, "was": None})
    for remembered, first, again in (
        (Memory(floor=2), Refused, Refused),
        (Memory(floor=3), Refused, Unknowable),
        (Memory(floor=3).with_changes([change.entry(4)]), Standing, Standing),
    ):
        version = Version(sequence=9, memory=remembered, invalid="it is a list")
        assert isinstance(judging.judge(change, version), first)
        assert isinstance(judging.judge(repeated, version), again)
    assert isinstance(judging.judge(deleted, Version(sequence=9, invalid="it is a list")), Refused)


def test_a_session_is_remembered_by_its_last_change() -> None:
    one = Memory().with_changes(
        [Entry(session="a", n=1, user="u", base=1), Entry(session="b", n=1, user="u", base=1)]
    )
    held = one.with_changes([Entry(session="a", n=2, user="u", base=2)])
    assert [each.id for each in held.entries] == ["b-1", "a-2"]
    assert [each.id for each in held.since(2)] == ["a-2"]
    assert held.knows(session="a", n=1, user="u")


def test_a_version_of_a_service_knows_nothing() -> None:
    for header in (None, "", "x", "5 nonsense", "5 a-1:2", "5 a-1:2:bob\n"):
        held = memory.parse(header, 8)
        assert held == Memory(floor=7)
        assert not stored({}, 8, held).covers(7)
        assert stored({}, 8, held).covers(8)


def test_where_nothing_is_stored() -> None:
    """A change on a document that has been deleted and forgotten is not added again; one on nothing is."""
    nothing = Version(memory=memory.parse(None, 0))
    assert isinstance(judging.judge(the_change({"add": {"/n": 1}, "revision": 5}), nothing), Unknowable)
    assert judging.judge(the_change({"add": {"/n": 1}, "revision": 0}), nothing) == Accepted(
        {"n": 1}, b'{"n":1}'
    )
    made = stored({"n": 1}, 6, nothing.memory.with_changes([the_change({"patch": {}, "was": None}).entry(0)]))
    second = the_change({"add": {"/n": 1}, "revision": 0}, session="second")
    assert isinstance(judging.judge(second, made), Accepted)


@pytest.mark.parametrize(
    "text", ["", "1", "a", "-1", "a-", "a-x", "a-1.5", "a b-1", "ü-1", "a" * 63 + "-1", "a-1\n"]
)
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(BadMessage, match=r"^payload\.id: "):
        memory.parse_id(text)


def test_ids() -> None:
    assert memory.parse_id("a-b_C-9-17") == ("a-b_C-9", 17)
    assert memory.parse_id("a" * 62 + "-1") == ("a" * 62, 1)


NAMES = st.text("abcXYZ09_-", min_size=1, max_size=8)


@given(
    floor=st.integers(-1, 2**62),
    entries=st.lists(
        st.builds(Entry, session=NAMES, n=st.integers(0, 10**15 - 1), user=NAMES, base=st.integers(0, 2**62)),
        max_size=MAX_SESSIONS,
        unique_by=lambda each: (each.session, each.user),
    ),
)
def test_the_header_has_all_of_it(floor: int, entries: list[Entry]) -> None:
    held = Memory(floor=floor, entries=tuple(entries))
    assert memory.parse(str(held), 2**62) == held


def test_changes_that_one_write_carries() -> None:
    """None touches what another does; but sums are made in any order."""
    group = judging.Group()

    def nothing(patch: Any) -> Any:
        return {name: nothing(each) for name, each in patch.items()} if isinstance(patch, dict) else None

    def take(fields: dict[str, Any], session: str) -> bool:
        seen = {"was": nothing(fields["patch"])} if "patch" in fields else {}
        return group.take(the_change({"revision": 1, **seen, **fields}, session=session))

    assert take({"patch": {"a": {"b": 1}}}, "one")
    assert not take({"patch": {"z": 1}}, "one")
    assert not take({"patch": {"a": {"b": 2}}}, "two")
    assert not take({"patch": {"a": 5}}, "two")
    assert not take({"patch": {"a": {"b": {"c": 1}}}}, "two")
    assert not take({"patch": None}, "two")
    assert take({"patch": {"a": {"c": 1}}}, "two")
    assert take({"add": {"/n/m": 1}}, "three")
    assert take({"add": {"/n/m": 1}}, "four")
    assert not take({"add": {"/n": 1}}, "five")
    assert not take({"add": {"/n/m/o": 1}}, "five")
    assert not take({"add": {"/a": 1}}, "five")
    assert not take({"add": {"/a/b": 1}}, "five")
    assert not take({"patch": {"n": None}}, "five")
    assert not take({"patch": {"n": {"m": 1}}}, "five")
    assert take({"patch": {"n": {"o": 1}}, "add": {"/a/d": 1}}, "five")
    assert not take({"patch": {"y": 1}, "was": {"y": None, "a": {"b": 1}}}, "six")
    assert not take({"patch": {"y": 1}, "was": OUT}, "six")
    assert take({"patch": {"y": 1}, "was": {"y": None, "x": {"b": 1}}}, "six")


def test_long_pointers_are_not_repeated() -> None:
    """A conflict in many members below a long name tells all of the document instead."""
    name = "n" * 20_000
    value = {name: {str(number): 1 for number in range(100)}}
    patch = {name: {str(number): 2 for number in range(100)}}
    verdict = judging.judge(the_change({"patch": patch, "was": patch}), Version(value=value, sequence=7))
    assert verdict == Conflicting({"": value})


# --- properties ------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, "", "x"])
KEYS = st.sampled_from("abc")
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3)
)
OBJECTS = st.dictionaries(KEYS, JSON, max_size=3)
PLAIN = OBJECTS.map(patches.without_nulls)


def has_null(value: Any) -> bool:
    return isinstance(value, dict) and any(each is None or has_null(each) for each in value.values())


@given(old=OBJECTS, new=OBJECTS)
def test_a_difference_leads_from_one_to_the_other(old: Any, new: Any) -> None:
    patch = patches.diff(old, new)
    if patch is None:
        assert has_null(new)
    else:
        assert patches.equal(patches.apply(old, patch), new)
        assert patches.diff(new, patches.apply(old, patch)) == {}


@given(old=OBJECTS, patch=OBJECTS)
def test_what_is_applied_is_done(old: Any, patch: Any) -> None:
    new = patches.apply(old, patch)
    assert patches.is_done(patch, new)
    assert patches.equal(patches.apply(new, patch), new)
    if patches.is_done(patch, old):
        assert patches.matches(new, old)


def seen(patch: Any, value: Any) -> Any:
    """Return what a client that saw `value` says that its patch replaces."""
    if isinstance(patch, dict) and patch and isinstance(value, dict):
        return {name: seen(each, value.get(name)) for name, each in patch.items()}
    return value


@given(value=PLAIN, one=PLAIN, other=PLAIN)
@example(value={}, one={"b": {"a": False}}, other={"b": {"b": False}})
def test_disjoint_edits_merge_in_any_order(value: Any, one: Any, other: Any) -> None:
    """Two clients edit what both have seen: either order leads to the same, and no edit is refused."""
    first, second = patches.diff(value, one), patches.diff(value, other)
    assume(first and second)
    changes = [the_change({"patch": patch, "was": seen(patch, value)}) for patch in (first, second)]
    # Two that make an object where both have seen nothing are not disjoint.
    paths = [
        [path for path, _ in (*patches.leaves(each.patch), *patches.leaves(each.was))] for each in changes
    ]
    disjoint = not any(map(patches.Paths(paths[0]).meets, paths[1]))
    ends = []
    for order in (changes, changes[::-1]):
        now: Any = value
        for change in order:
            verdict = judging.judge(change, stored(now))
            if disjoint:
                assert isinstance(verdict, Accepted)
            if isinstance(verdict, Accepted):
                now = verdict.value
        ends.append(now)
    if disjoint:
        assert patches.equal(ends[0], ends[1])


@given(value=PLAIN, current=PLAIN, wanted=PLAIN)
@settings(max_examples=300)
def test_nothing_is_replaced_that_its_author_has_not_seen(value: Any, current: Any, wanted: Any) -> None:
    """What an accepted change replaces is what its author saw, and all else stays."""
    patch = patches.diff(value, wanted)
    assume(patch)
    change = the_change({"patch": patch, "was": seen(patch, value)})
    verdict = judging.judge(change, stored(current))
    if isinstance(verdict, Conflicting):
        assert verdict.paths
        for pointer, there in verdict.paths.items():
            path = patches.parse_pointer(pointer) if pointer else ()
            assert not patches.matches(patches.at(value, path), there)
            assert patches.equal(patches.at(current, path), there)
        return
    if isinstance(verdict, Standing):
        assert patches.is_done(patch, current)
        return
    assert isinstance(verdict, Accepted)
    for path, leaf in patches.leaves(patch):
        there = patches.at(current, path)
        assert patches.is_done(leaf, there) or patches.matches(there, patches.at(value, path))
        assert patches.is_done(leaf, patches.at(verdict.value, path))
    touched = [path for path, _ in patches.leaves(patch)]
    for path, there in patches.leaves(current):
        if not patches.Paths(touched).meets(path) and there != {}:
            assert patches.equal(patches.at(verdict.value, path), there)


@given(value=PLAIN, wanted=st.none() | PLAIN)
def test_what_its_author_has_seen_is_accepted(value: Any, wanted: Any) -> None:
    patch = None if wanted is None else patches.diff(value, wanted)
    verdict = judging.judge(the_change({"patch": patch, "was": seen(patch, value)}), stored(value))
    if patch == {} or (wanted is not None and patches.equal(value, wanted)):
        assert isinstance(verdict, Standing)
    else:
        assert isinstance(verdict, Accepted)
        assert patches.equal(verdict.value, wanted)


# --- schemas ---------------------------------------------------------------------------------------------

SCHEMA = schemas.parse(
    {
        "type": "object",
        "required": ["status"],
        "properties": {
            "amount": {"type": "number", "minimum": 0},
            "status": {"$ref": "#/$defs/status"},
            "lines": {"type": "array", "items": {"type": "object", "required": ["sku"]}},
        },
        "$defs": {"status": {"enum": ["new", "shipped"]}},
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        (None, {"status": "new"}, []),
        (None, {"status": "new", "amount": -1}, ["/amount"]),
        (None, {"amount": 1}, [""]),
        ({"status": "new", "amount": 1}, {"status": "new", "amount": "1"}, ["/amount"]),
        ({"status": "new"}, {"status": "lost"}, ["/status"]),
        ({"status": "lost"}, {"status": "gone"}, ["/status"]),
        ({"status": "lost", "amount": 1}, {"status": "lost", "amount": 2}, []),
        ({"amount": 1}, {"amount": 2}, []),
        ({"status": "new"}, {}, [""]),
        ({"status": "new"}, {"status": "new", "more": 1}, [""]),
        ({"status": "new", "other": 1}, {"status": "new", "other": 1, "more": 1}, [""]),
        ({"status": "new", "other": 1}, {"status": "new", "other": 1, "amount": 1}, []),
        ({"status": "new"}, {"status": "new", "lines": [{"sku": 1}, {}]}, ["/lines/1"]),
    ],
)
def test_a_schema_judges_what_a_change_touches(old: Any, new: Any, wrong: list[str]) -> None:
    patch = patches.diff(old or {}, new)
    assert list(SCHEMA.faults(old, new, [path for path, _ in patches.leaves(patch)])) == wrong


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The values that are judged by a schema, and how many faults are asked for."""
    found: list[Any] = []
    errors = schemas.Schema.errors

    def noted(self: schemas.Schema, value: Any) -> Any:
        found.append([value, 0])
        for each in errors(self, value):
            found[-1][1] += 1
            yield each

    monkeypatch.setattr(schemas.Schema, "errors", noted)
    return found


def test_a_schema_judges_no_more_than_it_has_to(judged: list[Any]) -> None:
    """The old value only for faults that it may have had as well, and none after those that are told."""
    old, new, bad = {"status": "new"}, {"status": "shipped"}, {"status": "lost"}
    assert not SCHEMA.faults(old, new, [("status",)])
    assert SCHEMA.faults(old, bad, [("status",)])
    assert [value for value, _ in judged] == [new, bad]
    assert SCHEMA.faults(old, {}, [("status",)])
    assert [value for value, _ in judged[2:]] == [{}, old]
    numbers = schemas.parse({"additionalProperties": {"type": "string"}})
    judged.clear()
    many = {f"a{n}": n for n in range(1000)}
    assert len(numbers.faults({}, many, [()])) == schemas.MAX_FAULTS
    assert judged == [[many, schemas.MAX_FAULTS]]
    [message] = schemas.parse({"maxProperties": 1}).faults({}, many, [()]).values()
    assert len(message) <= schemas.MAX_CHARACTERS


ITEMS = st.lists(
    st.recursive(
        st.sampled_from([0, 1, 1.0, 2, True, False, None, "", "1", "a"]),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
        max_leaves=4,
    ),
    max_size=5,
)


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


@given(ITEMS)
def test_unique_items(items: list[Any]) -> None:
    """1 is 1.0, and `true` is no 1, at any depth."""
    schema = schemas.parse({"properties": {"a": {"uniqueItems": True}}})
    doubled = any(alike(*pair) for pair in itertools.combinations(items, 2))
    assert bool(schema.faults(None, {"a": items}, [("a",)])) is doubled


def test_unique_items_are_not_compared_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever in a schema that is said, and whichever draft it is of."""
    monkeypatch.setattr(_keywords, "uniq", lambda _: pytest.fail("each is compared with each"))
    for draft in ("http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema"):
        schema = schemas.parse(
            {
                "$schema": draft,
                "properties": {
                    "a": {"uniqueItems": True},
                    "b": {"$ref": "#"},
                    "c": {"allOf": [{"$ref": "#/definitions/d"}]},
                },
                "definitions": {"d": {"uniqueItems": True}},
            }
        )
        wrong = {"a": [1, 1], "b": {"a": [{}, {}], "b": {"c": ["x", "x"]}}, "c": [1, True]}
        assert list(schema.faults(None, wrong, [()])) == ["/a", "/b/a", "/b/b/c"]


@pytest.mark.parametrize(
    "document",
    [1, None, {"type": "what"}, {"$ref": "#/$defs/none"}, {"$ref": "http://localhost/schema"}, {"$ref": "#"}],
    ids=str,
)
def test_what_is_no_schema(document: Any) -> None:
    with pytest.raises(ValueError, match="JSON Schema"):
        schemas.parse(document)
