"""Plots as inline SVG: lines over a linear or logarithmic axis, and the three that a report has."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element

import attrs

from .report import of_phase, rounded, subjects
from .results import STEPS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .results import Histogram, Report, Result, Sample

Point = tuple[float, float]

WIDTH = 720
LEFT, RIGHT, TOP = 96, 16, 12  # margins around the plotting area
DEEP = 240  # of the plotting area
FOOT = 60  # below it: numbers and title of the x axis
LINE = 20  # of the legend
LONGEST_NAME = 48  # in a legend; the whole one is the tooltip
PER_OCTAVE = 8  # bins of a drawn histogram: 9 % each

# Hues that the common kinds of colour blindness tell apart (after Okabe and Ito): on light, on dark. A
# line is known by its dashes too.
COLOURS = (
    ("#0072b2", "#5ab4f0"),
    ("#c94f00", "#ff9a57"),
    ("#00795a", "#35d0a2"),
    ("#a3498b", "#ec9fd0"),
    ("#7a5c00", "#e6c545"),
    ("#444444", "#c8c8c8"),
)
DASHES = ("none", "8 4", "2 4", "12 4 2 4", "5 2")

STYLE = "\n".join(
    [
        *(f".s{index} {{ --hue: {light} }}" for index, (light, _) in enumerate(COLOURS)),
        "@media (prefers-color-scheme: dark) {",
        *(f".s{index} {{ --hue: {dark} }}" for index, (_, dark) in enumerate(COLOURS)),
        "}",
        "svg { display: block; width: 100%; max-width: 720px; height: auto; font-size: 12px }",
        "svg text { fill: currentColor }",
        ".grid { stroke: currentColor; stroke-opacity: .15 }",
        ".frame { stroke: currentColor; stroke-opacity: .6 }",
        ".line { fill: none; stroke: var(--hue); stroke-width: 2; stroke-linejoin: round }",
        ".dot { fill: var(--hue) }",
        ".mark { fill: var(--hue); stroke: Canvas; stroke-width: 1.5 }",
    ]
)


def node(tag: str, *content: Element | str, **attributes: object) -> Element:
    """An element. `class_` is the attribute `class`, `text_anchor` is `text-anchor`; escaping comes later."""
    made = Element(tag, {key.rstrip("_").replace("_", "-"): str(value) for key, value in attributes.items()})
    for each in content:
        if isinstance(each, Element):
            made.append(each)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + each
        else:
            made.text = (made.text or "") + each
    return made


@attrs.frozen(kw_only=True)
class Axis:
    """What is along an axis, from where to where; `ticks` are within that, in order."""

    title: str
    ticks: Sequence[float]
    logarithmic: bool = False

    def part(self, value: float) -> float:
        """Where a value lies: 0 is the axis' beginning, 1 its end."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


@attrs.frozen(kw_only=True)
class Series:
    """A subject's line, in pieces where it is interrupted. `number` is the subject's, and so its look's."""

    name: str
    number: int
    pieces: Sequence[Sequence[Point]]
    marks: Sequence[tuple[str, Point]] = ()
    note: str = ""


@attrs.frozen(kw_only=True)
class Plot:
    title: str
    description: str
    x: Axis
    y: Axis
    series: Sequence[Series]

    def place(self, point: Point) -> Point:
        """Where a point is in the drawing, in its own units."""
        x, y = self.x.part(point[0]), self.y.part(point[1])
        return round(LEFT + x * (WIDTH - LEFT - RIGHT), 1), round(TOP + (1 - y) * DEEP, 1)


