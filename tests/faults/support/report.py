"""What the rows measured, for the table in the README."""

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
)


@attrs.define
class Report:
    """A line for each row that has something to say."""

    lines: list[dict[str, object]] = attrs.field(factory=list)

    def add(self, fault: str, world: World) -> None:
        """Keeps what `world` counted and how long it took to deliver again, in seconds."""
        assert world.verdict
        counts = attrs.asdict(world.verdict)
        del counts["problems"]
        times = [round(each, 2) for each in world.recoveries]
        self.lines.append({"fault": fault, **counts, "recoveries": times, "seed": world.seed})

    def write(self, path: Path) -> None:
        path.write_text(self.markdown() if path.suffix == ".md" else json.dumps(self.lines, indent=2) + "\n")

    def markdown(self) -> str:
        rows = [f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS)]
        for line in self.lines:
            times = line["recoveries"]
            assert isinstance(times, list)
            longest = f"{max(times):.2f} s" if times else "none needed"
            keys = ("fault", "clients", "acknowledged", "delivered", "duplicated", "missing", "announced")
            rows.append(f"| {' | '.join(str(line[key]) for key in keys)} | {longest} |")
        return "\n".join(rows) + "\n"
