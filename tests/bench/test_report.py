"""What a bench run found out, as it is shown: the console, JSON, the page and its plots, the live display."""

from __future__ import annotations

import io
import json
import math
import re
import threading
from collections import Counter
from html.parser import HTMLParser
from pathlib import PurePosixPath
from typing import Any
from xml.etree import ElementTree as ET

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from broker.bench.html import to_html
from broker.bench.live import Live
from broker.bench.plots import linear, logarithmic, plots
from broker.bench.report import rounded, show, to_json
from broker.bench.results import (
    BUCKETS,
    UNITS,
    Histogram,
    Report,
    Result,
    Sample,
    Target,
    Unit,
    bucket,
    upper,
)

MS = 1_000_000
DURATIONS = st.integers(min_value=0, max_value=2**40 - 1)
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
VOID = {"meta", "br", "link"}


def histogram(*durations: int) -> Histogram:
    seen = Counter(map(bucket, durations))
    return Histogram(tuple(seen[each] for each in range(BUCKETS)), max(durations))


def make_report(**changes: Any) -> Report:
    """A small run: the floor was measured first, and is half as dear and twice as fast as the broker."""
    floor = Result(
        subject="floor",
        phase="paced",
        figures={"deliveries_per_second": 24_690.0, "cpu_per_delivery": 1.0, "generator_share": 50.0},
        samples=[Sample(0.0, 0, 8 * 2**20), Sample(2.0, 200, 8 * 2**20)],
        latency=histogram(*[1 * MS] * 4),
    )
    ours = Result(
        subject="broker",
        phase="paced",
        figures={"cpu_per_delivery": 2.0, "deliveries_per_second": 12_345.0, "generator_share": 25.0},
        rounds=[{"cpu_per_delivery": 1.9}, {"cpu_per_delivery": 2.1}],
        latency=histogram(1 * MS, 1 * MS, 1 * MS, 10 * MS),
        samples=[Sample(0.0, 0, 10 * 2**20), Sample(1.0, 100, 20 * 2**20), Sample(2.0, 150, 15 * 2**20)],
    )
    known = Report(
        scenario="fanout",
        parameters={"clients": 1000},
        machine={"processor": "abacus"},
        versions={"broker": "0.1.0"},
        began="2026-01-01T00:00:00Z",
        results=[floor, ours],
        targets=[
            Target(phase="paced", figure="cpu_per_delivery", bound=1.25, beside="floor"),
            Target(phase="paced", figure="deliveries_per_second", bound=12_000),
            Target(phase="paced", figure="cpu_per_delivery", bound=1.5, beside="floor", above=True),
            Target(phase="paced", figure="p99", bound=7),
        ],
        warnings=["the generator was busy"],
    )
    return attrs.evolve(known, **changes)


def printed(report: Report, **console: Any) -> str:
    out = io.StringIO()
    show(report, Console(**{"file": out, "force_terminal": False, "width": 40, **console}))
    return out.getvalue()


