"""What the rows measured, for the table of the page of results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.support.world import World

HEADS = (
    "fault",
    "clients",
    "events acknowledged",
    "delivered",
    "duplicated",
    "missing",
    "announced",
    "recovery",
    "measured",
)


@attrs.define
class Report:
    """A line for each row that has something to say."""

    lines: list[dict[str, object]] = attrs.field(factory=list)

    def add(self, fault: str, world: World, **measured: str) -> None:
        """Keeps what `world` counted, the seconds until it delivered again, and what else is known."""
        assert world.verdict
        counts = attrs.asdict(world.verdict)
        del counts["problems"]
        times = [round(each, 2) for each in world.recoveries]
        line = {"fault": fault, **counts, "recoveries": times, "measured": measured, "seed": world.seed}
        self.lines.append(line)

    def write(self, path: Path) -> None:
        path.write_text(self.markdown() if path.suffix == ".md" else json.dumps(self.lines, indent=2) + "\n")

    def markdown(self) -> str:
        rows = [f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS)]
        for line in self.lines:
            times, measured = line["recoveries"], line["measured"]
            assert isinstance(times, list)
            assert isinstance(measured, dict)
            also = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in measured.items())
            longest = f"{max(times):.2f} s" if times else "none needed"
            keys = ("fault", "clients", "acknowledged", "delivered", "duplicated", "missing", "announced")
            rows.append(f"| {' | '.join(str(line[key]) for key in keys)} | {longest} | {also} |")
        return "\n".join(rows) + "\n"
