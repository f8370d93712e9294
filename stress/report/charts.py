"""Line charts as values: positions, ticks and the table that says the same. Templates turn them
into SVG.

Drawn by the page itself rather than by a plotting library: a page of a run then takes 0.3 MB
instead of 5, prints without a script, and every chart has its table. Lines differ in dash and
marker as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from attrs import frozen

WIDTH: Final = 480
HEIGHT: Final = 280
LEFT: Final = 62
RIGHT: Final = 20
TOP: Final = 10
BOTTOM: Final = 42
STYLES: Final = 8
"""Lines that can be told apart; a chart has no more."""

Number = float | None


@frozen
class Tick:
    """A mark on an axis: its position in the drawing and its label."""

    at: float
    label: str


@frozen
class Point:
    """A point of a line in the drawing, with the ends of its interval where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@frozen
class Line:
    """A series: `style` picks colour, dash and marker; `path` is the SVG path, `points` get
    markers."""

    name: str
    style: int
    path: str
    points: tuple[Point, ...]


@frozen
class ChartRow:
    """A row of the chart's table: where its x is in the drawing, and the cells."""

    at: float
    cells: tuple[str, ...]


@frozen
class Note:
    """A vertical line with a label."""

    at: float
    label: str


@frozen
class Chart:
    """Everything that a template needs. `about` says what is to be seen, `head` and `rows` are the
    same as a table."""

    key: str
    title: str
    about: str
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    head: tuple[str, ...]
    rows: tuple[ChartRow, ...]
    notes: tuple[Note, ...] = ()


@frozen
class Scale:
    """Maps values to positions; logarithmic where values span decades."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The position of a value, within the drawing."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(value) - low) / ((high - low) or 1)
        return round(self.start + (self.end - self.start) * min(1.0, max(0.0, share)), 1)

    def ticks(self, label: Callable[[float], str] | None = None) -> tuple[Tick, ...]:
        """Round numbers in the range: decades, or steps of 1, 2 or 5."""
        values = _decades(self.low, self.high) if self.log else _steps(self.low, self.high)
        return tuple(Tick(self.at(value), (label or short)(value)) for value in values)

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, self.low, 1e-12)) if self.log else value


def scale_for(
    values: Sequence[float], start: float, end: float, *, log: bool = False, zero: bool = True
) -> Scale:
    """A scale that holds all values: from a power of ten to one when logarithmic, else from 0 on
    where `zero` says so."""
    if log:
        positive = [value for value in values if value > 0] or [1.0]
        low, high = _round_down(min(positive)), 1 / _round_down(1 / max(positive))
        return Scale(low, max(high, low * 10), start, end, log=True)
    low, high = (0.0 if zero else min(values, default=0.0)), max(values, default=1.0)
    return Scale(low, high if high > low else low + 1.0, start, end)


def line_chart(
    key: str,
    title: str,
    about: str,
    axes: tuple[str, str],
    xs: Sequence[float],
    series: Sequence[tuple[str, Sequence[Number]]],
    *,
    x_scale: Scale | None = None,
    x_ticks: tuple[Tick, ...] = (),
    x_label: Callable[[float], str] | None = None,
    label: Callable[[float], str] | None = None,
    log: bool = False,
    intervals: Sequence[Sequence[tuple[float, float] | None]] = (),
    notes: Sequence[tuple[float, str]] = (),
    markers: int = 12,
) -> Chart:
    """A chart of `series` over shared `xs`. `axes` are the titles of x and y; `intervals` belong to
    the series' points; at most `markers` points of a line get a marker. Raises ValueError for more
    series than can be told apart."""
    if len(series) > STYLES:
        raise ValueError(f"{len(series)} lines in one chart: at most {STYLES} can be told apart")
    label, x_label = label or short, x_label or short
    ends = [end for each in intervals for pair in each if pair is not None for end in pair]
    values = [value for _, each in series for value in each if value is not None]
    x = x_scale or scale_for(xs, LEFT, WIDTH - RIGHT, zero=False)
    y = scale_for([*values, *ends], HEIGHT - BOTTOM, TOP, log=log)
    lines = tuple(
        _line(name, number, xs, each, x, y, intervals[number] if intervals else (), markers)
        for number, (name, each) in enumerate(series)
    )
    rows = tuple(
        ChartRow(
            x.at(value),
            (
                x_label(value),
                *("" if each[place] is None else label(_number(each[place])) for _, each in series),
            ),
        )
        for place, value in enumerate(xs)
    )
    head = (axes[0], *(name for name, _ in series))
    drawn = tuple(Note(x.at(value), text) for value, text in notes)
    return Chart(
        key, title, about, *axes, x_ticks or x.ticks(), y.ticks(), lines, head, rows, drawn
    )


def short(value: float) -> str:
    """A number as an axis shows it."""
    size = abs(value)
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:g}{letter}"
    return f"{value:g}"


def _number(value: Number) -> float:
    assert value is not None
    return value


def _line(
    name: str,
    style: int,
    xs: Sequence[float],
    ys: Sequence[Number],
    x: Scale,
    y: Scale,
    intervals: Sequence[tuple[float, float] | None],
    markers: int,
) -> Line:
    places = [place for place, value in enumerate(ys) if value is not None]
    points = [_point(place, xs, ys, x, y, intervals) for place in places]
    pen = ["M" if not place or ys[place - 1] is None else "L" for place in places]
    path = " ".join(
        f"{letter}{point.x:g} {point.y:g}" for letter, point in zip(pen, points, strict=True)
    )
    every = max(1, -(-len(points) // markers))
    return Line(name, style, path, tuple(points[every // 2 :: every]))


def _point(
    place: int,
    xs: Sequence[float],
    ys: Sequence[Number],
    x: Scale,
    y: Scale,
    intervals: Sequence[tuple[float, float] | None],
) -> Point:
    pair = intervals[place] if intervals else None
    low, high = (y.at(pair[0]), y.at(pair[1])) if pair is not None else (None, None)
    return Point(x.at(xs[place]), y.at(_number(ys[place])), low, high)


def _round_down(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten below a positive value."""
    base = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return next(base * part for part in (5, 2, 1) if base * part <= value * (1 + 1e-9))


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten; with fewer than three of them, 2 and 5 times them, too."""
    first, last = math.floor(math.log10(low) + 1e-9), math.floor(math.log10(high) + 1e-9)
    every = 1 if last - first <= 7 else 2
    parts = (1, 2, 5) if last - first < 3 else (1,)
    return [
        part * 10.0**power
        for power in range(first, last + 1, every)
        for part in parts
        if low * 0.999 <= part * 10.0**power <= high * 1.001
    ]


def _steps(low: float, high: float) -> list[float]:
    """About five round numbers."""
    raw = (high - low) / 5
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * part for part in (1, 2, 5, 10) if base * part >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]
