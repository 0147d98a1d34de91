"""a, b and c of "Held after every test": what the clients got against what was published. No I/O."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs

from tests.faults.support.entitled import entitled
from tests.faults.support.historian import Historian
from tests.faults.support.ledger import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.faults.support.follower import Follower, Received
    from tests.faults.support.ledger import Ledger

LIVE_SECONDS = 5.0  # how long before the end a live event must have been published to be there


@attrs.define(kw_only=True)
class Verdict:
    """What the clients got, counted in deliveries: one event to one client is one."""

    acknowledged: int = 0  # events
    clients: int = 0
    delivered: int = 0
    duplicated: int = 0
    missing: int = 0
    announced: int = 0
    problems: list[str] = attrs.field(factory=list)


@attrs.define(eq=False, kw_only=True)
class Subscriptions:
    """Patterns of one client that began together, with everything that came for them, in order."""

    follower: Follower
    patterns: list[str]
    baseline: str  # the position after which they are entitled
    events: list[Received]

    def __str__(self) -> str:
        client = self.follower
        return f"{client.name} ({client.tenant}, {self.patterns}, without {client.denied})"

    def wants(self, entry: Entry) -> bool:
        client = self.follower
        return entitled(self.patterns, client.denied, client.tenant, entry.tenant, entry.channel)


def judge(
    ledger: Ledger,
    clients: Sequence[Follower],
    stream: Mapping[int, tuple[str, str]],
    *,
    trims: bool,
    ended: float,
    forgets: bool = False,
) -> Verdict:
    """a to c, for all clients. `stream` is what NATS holds at the end, subject and id by sequence.

    `trims`: the test took acknowledged events out of it. `forgets`: it took away what NATS knew of ids, too.
    `ended`: when everybody had come to its end.
    """
    verdict = Verdict(acknowledged=len(ledger.stored), clients=len(clients))
    problems = verdict.problems
    copies = Counter(identity for _, identity in stream.values())
    problems += [
        f"{identity}: {count} copies in the stream" for identity, count in copies.items() if count > 1
    ]
    final = {
        identity: Entry(id=identity, subject=subject, sequence=sequence, sent=0, taken=0)
        for sequence, (subject, identity) in stream.items()
    }
    gone = {identity: entry for identity, entry in ledger.stored.items() if identity not in final}
    if gone and not trims:
        problems.append(f"NATS has lost {len(gone)} acknowledged events, {next(iter(gone))} first")
    for client in clients:
        problems += foreign(ledger, client)
        problems += live(ledger, client, ended)
        for each in subscriptions(client):
            problems += order(each, verdict, ledger.stored if forgets else {})
            problems += missing(each, final, gone.values(), verdict)
    return verdict


def subscriptions(client: Follower) -> list[Subscriptions]:
    assert client.baseline
    stored = [event for event in client.events if event.sequence]
    main = [event for event in stored if matches_any(client, client.patterns, event)]
    found = [Subscriptions(follower=client, patterns=client.patterns, baseline=client.baseline, events=main)]
    if isinstance(client, Historian) and client.asking:
        past = client.of_the_past()
        found.append(
            Subscriptions(follower=client, patterns=[client.past], baseline=client.first(), events=past)
        )
    return found


def matches_any(client: Follower, patterns: list[str], event: Received) -> bool:
    return entitled(patterns, [], client.tenant, client.tenant, event.channel)


def foreign(ledger: Ledger, client: Follower) -> list[str]:
    """b: everything that came was published, in that channel, to somebody like this client."""
    found = []
    past = [client.past] if isinstance(client, Historian) else []
    marked = client.marked if isinstance(client, Historian) else []
    for events, patterns in ((client.events, client.patterns + past), (marked, past)):
        for event in events:
            subject = ledger.sent.get(event.id)
            if subject is None:
                found.append(f"{client.name}: {event} was never published")
                continue
            entry = Entry(id=event.id, subject=subject, sequence=0, sent=0, taken=0)
            may = entitled(patterns, client.denied, client.tenant, entry.tenant, entry.channel)
            if not may or event.channel != entry.channel:
                found.append(f"{client.name} ({client.tenant}, {patterns}): {event} is not for it")
    return found


def order(subscribed: Subscriptions, verdict: Verdict, retried: Mapping[str, Entry]) -> list[str]:
    """a: positions grow within an incarnation, over all connections, so nothing comes twice.

    Of `retried` an earlier copy that NATS has lost may have come besides, if it was never acknowledged.
    """
    found = []
    last: dict[str, Received] = {}
    seen: dict[tuple[str, str], Received] = {}
    for event in subscribed.events:
        verdict.delivered += 1
        before = last.get(event.incarnation)
        twice = seen.setdefault((event.incarnation, event.id), event)
        entry = retried.get(event.id)
        again = entry is not None and twice.sequence != entry.sequence and event.sequence > twice.sequence
        if twice is not event and not again:
            verdict.duplicated += 1
            found.append(f"{subscribed}: twice: {twice} and {event}")
        elif before and event.sequence <= before.sequence:
            found.append(f"{subscribed}: out of order: {event} after {before}")
        last[event.incarnation] = event
    return found


def missing(
    subscribed: Subscriptions, final: Mapping[str, Entry], gone: Iterable[Entry], verdict: Verdict
) -> list[str]:
    """a and c: what is in the stream has come; what was taken out of it has come or was announced."""
    client = subscribed.follower
    assert client.position
    began, _, baseline = subscribed.baseline.rpartition("-")
    incarnation = client.position.rpartition("-")[0]
    since = int(baseline) if began == incarnation else 0
    got = {event.id for event in subscribed.events}
    here = {event.id for event in subscribed.events if event.incarnation == incarnation}
    found = []
    for entry in final.values():
        if entry.sequence > since and subscribed.wants(entry) and entry.id not in here:
            verdict.missing += 1
            found.append(f"{subscribed}: never got {entry.id} at {entry.sequence}")
    for entry in gone:
        if entry.id in got or not subscribed.wants(entry):
            continue
        if began == incarnation and entry.sequence <= since:
            continue
        verdict.missing += 1
        if announced(client, entry):
            verdict.announced += 1
        else:
            found.append(f"{subscribed}: {entry.id} at {entry.sequence} is gone, in silence")
    return found


def announced(client: Follower, entry: Entry) -> bool:
    """Whether a gap said that this event cannot be had any more."""
    for note in client.notes:
        if note.kind != "gap":
            continue
        gap = note.payload
        if gap["reason"] == "reset":
            return True
        above = gap["reason"] == "trimmed" and number(gap["from"]) < entry.sequence
        if above and ("to" not in gap or entry.sequence <= number(gap["to"])):
            return True
    return False


def number(position: str) -> int:
    return int(position.rpartition("-")[2])


def live(ledger: Ledger, client: Follower, ended: float) -> list[str]:
    """a and c for live events: once a connection, and none missing of one that was told of no loss.

    Of a connection that ended, only what was published before something that it got can be called missing.
    """
    found = []
    got: dict[int, dict[str, float]] = {}
    for event in client.events:
        if not event.sequence:
            of = got.setdefault(event.connection, {})
            if event.id in of:
                found.append(f"{client.name}: live, twice: {event}")
            entry = ledger.live.get(event.id)
            of[event.id] = entry.sent if entry else 0.0
    told = {
        note.connection
        for note in client.notes
        if (note.kind == "gap" and note.payload["reason"] in ("source", "lag")) or note.kind == "source"
    }
    wanted = [
        entry
        for entry in ledger.live.values()
        if entitled(client.patterns, client.denied, client.tenant, entry.tenant, entry.channel)
    ]
    for stay in client.stays:
        here = got.get(stay.number, {})
        until = max(here.values(), default=0.0) if stay.until else ended - LIVE_SECONDS
        if stay.number not in told:
            found += [
                f"{client.name}: live {entry.id} is missing on connection {stay.number}"
                for entry in wanted
                if stay.since < entry.sent and entry.taken < until and entry.id not in here
            ]
    return found
