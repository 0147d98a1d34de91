"""The books of documents: what was tried, what was answered, and what then has to be stored. No I/O.

Each change writes a leaf of its own, under `seen`, so that what is stored tells which changes were applied.
Some change the member `hot` too: they keep there what they replaced, and all of them are one chain. Some add
to `sum`: as each adds with its leaf, none was applied twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Held: TypeAlias = "Mapping[str, tuple[str, Any]]"  # documents as somebody holds them: revision and value


@attrs.define(eq=False, kw_only=True)
class Tried:
    """A change of some documents. `end`: `changed`, `refused` or `unknown`; None while it is not known."""

    id: str
    tenant: str
    channels: tuple[str, ...]
    adds: bool = False
    began: float = attrs.field(factory=trio.current_time)
    codes: list[tuple[float, str]] = attrs.field(factory=list)  # of the refusals on the way
    revisions: dict[str, str] = attrs.field(factory=dict)
    cut_short: bool = False  # a connection has ended before the answer
    end: str | None = None
    at: float = 0.0

    def ended(self, end: str) -> None:
        self.end, self.at = end, trio.current_time()


@attrs.define(eq=False)
class Books:
    """All changes by id, and the value of each revision as the first watcher saw it."""

    tried: dict[str, Tried] = attrs.field(factory=dict)
    versions: dict[tuple[str, str, str], Any] = attrs.field(factory=dict)
    problems: list[str] = attrs.field(factory=list)

    def begin(self, tried: Tried) -> Tried:
        self.tried[tried.id] = tried
        return tried

    def saw(self, who: str, tenant: str, channel: str, revision: str, value: Any) -> None:
        """Somebody was shown a document: all have to see the same of one revision."""
        before = self.versions.setdefault((tenant, channel, revision), value)
        if before != value:
            self.problems.append(f"{who}: {tenant} {channel} at {revision} is {value}, for others {before}")

    def __str__(self) -> str:
        ends = [each.end for each in self.tried.values()]
        return ", ".join(f"{ends.count(end):,} {end}" for end in ("changed", "refused", "unknown"))

    @property
    def under_way(self) -> list[Tried]:
        return [each for each in self.tried.values() if each.end is None]

    def since(self, began: float, end: str) -> list[Tried]:
        return [each for each in self.tried.values() if each.began > began and each.end == end]

    def codes(self, began: float) -> set[str]:
        """The refusals since then."""
        return {code for each in self.tried.values() for at, code in each.codes if at > began}


def judge(books: Books, tenant: str, stored: Mapping[str, Any], watched: Mapping[str, Held]) -> list[str]:
    """What is wrong with the documents of a tenant. `stored` are their values, `watched` what who holds."""
    found = []
    for channel, value in stored.items():
        for who, documents in watched.items():
            _, held = documents.get(channel, ("", None))
            if held != value:
                found.append(f"{who} holds {held} of {channel}, stored is {value}")
        streams = {documents[channel][0].rpartition("-")[0] for documents in watched.values() if value}
        found += [f"{tenant} {channel}: {each}" for each in applied(books, tenant, channel, value, streams)]
    for tried in books.tried.values():
        have = [tried.id in (stored.get(each) or {}).get("seen", {}) for each in tried.channels]
        if tried.tenant == tenant and len(set(have)) > 1:
            found.append(f"{tenant}: {tried} is in one document, and not in the other")
    return found


def applied(books: Books, tenant: str, channel: str, value: Any, streams: set[str]) -> Iterator[str]:
    """Which answers do not go with what is stored. Those of another stream than `streams` say nothing."""
    seen = value["seen"] if value else {}
    for tried in books.tried.values():
        if tried.tenant != tenant or channel not in tried.channels:
            continue
        revision = tried.revisions.get(channel)
        known = revision is None or revision.rpartition("-")[0] in streams
        if tried.end == "changed" and known and revision and tried.id not in seen:
            yield f"{tried} is lost"
        if tried.end == "refused" and tried.id in seen:
            yield f"{tried} is there all the same"
    for each in seen.keys() - books.tried.keys():
        yield f"{each} was never sent"
    if not value:
        return
    if value["sum"] != (count := sum(books.tried[each].adds for each in seen if each in books.tried)):
        yield f"the sum is {value['sum']}, of {count} changes that added to it"
    chain, at = set[str](), value["hot"]
    while at and at not in chain:
        chain.add(at)
        at = seen.get(at)
    hot = {each for each, replaced in seen.items() if isinstance(replaced, str)}
    if chain != hot or at != "":
        yield f"of the changes of one member {hot - chain} were overwritten unseen, the chain ends in {at!r}"
