"""What the rows measured, for the page of results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from tests.support import results

if TYPE_CHECKING:
    import pytest

    from tests.faults.support.world import World


@attrs.frozen
class Report:
    """What a test of the suite measured, as rows of the section `faults`."""

    node: pytest.Item

    def add(self, fault: str, world: World, **measured: str) -> None:
        """Keep what `world` counted, the seconds until it delivered again, and what else is known."""
        found = world.verdict
        assert found
        recovery = f"{max(world.recoveries):.2f} s" if world.recoveries else "none needed"
        if world.documents:
            measured["changes_of_documents"] = str(world.books)
        also = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in measured.items())
        counts = found.acknowledged, found.delivered, found.duplicated, found.missing, found.announced
        row = [fault, found.clients, *(f"{each:,}" for each in counts), recovery, also]
        results.record(self.node, "faults", row)