def cells(text: str) -> list[list[str]]:
    """The rows of all Markdown tables."""
    lines = (line for line in text.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


class Page(HTMLParser):
    """Where each text of a page stands, its attributes, and whether its elements are balanced."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data))


def drawings(page: str) -> list[ET.Element]:
    return [ET.fromstring(each) for each in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def lines(drawing: ET.Element) -> dict[str, list[list[tuple[float, float]]]]:
    """The polylines of each series of a drawing, without those of the legend, by its class."""
    found = {}
    for group in drawing.findall("g"):
        if group.find("text") is None:
            places = [each.attrib["points"].split() for each in group.findall("polyline")]
            found[group.attrib["class"]] = [
                [(float(x), float(y)) for x, y in (place.split(",") for place in points)] for points in places
            ]
    return found


def scale(drawing: ET.Element, anchor: str, by: str) -> dict[str, float]:
    """Where the numbers of an axis stand: those of x are centred, those of y end at the axis."""
    return {
        text.text or "": float(text.attrib[by])
        for text in drawing.findall("text")
        if text.attrib["text-anchor"] == anchor and (text.text or "")[0].isdigit()
    }


@given(DURATIONS)
@example(0)
@example(2**40 - 1)
def test_a_bucket_is_as_wide_as_it_says(duration: int) -> None:
    """A duration is in its bucket, which ends no more than a sixteenth (and 1 ns of rounding) above it."""
    end = upper(bucket(duration))
    assert duration <= end
    assert end <= max(duration, 1) * 17 / 16 + 1


@given(DURATIONS, DURATIONS)
def test_buckets_are_in_order(one: int, other: int) -> None:
    """A longer duration is never in an earlier bucket, nor does that end earlier."""
    low, high = sorted((one, other))
    assert bucket(low) <= bucket(high)
    assert upper(bucket(low)) <= upper(bucket(high))


@given(st.lists(DURATIONS, min_size=1, max_size=50), st.floats(min_value=0.01, max_value=1))
def test_a_quantile_is_that_of_the_sorted_durations(durations: list[int], part: float) -> None:
    """The quantile of a histogram is in the bucket of the exact one, and at its end or the longest of all."""
    exact = sorted(durations)[math.ceil(part * len(durations)) - 1]
    expected = min(upper(bucket(exact)), max(durations))
    assert histogram(*durations).quantile(part) == expected / 1e9


@given(st.lists(DURATIONS, min_size=1), st.lists(DURATIONS, min_size=1))
def test_histograms_add_up(some: list[int], others: list[int]) -> None:
    """The sum of two histograms is that of all durations together."""
    assert histogram(*some) + histogram(*others) == histogram(*some, *others)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.012345, "0.0123"),
        (1, "1.00"),
        (9.996, "10.0"),
        (999.6, "1,000"),
        (1_234_567, "1,230,000"),
        (math.inf, "–"),
    ],
)
def test_numbers_have_three_digits_that_mean_something(value: float, text: str) -> None:
    """Numbers of all sizes are rounded to three significant digits, their thousands are set apart."""
    assert rounded(value) == text


def test_a_number_that_is_not_the_bound_does_not_read_like_it() -> None:
    """As many digits are shown as it takes to tell a number from another that it is judged by."""
    assert rounded(99.998, unlike=100) == "99.998"
    assert rounded(100, unlike=100) == "100"
    assert rounded(1.2501, unlike=1.25) == "1.2501"
    assert rounded(0.3, unlike=100) == "0.300"


def test_the_table_compares_the_broker_with_the_others() -> None:
    """The broker is the first column, a ratio the last; figures are in the order of UNITS; a figure that is
    neither good nor bad has no ratio."""
    head, _, *rows = cells(printed(make_report()))[:5]
    assert head == ["", "broker", "floor", "broker ÷ floor"]
    assert rows == [
        ["deliveries/s", "12,300", "24,700", "0.500"],
        ["CPU per delivery, µs", "2.00", "1.00", "2.00"],
        ["CPU of the generator, % of a core", "25.0", "50.0", "–"],
    ]


def test_a_figure_of_one_subject_only_has_a_dash_for_the_others() -> None:
    """What only one of the subjects was measured for is shown, without a ratio."""
    floor, ours = make_report().results
    report = make_report(results=[floor, attrs.evolve(ours, figures={"p50": 0.5})], targets=[])
    assert ["p50, ms", "0.500", "–", "–"] in cells(printed(report))


def test_nothing_is_compared_where_the_broker_was_not_measured() -> None:
    """A phase without the broker has the others' figures and no ratios."""
    floor, _ = make_report().results
    text = printed(make_report(results=[floor]))
    assert cells(text)[0] == ["", "floor"]
    assert "÷" not in text


def test_a_lost_delivery_shows() -> None:
    """A share just under 100 % does not read as 100 %."""
    _, ours = make_report().results
    report = make_report(results=[attrs.evolve(ours, figures={"delivered_share": 99.9996})], targets=[])
    assert ["delivered, %", "99.9996"] in cells(printed(report))


def test_targets_are_judged() -> None:
    """A target missed and one reached are told apart; one that was not measured is left out."""
    assert cells(printed(make_report()))[-3:] == [
        ["paced: CPU per delivery, µs", "≤ 1.25 × floor", "2.00 ×", "not reached"],
        ["paced: deliveries/s", "≥ 12,000/s", "12,300/s", "reached"],
        ["paced: CPU per delivery, µs", "≤ 1.5 µs above floor", "1.00 µs", "reached"],
    ]


def test_output_for_a_file_is_plain() -> None:
    """No control character and no folded line in what does not go to a terminal, however narrow it claims to
    be; foreign text in brackets is no markup."""
    floor, ours = make_report().results
    name = "ws://[::1]:9222/" + "long/" * 20
    text = printed(
        make_report(
            results=[attrs.evolve(floor, subject=name), ours],
            parameters={"against": name},
            warnings=["[bold]loud[/bold] " * 20],
        )
    )
    assert not CONTROL.search(text)
    assert cells(text)[0] == ["", "broker", name, f"broker ÷ {name}"]
    assert {"machine: processor abacus", "versions: broker 0.1.0", f"parameters: against {name}"} <= set(
        text.splitlines()
    )
    assert f"warning: {'[bold]loud[/bold] ' * 20}" in text.splitlines()


def test_a_terminal_gets_colours_and_whole_numbers() -> None:
    """On a narrow terminal it is the words that are folded, not the numbers."""
    text = printed(
        make_report(), force_terminal=True, color_system="standard", width=50, legacy_windows=False
    )
    assert re.search(r"\x1b\[1;31mnot reached", text)
    assert "12,300" in text
    assert "24,700" in text


def test_json_has_it_all() -> None:
    """A program finds the figures, ratios, verdicts, the histogram and the samples, as is documented."""
    parameters = {"clients": 1000, "config": PurePosixPath("broker.toml")}
    found = json.loads(to_json(make_report(parameters=parameters)))
    assert found["schema"] == 1
    assert found["parameters"] == {"clients": 1000, "config": "broker.toml"}
    assert found["machine"] == {"processor": "abacus"}
    assert found["units"]["cpu_per_delivery"] == {
        "title": "CPU per delivery",
        "unit": "µs",
        "better": "lower",
    }
    assert found["ratios"] == [
        {
            "phase": "paced",
            "beside": "floor",
            "figures": {"deliveries_per_second": 0.5, "cpu_per_delivery": 2.0},
        }
    ]
    missed, reached, above, unseen = found["targets"]
    assert missed == {
        "phase": "paced",
        "figure": "cpu_per_delivery",
        "bound": 1.25,
        "beside": "floor",
        "above": False,
        "seen": 2.0,
        "reached": False,
    }
    assert reached["reached"] is True
    assert (above["above"], above["seen"], above["reached"]) == (True, 1.0, True)
    assert (unseen["seen"], unseen["reached"]) == (None, None)
    ours = found["results"][1]
    assert ours["rounds"] == [{"cpu_per_delivery": 1.9}, {"cpu_per_delivery": 2.1}]
    assert ours["samples"] == [[0.0, 0, 10485760], [1.0, 100, 20971520], [2.0, 150, 15728640]]
    assert ours["latency"]["longest"] == 10.0
    assert list(ours["latency"]["buckets"].values()) == [3, 1]
    assert [
        1 <= float(end) / at <= 17 / 16 for end, at in zip(ours["latency"]["buckets"], (1, 10), strict=True)
    ]


@given(st.lists(DURATIONS, min_size=1))
def test_no_delivery_is_lost_in_json(durations: list[int]) -> None:
    """The buckets of a histogram in JSON are in order, and have every duration."""
    only = Result(subject="broker", phase="paced", figures={}, latency=histogram(*durations))
    buckets = json.loads(to_json(make_report(results=[only])))["results"][0]["latency"]["buckets"]
    assert sum(buckets.values()) == len(durations)
    assert list(map(float, buckets)) == sorted(map(float, buckets))


def test_the_page_has_the_tables_of_the_console() -> None:
    """Page and console agree on each cell, and the page is balanced HTML that loads and runs nothing."""
    html = to_html(make_report())
    page = Page(html)
    shown = {text for tag, text in page.texts if tag in ("td", "th")}
    rows = [row for row in cells(printed(make_report())) if set("".join(row)) - set("-:")]
    assert {cell for row in rows for cell in row if cell} == {text.lstrip("✓✗ ") for text in shown}
    assert {"✗ not reached", "✓ reached"} <= shown
    assert ("dt", "processor") in page.texts
    assert ("dd", "abacus") in page.texts
    assert not [each for each in page.attributes if each[1] in ("src", "href", "style")]
    assert "<script" not in html
    assert "url(" not in html


def test_foreign_text_is_text() -> None:
    """Markup in any text of a report is shown as it is, and is never an element or an attribute."""
    evil = """<script>alert(1)</script>"'&"""
    results = [attrs.evolve(each, phase=evil) for each in make_report().results]
    results[0] = attrs.evolve(results[0], subject=evil)
    html = to_html(
        make_report(
            scenario=evil,
            results=results,
            parameters={evil: evil},
            machine={"processor": evil},
            warnings=[evil],
            began=evil,
            targets=[Target(phase=evil, figure="cpu_per_delivery", bound=1, beside=evil)],
        )
    )
    assert "<script" not in html
    page = Page(html)
    assert {"h1", "h2", "h3", "dt", "dd", "p", "time", "th", "td", "desc", "title"} <= {
        tag for tag, text in page.texts if evil in text
    }
    assert not {name for _, name, _ in page.attributes if name.startswith("on")}
    assert len(drawings(html)) == 3


def test_lines_go_where_the_samples_are() -> None:
    """On the plot of the throughput each rate stands at the height of its number on the axis, in the middle
    between the two samples that it comes from; that of the memory has each sample."""
    _, throughput, memory = drawings(to_html(make_report()))
    x, y = scale(throughput, "middle", "x"), scale(throughput, "end", "y")
    assert list(x.values()) == sorted(x.values()), "later is further right"
    assert list(y.values()) == sorted(y.values(), reverse=True), "more is further up"
    # The numbers of the y axis stand 4 below their lines.
    rates = [(x["0.5"], y["100"] - 4), (x["1.5"], (y["0"] + y["100"]) / 2 - 4)]
    assert lines(throughput)["series s0"] == [[pytest.approx(each, abs=0.11) for each in rates]]
    x, y = scale(memory, "middle", "x"), scale(memory, "end", "y")
    expected = [(x[at], y[mib] - 4) for at, mib in (("0", "10"), ("1", "20"), ("2", "15"))]
    assert lines(memory)["series s0"] == [[pytest.approx(each, abs=0.11) for each in expected]]


def test_the_histogram_has_its_peaks_where_the_latencies_are() -> None:
    """Three of four deliveries at 1 ms and one at 10 ms are two peaks of 75 % and 25 %, near those on
    the logarithmic axis; the marks are at p50 and p99, and the legend says them."""
    latency = drawings(to_html(make_report()))[0]
    x, y = scale(latency, "middle", "x"), scale(latency, "end", "y")
    decade = x["10"] - x["1"]
    ours = lines(latency)["series s0"][0]
    share = (y["0"] - y["100"]) / 100
    heights = [(y["0"] - 4 - at) / share for _, at in ours]
    assert sum(heights) == pytest.approx(100, abs=2)
    for at, part in ((x["1"], 75), (x["10"], 25)):
        near = [
            height
            for (place, _), height in zip(ours, heights, strict=True)
            if abs(place - at) < decade * 0.06
        ]
        assert sum(near) == pytest.approx(part, abs=1)
    marks = latency.findall("g[@class='series s0']/circle")
    assert [float(mark.attrib["cx"]) for mark in marks] == pytest.approx([x["1"], x["10"]], abs=decade * 0.03)
    titles = [mark.findtext("title") for mark in marks]
    assert titles == ["broker: p50 1.02 ms", "broker: p99 10.0 ms"]
    assert "broker · p50 1.02 ms, p99 10.0 ms" in [text.text for text in latency.iter("text")]


@given(st.lists(st.integers(min_value=0, max_value=2**62), min_size=1, max_size=30))
def test_every_point_is_within_its_axes(durations: list[int]) -> None:
    """Whatever the latencies are, 0 and those beyond the last bucket too, no point or mark is off the plot;
    the shares add up to 100 %."""
    only = Result(subject="broker", phase="paced", figures={}, latency=histogram(*durations))
    (plot,) = plots(make_report(results=[only]), "paced")
    points = [*plot.series[0].pieces[0], *(point for _, point in plot.series[0].marks)]
    assert all(-1e-9 <= plot.x.part(x) <= 1 + 1e-9 and 0 <= plot.y.part(y) <= 1 for x, y in points)
    assert sum(y for _, y in plot.series[0].pieces[0]) == pytest.approx(100)


def test_an_even_distribution_is_an_even_line() -> None:
    """As many deliveries in each octave, evenly on the logarithmic axis, make no saw of the line, though the
    buckets are not all as wide there."""
    even = histogram(*(int(2 ** (20 + step / 1000)) for step in range(4000)))
    only = Result(subject="broker", phase="paced", figures={}, latency=even)
    (plot,) = plots(make_report(results=[only]), "paced")
    inner = [y for _, y in plot.series[0].pieces[0]][2:-2]
    assert max(inner) < 1.05 * min(inner)


@given(st.floats(min_value=1e-6, max_value=1e12), st.floats(min_value=1, max_value=1e9))
def test_axes_hold_what_they_are_for(value: float, more: float) -> None:
    """An axis begins at or below and ends at or above its values, and has a readable number of ticks."""
    across, up = logarithmic("x", value, value * more), linear("y", value)
    assert across.ticks[0] <= value <= value * more <= across.ticks[-1]
    assert up.ticks[0] == 0
    assert up.ticks[-1] >= value * (1 - 1e-12)
    assert 2 <= len(across.ticks) <= 16
    assert 2 <= len(up.ticks) <= 7


def test_each_round_is_a_line_of_its_own() -> None:
    """Where the time begins anew the line does, and nothing is made of the gap between two rounds."""
    samples = [Sample(0.0, 0, 0), Sample(1.0, 100, 0), Sample(0.0, 0, 0), Sample(1.0, 40, 0)]
    only = Result(subject="broker", phase="paced", figures={}, samples=samples)
    (throughput,) = plots(make_report(results=[only]), "paced")
    assert throughput.series[0].pieces == [[(0.5, 100.0)], [(0.5, 40.0)]]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_page_needs_no_samples(count: int) -> None:
    """With no sample there is no plot over time, with one a dot; a long name is short in the legend only."""
    name = "broker" * 40
    samples = [Sample(float(at), at * 10, 2**20) for at in range(count)]
    only = Result(subject=name, phase="paced", figures={}, samples=samples)
    drawn = drawings(to_html(make_report(results=[only])))
    assert [len(each.findall(".//circle")) for each in drawn] == [[], [1], [1, 0]][count]
    for each in drawn:
        labels = [text.text or "" for text in each.iter("text")]
        assert max(map(len, labels)) < 80
        assert name in [title.text for title in each.iter("title")]


def test_plots_say_what_they_are() -> None:
    """Each plot has a title and a description that label it, under ids of its own; subjects differ in
    colour and in dashes; the axes are named with their units."""
    drawn = drawings(to_html(make_report()))
    ids = [element.attrib["id"] for each in drawn for element in each.iter() if "id" in element.attrib]
    assert len(set(ids)) == len(ids) == 6
    for each in drawn:
        title, description = each.findall("title") + each.findall("desc")
        assert each.attrib["aria-labelledby"].split() == [title.attrib["id"], description.attrib["id"]]
        assert "floor" in (description.text or "")
        series = each.findall("g")
        assert len({group.attrib["class"] for group in series}) == 2
        assert len({found.attrib["stroke-dasharray"] for found in each.iter("polyline")}) == 2
    titles = {text.text for each in drawn for text in each.findall("text")}
    assert {"deliveries/s", "seconds", "resident memory, MiB", "share of deliveries, % per bin"} <= titles


def test_every_figure_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each figure that there is has a row of its own, also one added later."""
    monkeypatch.setitem(UNITS, "new", Unit("something new", "parsec", "lower"))
    only = Result(subject="broker", phase="paced", figures=dict.fromkeys(UNITS, 1.0))
    rows = cells(printed(make_report(results=[only], targets=[])))[2:]
    assert len({row[0] for row in rows}) == len(rows) == len(UNITS)
    assert ["something new, parsec", "1.00"] in rows


class Paper(io.StringIO):
    """A file that knows which threads wrote to it."""

    def __init__(self) -> None:
        super().__init__()
        self.writers: set[int] = set()

    def write(self, text: str) -> int:
        self.writers.add(threading.get_ident())
        return super().write(text)


def test_the_live_display_shows_the_last_word() -> None:
    """What was said last is on the terminal at the end; saying it writes nothing (another thread does)."""
    paper = Paper()
    console = Console(file=paper, force_terminal=True, width=100, color_system=None, legacy_windows=False)
    with Live(console) as live:
        paper.writers.clear()
        live.phase("fanout, paced [x]", subject="broker", seconds=5.0)
        for at in range(1000):
            live.update(at=at / 200, delivered=at, per_second=200, memory=0)
        live.update(at=4.9, delivered=123_456, per_second=25_000, memory=3 * 2**20, detail="round 2 of 3")
        assert threading.get_ident() not in paper.writers
    text = paper.getvalue()
    assert "fanout, paced [x] · broker" in text
    assert "4.9 of 5 s" in text
    assert "123,456 deliveries   25,000/s   3.0 MiB   round 2 of 3" in text


def test_a_phase_begins_with_nothing_delivered() -> None:
    """What was said of the phase before is not shown for the next; without a length there is no bar."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    live = Live(console)
    with console.capture() as before:
        console.print(live.draw())
    assert before.get().strip() == ""
    live.phase("one", subject="broker", seconds=5)
    live.update(at=5, delivered=77, per_second=1, memory=1)
    live.phase("two", subject="floor", seconds=0)
    with console.capture() as after:
        console.print(live.draw())
    assert [line.split() for line in after.get().splitlines()] == [
        ["two", "·", "floor"],
        ["0.0", "s"],
        ["0", "deliveries", "0/s"],
    ]


def test_the_live_display_in_a_file_is_a_line_a_phase() -> None:
    """Where there is no terminal, the phases are named as they begin, and nothing else is written."""
    paper = Paper()
    with Live(Console(file=paper, force_terminal=False, width=20)) as live:
        live.phase("fanout to many clients, paced", subject="broker", seconds=5.0)
        live.update(at=1, delivered=2, per_second=3, memory=4)
        live.phase("fanout to many clients, paced", subject="floor", seconds=0)
    assert paper.getvalue() == (
        "fanout to many clients, paced: broker, 5 s\nfanout to many clients, paced: floor\n"
    )
