"""A document with its user's own changes over it, and the patches that it is made of."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import attrs
import pytest

from broker.client.draft import Draft
from broker.documents.edits import joined, put, replaced
from broker.documents.judging import OUT
from broker.documents.patches import apply, at, equal, is_done, leaves, parse_pointer

CASES = json.loads(Path(__file__).with_name("documents.json").read_text())
SEEDS = 600
COUNT = ("n",)  # what is added to


def something(rand: random.Random, depth: int, *, deletes: bool) -> Any:
    kind = rand.random()
    if depth and kind < 0.5:
        return {name: something(rand, depth - 1, deletes=deletes) for name in "abc" if rand.random() < 0.5}
    if deletes and kind < 0.65:
        return None
    return rand.choice([0, 1, "x", True, [1], []])


def document(rand: random.Random) -> dict[str, Any]:
    return {name: something(rand, 2, deletes=False) for name in "ab"}


def patch_of(rand: random.Random) -> dict[str, Any]:
    patch = something(rand, 3, deletes=True)
    return patch if isinstance(patch, dict) else {"a": patch}


@pytest.mark.parametrize("case", CASES["patches"], ids=lambda case: case["about"])
def test_a_patch_over_no_patch(case: dict[str, Any]) -> None:
    """Joined to a patch that does nothing, each of the shared patches does what it does alone."""
    old, patch, new = case["old"], case["patch"], case["new"]
    assert apply(old, joined({}, patch, old)) == new
    draft = Draft()
    draft.heard("s-1", old)
    draft.change(patch)
    assert draft.value == new


def test_two_patches_joined() -> None:
    """They do what they do one after the other, and what they replace has each of their leaves."""
    for seed in range(SEEDS * 4):
        rand = random.Random(seed)
        value, first, second = document(rand), patch_of(rand), patch_of(rand)
        both = joined(first, second, value)
        assert equal(apply(value, both), apply(apply(value, first), second)), seed
        was = replaced(both, value)
        for path, _ in leaves(both):
            known, depth = was, 0
            while depth < len(path) and isinstance(known, dict) and path[depth] in known:
                known, depth = known[path[depth]], depth + 1
            assert depth == len(path) or not isinstance(known, dict), (seed, path, was)


@attrs.define
class Judge:
    """The broker, as far as one document goes: it judges by `was`, and has a revision for each change."""

    value: Any = None
    sequence: int = 0
    done: dict[str, str] = attrs.field(factory=dict)

    def faults(self, was: Any, value: Any, patch: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        """What of `was` does not hold; an absent patch is ..."""
        within = patch is ... or (isinstance(patch, dict) and patch)
        if isinstance(was, dict) and isinstance(value, dict) and within:
            return [
                fault
                for name, each in was.items()
                for fault in self.faults(
                    each,
                    value.get(name),
                    patch.get(name, ...) if isinstance(patch, dict) else ...,
                    (*path, name),
                )
            ]
        return [] if equal(was, value) or (patch is not ... and is_done(patch, value)) else [path]

    def take(
        self,
        id: str,  # noqa: A002
        patch: Any = ...,
        was: Any = None,
        add: Any = None,
        revision: str = "",
    ) -> list[tuple[str, ...]]:
        """Where a change is in conflict."""
        assert revision if add else patch is not ...
        if id in self.done:
            return []
        there = at(self.value, COUNT)
        found = [] if patch is ... else self.faults(was, self.value, patch)
        if add and not isinstance(there, int | None):
            found.append(COUNT)
        if not found:
            value = self.value if patch is ... else apply(self.value, patch)
            self.write(put(value, COUNT, (there or 0) + add["/n"]) if add else value, id)
        return found

    def write(self, value: Any, id: str | None = None) -> None:  # noqa: A002
        self.value, self.sequence = value, self.sequence + 1
        if id:
            self.done[id] = self.revision

    @property
    def revision(self) -> str:
        return f"s-{self.sequence}"


@attrs.define
class Author:
    """A user of one document, with a broker whose answers may be lost."""

    rand: random.Random
    judge: Judge
    draft: Draft = attrs.field(factory=Draft)
    sent: Any = None
    count: int = 0

    def tell(self) -> None:
        ids = [id for id, at in self.judge.done.items() if at == self.judge.revision]  # noqa: A001
        self.draft.heard(self.judge.revision, self.judge.value, ids if self.rand.random() < 0.5 else [])

    def go(self) -> None:
        """Send the next change, or have an answer to the one that is on its way, unless that is lost."""
        if self.sent is None:
            self.count += 1
            sent = self.draft.next(f"me-{self.count}")
            self.sent = sent and sent.payload
            return
        faults = self.judge.take(**self.sent)
        if self.rand.random() < 0.3:
            return
        id, self.sent = self.sent["id"], None  # noqa: A001
        if self.rand.random() < 0.5:
            self.tell()
        if faults:
            self.draft.refused(faults)
        else:
            self.draft.stored(self.judge.done[id])


def test_whatever_happens() -> None:
    """What is typed is shown at once, and in the end all agree."""
    for seed in range(SEEDS):
        rand = random.Random(seed)
        judge = Judge()
        judge.write(document(rand))
        author = Author(rand, judge)
        draft = author.draft
        author.tell()
        for _ in range(25):
            roll = rand.random()
            if roll < 0.35:
                patch, shown = patch_of(rand), draft.value
                if rand.random() < 0.3:
                    draft.change(rand.choice((OUT, {"a": 1})), {COUNT: rand.choice((1, -2))})
                    assert draft.value.keys() >= {"n"}, seed
                else:
                    draft.change(patch)
                    assert equal(draft.value, apply(shown, patch)), seed
            elif roll < 0.5:
                judge.write(apply(judge.value, patch_of(rand)))
            elif roll < 0.65:
                author.tell()
            else:
                author.go()
        for _ in range(200):
            author.tell()
            author.go()
        author.tell()
        assert draft.pending == 0, seed
        assert equal(draft.value, judge.value), seed


def fresh(value: Any) -> Draft:
    draft = Draft()
    draft.heard("s-1", value)
    return draft


def send(draft: Draft, id: str = "me-1") -> Any:  # noqa: A002
    sent = draft.next(id)
    return sent and sent.payload


def test_a_change_says_what_was_seen_first() -> None:
    draft = fresh({"amount": 1, "note": "a"})
    draft.change({"amount": 2})
    draft.heard("s-2", {"amount": 5, "note": "b"})
    draft.change({"amount": 3, "note": None})
    assert send(draft) == {
        "id": "me-1",
        "patch": {"amount": 3, "note": None},
        "was": {"amount": 1, "note": "b"},
    }


def test_what_is_typed_over_a_change_under_way() -> None:
    """It replaces what that makes; the reply alone takes nothing away, the revision that has it does."""
    draft = fresh({"amount": 1, "note": "a"})
    draft.change({"amount": 2})
    send(draft)
    draft.change({"amount": 3, "note": "b"})
    draft.stored("s-3")
    assert draft.value == {"amount": 3, "note": "b"}
    assert send(draft, "me-2") == {
        "id": "me-2",
        "patch": {"amount": 3, "note": "b"},
        "was": {"amount": 2, "note": "a"},
    }
    draft.heard("s-2", {"amount": 1, "note": "a", "of": "another"})
    assert (draft.value, draft.pending) == ({"amount": 3, "note": "b", "of": "another"}, 2)
    draft.heard("s-3", {"amount": 2, "note": "a", "of": "another"})
    assert (draft.confirmed, draft.pending) == ({"amount": 2, "note": "a", "of": "another"}, 1)


def test_an_echo_may_come_before_the_reply() -> None:
    draft = fresh({"amount": 1})
    draft.change({"amount": 2})
    send(draft)
    draft.heard("s-2", {"amount": 2}, ["me-1"])
    draft.heard("s-3", {"amount": 7})  # and somebody has changed that since
    assert draft.value == {"amount": 7}
    draft.stored("s-2")
    assert (draft.value, draft.pending, draft.unsaved) == ({"amount": 7}, 0, False)


def test_what_is_older_says_nothing() -> None:
    """But what says that there has never been anything counts, and what is of another stream."""
    draft = fresh({"amount": 1})
    draft.heard("s-0", None)
    draft.heard("s-3", {"amount": 3})
    draft.heard("s-2", {"amount": 2})
    assert draft.confirmed == {"amount": 3}
    for revision, value in {"s-0": None, "s-1": {"amount": 1}, "t-1": {"amount": 7}}.items():
        draft.heard(revision, value)
        assert draft.confirmed == value


def test_of_a_conflict_the_rest_is_sent_again() -> None:
    """And what was typed over what is lost is lost with it."""
    city = {"city": "x"}
    draft = fresh({"amount": 1, "note": "a", "address": city})
    draft.change({"amount": 2, "note": "b"})
    send(draft)
    draft.change({"amount": 3, "address": {"city": "y"}})
    draft.heard("s-2", {"amount": 9, "note": "a", "address": city})
    assert draft.refused([parse_pointer("/amount")]).patch == {"amount": 3}
    assert draft.value == {"amount": 9, "note": "b", "address": {"city": "y"}}
    assert send(draft, "me-2") == {
        "id": "me-2",
        "patch": {"note": "b", "address": {"city": "y"}},
        "was": {"note": "a", "address": city},
    }


def test_a_document_is_made_and_deleted() -> None:
    draft = fresh(None)
    draft.change({"amount": 1})
    assert send(draft) == {"id": "me-1", "patch": {"amount": 1}, "was": None}
    draft.stored("s-2")
    draft.change(None)
    assert draft.value is None
    assert send(draft, "me-2") == {"id": "me-2", "patch": None, "was": {"amount": 1}}
    draft.refused()
    assert draft.value == {"amount": 1}


def test_what_is_changed_before_anything_is_known() -> None:
    draft = Draft()
    draft.change({"note": "x"})
    draft.change({"amount": 2})
    assert (draft.value, draft.pending, send(draft)) == ({"note": "x", "amount": 2}, 1, None)
    draft.heard("s-1", {"amount": 1})
    assert send(draft) == {
        "id": "me-1",
        "patch": {"note": "x", "amount": 2},
        "was": {"note": None, "amount": 1},
    }


def test_what_is_added() -> None:
    """It is shown over what is there, goes by itself, and with what it was made on."""
    draft = fresh({"stock": 5, "note": "a"})
    draft.change({"note": "b"})
    draft.change(add={("stock",): -1, ("sold", "by/me"): 1})
    draft.change({"note": "c"}, {("stock",): -2})
    draft.change({"note": "d"})
    shown = {"stock": 2, "note": "d", "sold": {"by/me": 1}}
    assert (draft.value, draft.pending) == (shown, 4)
    assert send(draft) == {"id": "me-1", "patch": {"note": "b"}, "was": {"note": "a"}}
    draft.stored("s-2")
    draft.heard("s-3", {"stock": 9, "note": "b"})
    assert draft.value == shown | {"stock": 6}
    add = {"/stock": -1, "/sold/by~1me": 1}
    assert send(draft, "me-2") == {"id": "me-2", "add": add, "revision": "s-3"}
    draft.heard("s-4", {"stock": 8, "note": "b", "sold": {"by/me": 1}})  # without a word whose that is
    assert draft.value == shown | {"stock": 6}
    draft.stored("s-4")
    assert draft.value == shown | {"stock": 6}
    sent = {"id": "me-3", "patch": {"note": "c"}, "was": {"note": "b"}, "add": {"/stock": -2}}
    assert send(draft, "me-3") == sent | {"revision": "s-4"}
    draft.doubt()
    draft.heard("s-5", {"stock": "none", "note": "b"})
    assert draft.flying
    assert draft.flying.payload["revision"] == "s-4"
    assert draft.value == {"stock": "none", "note": "d"}
    gone = draft.refused([("stock",)])
    assert (gone.patch, gone.add) == ({"note": "c"}, {("stock",): -2})
    early = Draft()
    early.change(add={("stock",): 3})
    assert early.value == {"stock": 3}
    early.heard("s-1", {"stock": 1})
    assert (early.value, send(early)["revision"]) == ({"stock": 4}, "s-1")
