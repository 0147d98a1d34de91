"""What a broker remembers of the changes that it has confirmed: enough, and no more than that."""

from __future__ import annotations

from typing import Any

from broker.features.state import lost
from broker.features.state.lost import Confirmed, Ledger, LostUpdate
from broker.features.state.store import BASE


def confirmed(n: int, *paths: tuple[str, ...]) -> Confirmed:
    return Confirmed(id=f"s-{n}", connection="c", touched=paths or (("a",),))


def made() -> tuple[Ledger, list[LostUpdate]]:
    updates: list[LostUpdate] = []
    return Ledger(updates.append, lambda _: None), updates


def overwritten(subject: str, sequence: int, base: int) -> Any:
    return (sequence, subject, b'{"a":1,"b":2}', {BASE: str(base)})


def test_a_lost_update_is_noticed() -> None:
    """Once, and told with what is there now; one that was seen is not lost."""
    ledger, updates = made()
    ledger.wrote("state.acme.x", 7, [confirmed(1), confirmed(2, ("b",), ("none",))])
    ledger.wrote("state.acme.y", 8, [confirmed(3)])
    ledger.hear(overwritten("state.acme.x", 9, 6), writing=False)
    ledger.hear(overwritten("state.acme.x", 10, 6), writing=False)
    ledger.hear(overwritten("state.acme.y", 11, 8), writing=False)
    [update] = updates
    assert (update.subject, update.sequence) == ("state.acme.x", 9)
    assert update.paths(update.changes) == {"/a": 1, "/b": 2, "/none": None}
    assert (ledger.count, len(ledger.writes)) == (0, 0)


def test_of_a_large_change_little_is_remembered() -> None:
    """Then its author is told all of the document."""
    for paths in ([(f"a{n}",) for n in range(lost.MOST_PATHS + 1)], [("x" * 600, "y" * 600)]):
        change = confirmed(1, *paths)
        assert change.touched == ((),)
        update = LostUpdate(subject="s", sequence=1, changes=[change], value={"a": 1})
        assert update.paths([change]) == {"": {"a": 1}}


def test_the_latest_changes_are_remembered() -> None:
    """Of any number of documents, as many changes as are counted."""
    ledger, updates = made()
    group = [confirmed(n) for n in range(32)]
    for number in range(1000):
        ledger.wrote(f"state.acme.{number}", number + 1, group)
        ledger.wrote("state.acme.hot", number + 2000, group[:1])
        assert ledger.count == sum(len(changes) for _, changes in ledger.writes.values())
    assert lost.REMEMBERED - 32 < ledger.count <= lost.REMEMBERED
    for name in ("0", "999", "hot"):
        ledger.hear(overwritten(f"state.acme.{name}", 5000, 0), writing=False)
    assert [each.subject for each in updates] == ["state.acme.999", "state.acme.hot"]
