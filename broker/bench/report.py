"""What a run found out, for eyes (a table on the console) and for programs (JSON)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
from rich import box
from rich.table import Table as Grid
from rich.text import Text

from .results import UNITS, Target, Unit, upper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console

    from .results import Histogram, Report, Result

OURS = "broker"
SCHEMA = 1
NOTHING = "–"
VERDICTS = {True: "reached", False: "not reached"}
STYLES = {VERDICTS[True]: "green", VERDICTS[False]: "bold red"}


@attrs.frozen(kw_only=True)
class Table:
    """Text in rows, as the console and the page both show it; the first column says what the others are."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def rounded(value: float, digits: int = 3, unlike: float | None = None) -> str:
    """A number to so many significant digits, with more when it takes them to tell it from `unlike`.

    Without those, 99.98 % delivered would read as 100 %, and a target just missed as one just reached.
    """
    if not math.isfinite(value):
        return NOTHING
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    places = digits - 1 - exponent
    text = f"{round(value, places):,.{max(places, 0)}f}" if value else "0"
    if unlike is None or value == unlike or digits >= 15 or text != rounded(unlike, digits):
        return text
    return rounded(value, digits + 1, unlike)


def label(unit: Unit) -> str:
    return joined(unit.title, unit, ", ")


def joined(text: str, unit: Unit, by: str = " ") -> str:
    """A text and its unit: `12/s`, but `12 ms`."""
    return f"{text}{'' if unit.name.startswith('/') else by}{unit.name}"


def phases(report: Report) -> list[str]:
    """In the order in which they were first measured."""
    return list(dict.fromkeys(result.phase for result in report.results))


def subjects(report: Report) -> list[str]:
    """The broker first, the others in the order in which they were first measured."""
    found = dict.fromkeys(result.subject for result in report.results)
    return sorted(found, key=lambda subject: subject != OURS)


def of_phase(report: Report, phase: str) -> dict[str, Result]:
    """What was measured in a phase, by subject, the broker first."""
    found = {result.subject: result for result in report.results if result.phase == phase}
    return {subject: found[subject] for subject in subjects(report) if subject in found}


