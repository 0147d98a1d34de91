"""How a run goes, on the terminal while it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from rich.console import Group
from rich.live import Live as Display
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.console import Console, RenderableType

REDRAWS_PER_SECOND = 4
BAR = 40  # columns


@attrs.frozen(kw_only=True)
class Phase:
    name: str
    subject: str
    seconds: float


@attrs.frozen
class Look:
    """What was last said of a phase."""

    at: float = 0.0
    delivered: int = 0
    per_second: float = 0.0
    memory: int = 0
    detail: str = ""


@attrs.define(eq=False)
class Live:
    """The phase under way, for as long as it is entered; it leaves nothing behind on the terminal.

    A thread of rich's draws what was last said, four times a second at most: `update` only says it, and
    may be called as often as one likes. Where the console is no terminal, a phase is one line when it begins.
    """

    console: Console
    display: Display = attrs.field(init=False)
    current: Phase | None = attrs.field(init=False, default=None)
    seen: Look = attrs.field(init=False, factory=Look)

    def __attrs_post_init__(self) -> None:
        self.display = Display(
            console=self.console,
            get_renderable=self.draw,
            refresh_per_second=REDRAWS_PER_SECOND,
            transient=True,
        )

    def __enter__(self) -> Self:
        if self.console.is_interactive:
            self.display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.display.stop()

    def phase(self, name: str, *, subject: str, seconds: float) -> None:
        """A phase of the scenario begins for a subject, and is to last so many seconds (0: who knows)."""
        self.seen = Look()
        self.current = Phase(name=name, subject=subject, seconds=seconds)
        if not self.console.is_interactive:
            lasts = f", {seconds:g} s" if seconds else ""
            self.console.print(Text(f"{name}: {subject}{lasts}"), soft_wrap=True)

    def update(self, *, at: float, delivered: int, per_second: float, memory: int, detail: str = "") -> None:
        """How things stand `at` seconds into the phase; `memory` in bytes, 0 where it is not known."""
        self.seen = Look(at, delivered, per_second, memory, detail)

    def draw(self) -> RenderableType:
        phase, seen = self.current, self.seen
        if phase is None:
            return ""
        head = Text.assemble((phase.name, "bold"), " · ", (phase.subject, "cyan"))
        head.truncate(self.console.width, overflow="ellipsis")
        row = Table.grid(padding=(0, 2))
        if phase.seconds:
            bar = ProgressBar(total=phase.seconds, completed=min(seen.at, phase.seconds), width=BAR)
            row.add_row(bar, Text(f"{seen.at:.1f} of {phase.seconds:g} s"))
        else:
            row.add_row(Text(f"{seen.at:.1f} s"))
        facts = [f"{seen.delivered:,} deliveries", f"{seen.per_second:,.0f}/s"]
        if seen.memory:
            facts.append(f"{seen.memory / 2**20:,.1f} MiB")
        if seen.detail:
            facts.append(seen.detail)
        return Group(head, row, Text("   ".join(facts), no_wrap=True, overflow="ellipsis"))
