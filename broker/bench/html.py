"""A report as one page: nothing that it loads, no script, light or dark as the reader has it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, tostring

from .plots import STYLE, draw, node, plots
from .report import STYLES, VERDICTS, circumstances, phases, table, targets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .report import Table
    from .results import Report

PAGE_STYLE = """
:root { color-scheme: light dark; --edge: #ccc; --good: #00694a; --bad: #b3261e; --care: #b36b00 }
@media (prefers-color-scheme: dark) {
  :root { --edge: #555; --good: #4fd6a9; --bad: #ff9087; --care: #e6b450 }
}
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color: CanvasText; background: Canvas; overflow-wrap: anywhere }
h1, h2, h3 { line-height: 1.2 }
h2 { margin-top: 2.5rem }
h3 { font-size: 1rem; margin: 2rem 0 .5rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--edge); text-align: right }
td { white-space: nowrap }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
thead th { font-weight: 600; vertical-align: bottom; max-width: 12rem; overflow-wrap: break-word }
tbody th { font-weight: 400; min-width: 9rem }
.reached { color: var(--good) }
.missed { color: var(--bad); font-weight: 600 }
.warning { border-left: 4px solid var(--care); padding-left: .8rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem }
dd { margin: 0 }
"""
# Nothing but its own style: even a text that got past the escaping could load and run nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def to_html(report: Report) -> str:
    """The page. What comes from the report is text in a tree, never markup nor an attribute: all escaped."""
    title = f"broker bench {report.scenario}"
    page = node(
        "html",
        node(
            "head",
            node("meta", charset="utf-8"),
            node("meta", http_equiv="Content-Security-Policy", content=POLICY),
            node("meta", name="viewport", content="width=device-width, initial-scale=1"),
            node("title", title),
            node("style", PAGE_STYLE + STYLE),
        ),
        node("body", node("main", node("h1", title), *body(report))),
        lang="en",
    )
    return f"<!doctype html>\n{tostring(page, encoding='unicode', method='html')}\n"


def body(report: Report) -> Iterator[Element]:
    yield node("p", "began ", node("time", report.began))
    for warning in report.warnings:
        yield node("p", f"warning: {warning}", class_="warning", role="note")
    if reached := targets(report):
        yield node("h2", "Targets", id="targets")
        yield grid(reached, "targets")
    for name, phase in enumerate(phases(report)):
        yield node("h2", phase, id=f"phase-{name}")
        yield grid(table(report, phase), f"phase-{name}")
        for number, plot in enumerate(plots(report, phase)):
            yield node("h3", plot.title)
            yield draw(plot, f"plot-{name}-{number}")
    for heading, entries in circumstances(report):
        if entries:
            yield node("h2", heading.capitalize())
            parts = (
                node(tag, str(text))
                for entry in entries.items()
                for tag, text in zip(("dt", "dd"), entry, strict=True)
            )
            yield node("dl", *parts)


def grid(table: Table, heading: str) -> Element:
    """A table under the heading of that id."""
    head = node("tr", *(node("th", text, scope="col") for text in table.columns))
    rows = (
        node("tr", node("th", first, scope="row"), *(cell(text) for text in rest))
        for first, *rest in table.rows
    )
    drawn = node("table", node("thead", head), node("tbody", *rows), aria_labelledby=heading)
    # It scrolls by itself where it is too wide, and with the keyboard.
    return node("div", drawn, class_="wide", tabindex=0, role="region", aria_labelledby=heading)


def cell(text: str) -> Element:
    if text not in STYLES:
        return node("td", text)
    reached = text == VERDICTS[True]
    return node("td", f"{'✓' if reached else '✗'} {text}", class_="reached" if reached else "missed")