def ratios(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """Ours ÷ theirs for each figure that both have and that is better one way or the other."""
    names = (name for name, unit in UNITS.items() if unit.better and name in ours and theirs.get(name))
    return {name: ours[name] / theirs[name] for name in names}


def table(report: Report, phase: str) -> Table:
    """A row per figure, a column per subject, and one per other subject for the broker ÷ it."""
    found = of_phase(report, phase)
    ours = found.get(OURS)
    others = [result for result in found.values() if ours and result is not ours]
    beside = {each.subject: ratios(ours.figures, each.figures) for each in others} if ours else {}
    rows = [
        [
            label(unit),
            *(
                cell(each.figures.get(name), 100 if name == "delivered_share" else None)
                for each in found.values()
            ),
            *(cell(each.get(name)) for each in beside.values()),
        ]
        for name, unit in UNITS.items()
        if any(name in each.figures for each in found.values())
    ]
    return Table(title=phase, columns=["", *found, *(f"{OURS} ÷ {each}" for each in beside)], rows=rows)


def cell(value: float | None, unlike: float | None = None) -> str:
    return NOTHING if value is None else rounded(value, unlike=unlike)


def targets(report: Report, *, figures: bool = False) -> Table | None:
    """Each target that was measured: what, wanted, seen, and whether it is reached. None when none was.

    With `figures`, also those that a ratio was made of.
    """
    rows = []
    for target in report.targets:
        measured, outcome = target.measured(report.results), target.reached(report.results)
        if measured and outcome:
            (ours, theirs), (seen, reached) = measured, outcome
            unit = UNITS[target.figure]
            bound = f"{'≥' if unit.better == 'higher' else '≤'} {target.bound:,.10g}"
            text = rounded(seen, unlike=target.bound)
            if theirs is not None and not target.above:
                wanted, got = f"{bound} × {target.beside}", f"{text} ×"
            else:
                wanted, got = joined(bound, unit), joined(text, unit)
                wanted += f" above {target.beside}" if target.above else ""
            what = f"{target.phase}: {label(unit)}"
            both = [cell(ours), cell(theirs)] if figures else []
            rows.append([what, *both, wanted, got, VERDICTS[reached]])
    columns = ["", *([OURS, "beside"] if figures else []), "wanted", "seen", ""]
    return Table(title="targets", columns=columns, rows=rows) if rows else None


def section(report: Report) -> str:
    """Return what the page of results says of the run: its targets, or else all that was compared."""
    reached = targets(report, figures=True)
    shown = [reached] if reached else [table(report, phase) for phase in phases(report)]
    tables = [markdown(each) if reached else f"{each.title}:\n\n{markdown(each)}" for each in shown]
    given = ", ".join(f"{name} {value}" for name, value in report.parameters.items() if name != "against")
    head = f"`broker bench {report.scenario}` ({given}), {report.began[:10]}"
    doubts = [f"Warning: {each}." for each in report.warnings]
    return "\n\n".join([head, *tables, *doubts])


def circumstances(report: Report) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Under what the figures came about, by heading."""
    yield "machine", report.machine
    yield "versions", report.versions
    yield "parameters", report.parameters


def show(report: Report, console: Console) -> None:
    """Print the whole report.

    Where the console is no terminal, it is Markdown, as wide as it needs to be: such output goes into a file,
    or is pasted into an issue.
    """

    def line(text: str = "", style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=not console.is_terminal)

    line(f"broker bench {report.scenario}, {report.began}", "bold")
    shown = [table(report, phase) for phase in phases(report)]
    for each in [*shown, reached] if (reached := targets(report)) else shown:
        line()
        line(each.title, "bold")
        if console.is_terminal:
            console.print(grid(each))
        else:
            line()
            line(markdown(each))
    line()
    for warning in report.warnings:
        line(f"warning: {warning}", "yellow")
    for heading, entries in circumstances(report):
        if entries:
            line(f"{heading}: {', '.join(f'{name} {value}' for name, value in entries.items())}")


def grid(table: Table) -> Grid:
    """A table as rich draws it. Texts are `Text`: a name such as `ws://[::1]` is no markup."""
    made = Grid(box=box.SIMPLE_HEAD)
    for index, column in enumerate(table.columns):
        # Numbers are of no use when they are folded; the words before them are.
        made.add_column(Text(column), justify="right" if index else "left", no_wrap=index > 0)
    for row in table.rows:
        made.add_row(*(Text(text, STYLES.get(text, "")) for text in row))
    return made


def markdown(table: Table) -> str:
    rows = [[text.replace("|", r"\|") for text in row] for row in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "|".join("-" * (width + 1) + (":" if index else "-") for index, width in enumerate(widths))
    head, *rest = (
        " | ".join(f"{text:{'>' if index else '<'}{widths[index]}}" for index, text in enumerate(row))
        for row in rows
    )
    return "\n".join([f"| {head} |", f"|{rule}|", *(f"| {each} |" for each in rest)])


def to_json(report: Report) -> bytes:
    """The report as one JSON object, whose `schema` changes when a reader would have to.

    ::

        schema      1
        scenario, began (RFC 3339), parameters, machine, versions, warnings
        units       {figure: {title, unit, better: "lower" | "higher" | ""}}: of all figures below
        results     [{subject, phase, figures: {figure: number}, rounds: [the figures of each round],
                      latency: null or {longest: ms, buckets: {upper bound in ms: count}} (but empty ones),
                      samples: [[seconds, deliveries since the beginning, bytes resident], …]}]
        ratios      [{phase, beside: subject, figures: {figure: the broker's ÷ that subject's}}]
        targets     [{phase, figure, bound, beside: subject or null, above: whether `bound` and `seen` are
                      differences to it and not ratios, seen: number or null, reached: bool or null}]:
                      null when not measured

    A parameter of a kind that JSON does not know is its `str`.
    """
    return msgspec.json.encode(
        {
            "schema": SCHEMA,
            "scenario": report.scenario,
            "began": report.began,
            **{heading: dict(entries) for heading, entries in circumstances(report)},
            "warnings": list(report.warnings),
            "units": {
                name: {"title": unit.title, "unit": unit.name, "better": unit.better}
                for name, unit in UNITS.items()
                if any(name in result.figures for result in report.results)
            },
            "results": [plain_result(result) for result in report.results],
            "ratios": list(plain_ratios(report)),
            "targets": [plain_target(target, report) for target in report.targets],
        },
        enc_hook=str,
    )


def plain_result(result: Result) -> dict[str, Any]:
    return {
        "subject": result.subject,
        "phase": result.phase,
        "figures": dict(result.figures),
        "rounds": [dict(each) for each in result.rounds],
        "latency": None if result.latency is None else plain_histogram(result.latency),
        "samples": [[each.at, each.delivered, each.memory] for each in result.samples],
    }


def plain_histogram(histogram: Histogram) -> dict[str, Any]:
    buckets = {str(upper(bucket) / 1e6): count for bucket, count in enumerate(histogram.counts) if count}
    return {"longest": histogram.longest / 1e6, "buckets": buckets}


def plain_ratios(report: Report) -> Iterator[dict[str, Any]]:
    for phase in phases(report):
        found = of_phase(report, phase)
        if ours := found.pop(OURS, None):
            for subject, theirs in found.items():
                yield {"phase": phase, "beside": subject, "figures": ratios(ours.figures, theirs.figures)}


def plain_target(target: Target, report: Report) -> dict[str, Any]:
    seen, reached = target.reached(report.results) or (None, None)
    return {**attrs.asdict(target), "seen": seen, "reached": reached}