def linear(title: str, highest: float) -> Axis:
    """From 0 to no less than `highest`, in at most six steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(highest / 6)) if highest > 0 else 0.1
    step = next(power * each for each in (1, 2, 5, 10, 20) if power * each * 6 >= highest)
    return Axis(title=title, ticks=[step * index for index in range(max(math.ceil(highest / step), 1) + 1)])


def logarithmic(title: str, lowest: float, highest: float) -> Axis:
    """Around both, by 1, 2 and 5 times powers of ten; beyond four decades by powers of ten only."""
    powers = range(math.floor(math.log10(lowest)) - 1, math.ceil(math.log10(highest)) + 2)
    steps = (1, 2, 5) if highest / lowest < 1e4 else (1,)
    every = [step * 10.0**power for power in powers for step in steps]
    first = max(index for index, tick in enumerate(every) if tick <= lowest)
    last = min(index for index, tick in enumerate(every) if tick >= highest and index > first)
    return Axis(title=title, ticks=every[first : last + 1], logarithmic=True)


def draw(plot: Plot, name: str) -> Element:
    """The plot as an `svg` element; `name` is unique on the page, and the beginning of its ids."""
    height = TOP + DEEP + FOOT + LINE * len(plot.series)
    titled, described = f"{name}-title", f"{name}-desc"
    return node(
        "svg",
        node("title", plot.title, id=titled),
        node("desc", plot.description, id=described),
        *axes(plot),
        *(drawing(plot, series) for series in plot.series),
        *(legend(series, TOP + DEEP + FOOT + LINE * row) for row, series in enumerate(plot.series)),
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        aria_labelledby=f"{titled} {described}",
    )


def axes(plot: Plot) -> Iterator[Element]:
    bottom, right = TOP + DEEP, WIDTH - RIGHT
    for tick in plot.x.ticks:
        x, _ = plot.place((tick, plot.y.ticks[0]))
        yield node("line", x1=x, x2=x, y1=TOP, y2=bottom, class_="grid")
        yield node("text", number(tick), x=x, y=bottom + 18, text_anchor="middle")
    for tick in plot.y.ticks:
        _, y = plot.place((plot.x.ticks[0], tick))
        yield node("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid" if tick else "frame")
        yield node("text", number(tick), x=LEFT - 8, y=y + 4, text_anchor="end")
    yield node("text", plot.x.title, x=(LEFT + right) / 2, y=bottom + 38, text_anchor="middle")
    middle = TOP + DEEP / 2
    turned = f"rotate(-90 14 {middle})"
    yield node("text", plot.y.title, x=14, y=middle, text_anchor="middle", transform=turned)


def number(tick: float) -> str:
    return f"{tick:,.10g}"


def drawing(plot: Plot, series: Series) -> Element:
    made = node("g", class_=look(series))
    for piece in series.pieces:
        places = [plot.place(point) for point in piece]
        if len(places) == 1:
            made.append(node("circle", cx=places[0][0], cy=places[0][1], r=3, class_="dot"))
        elif places:
            made.append(line(" ".join(f"{x},{y}" for x, y in places), series))
    for text, point in series.marks:
        x, y = plot.place(point)
        tip = node("title", f"{series.name}: {text}")
        made.append(node("circle", tip, cx=x, cy=y, r=5, class_="mark"))
    return made


def legend(series: Series, y: float) -> Element:
    text = f"{shortened(series.name)} · {series.note}" if series.note else shortened(series.name)
    return node(
        "g",
        node("title", series.name),
        line(f"{LEFT},{y} {LEFT + 48},{y}", series),
        node("text", text, x=LEFT + 58, y=y + 4),
        class_=look(series),
    )


def line(points: str, series: Series) -> Element:
    return node(
        "polyline", points=points, class_="line", stroke_dasharray=DASHES[series.number % len(DASHES)]
    )


def look(series: Series) -> str:
    return f"series s{series.number % len(COLOURS)}"


def shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def plots(report: Report, phase: str) -> Iterator[Plot]:
    """Those of a phase for which something was measured."""
    numbers = {subject: number for number, subject in enumerate(subjects(report))}
    found = [(numbers[subject], result) for subject, result in of_phase(report, phase).items()]
    if plot := latency(phase, [each for each in found if each[1].latency and sum(each[1].latency.counts)]):
        yield plot
    if plot := over_time(phase, "throughput", "deliveries/s", found, rates):
        yield plot
    if plot := over_time(phase, "memory", "resident memory, MiB", found, memory):
        yield plot


def latency(phase: str, found: Sequence[tuple[int, Result]]) -> Plot | None:
    series = [curve(result.subject, number, result.latency) for number, result in found if result.latency]
    if not series:
        return None
    every = [point for each in series for piece in each.pieces for point in piece]
    lowest, highest = min(x for x, _ in every), max(x for x, _ in every)
    return Plot(
        title=f"latency, {phase}",
        description="The share of the deliveries that took so long, by subject, in bins of 9 %. "
        + described(series),
        x=logarithmic("latency, ms (logarithmic); dots: p50 and p99", lowest, highest),
        y=linear("share of deliveries, % per bin", max(y for _, y in every)),
        series=series,
    )


def curve(name: str, number: int, histogram: Histogram) -> Series:
    points = shares(histogram)
    marks = [(f"p{part}", max(histogram.quantile(part / 100), 1e-9) * 1e3) for part in (50, 99)]
    return Series(
        name=name,
        number=number,
        pieces=[points],
        marks=[(f"{text} {rounded(at)} ms", (at, height(points, at))) for text, at in marks],
        note=", ".join(f"{text} {rounded(at)} ms" for text, at in marks),
    )


def shares(histogram: Histogram) -> list[Point]:
    """The percentage of all (y) around each latency in ms (x), in bins of an eighth of an octave.

    The buckets of a histogram are all as wide within an octave, and so of unlike width on a logarithmic axis:
    drawn as they are, an even distribution would look like a saw. A bucket that crosses from one bin to the
    next is parted between them. An empty bin at either end brings the line down to zero.
    """
    bins: defaultdict[int, float] = defaultdict(float)
    total = sum(histogram.counts)
    for bucket, count in enumerate(histogram.counts):
        if count:
            octave, step = divmod(bucket, STEPS)
            begin, end = (PER_OCTAVE * (octave + math.log2(1 + each / STEPS)) for each in (step, step + 1))
            first = math.floor(begin)
            inside = min((first + 1 - begin) / (end - begin), 1)
            bins[first] += 100 * count / total * inside
            if inside < 1:
                bins[first + 1] += 100 * count / total * (1 - inside)
    every = range(min(bins) - 1, max(bins) + 2)
    return [(2 ** ((each + 0.5) / PER_OCTAVE) / 1e6, bins[each]) for each in every]


def height(points: Sequence[Point], at: float) -> float:
    """How high a line is at `at` (on a logarithmic x axis); at its ends where `at` is beyond them."""
    for (x1, y1), (x2, y2) in pairwise(points):
        if at <= x2:
            part = max(math.log(at / x1) / math.log(x2 / x1), 0)
            return y1 + part * (y2 - y1)
    return points[-1][1]


def over_time(
    phase: str,
    what: str,
    unit: str,
    found: Sequence[tuple[int, Result]],
    values: Callable[[Sequence[Sample]], list[Point]],
) -> Plot | None:
    """None when there is nothing but zeros to draw."""
    series = []
    for number, result in found:
        pieces = [values(samples) for samples in rounds(result.samples)]
        if highest := max((y for piece in pieces for _, y in piece), default=0):
            note = f"highest {rounded(highest)}"
            series.append(Series(name=result.subject, number=number, pieces=pieces, note=note))
    if not series:
        return None
    every = [point for each in series for piece in each.pieces for point in piece]
    return Plot(
        title=f"{what}, {phase}",
        description=f"How it went, by subject, over the time of a round ({unit}). {described(series)}",
        x=linear("seconds", max(x for x, _ in every)),
        y=linear(unit, max(y for _, y in every)),
        series=series,
    )


def rounds(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    """The samples of each round: where the time begins anew, so does the line."""
    begin = 0
    for index in range(1, len(samples) + 1):
        if index == len(samples) or samples[index].at <= samples[index - 1].at:
            yield samples[begin:index]
            begin = index


def rates(samples: Sequence[Sample]) -> list[Point]:
    """Deliveries per second between one sample and the next, in the middle between them."""
    return [((a.at + b.at) / 2, (b.delivered - a.delivered) / (b.at - a.at)) for a, b in pairwise(samples)]


def memory(samples: Sequence[Sample]) -> list[Point]:
    """Resident MiB at each sample; none of a subject whose memory is not known here."""
    return [(sample.at, sample.memory / 2**20) for sample in samples if sample.memory]


def described(series: Sequence[Series]) -> str:
    return " ".join(f"{each.name}: {each.note}." for each in series)
