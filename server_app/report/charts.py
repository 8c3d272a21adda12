"""Charts as small SVG: colours come from the page's style, numbers ride along for the pointer and for readers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from server_app.report.markup import Child, join, number, tag

WIDTH, HEIGHT = 460.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 10.0, 34.0

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Line:
    """One line of a chart; None in `points` is a gap.

    Attributes:
        name: for the legend and the pointer.
        style: class of the page's style (`qnn`, `logistic`, ...).
        points: (x, y).
    """

    name: str
    style: str
    points: Points

    @property
    def last(self) -> float | None:
        """The last y that is known."""
        known = [y for _, y in self.points if y is not None]
        return known[-1] if known else None


@dataclass(frozen=True)
class Band:
    """An area between two curves."""

    name: str
    style: str
    low: Points
    high: Points


@dataclass(frozen=True)
class Frame:
    """From numbers to pixels.

    Attributes:
        x: first and last x.
        y: lowest and highest y.
        width: pixels of the whole chart, axes included.
        height: likewise.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    bottom: float = BOTTOM

    def at_x(self, value: float) -> float:
        """Pixel of an x."""
        low, high = self.x
        share = 0.5 if high == low else (value - low) / (high - low)
        return self.left + share * (self.width - self.left - RIGHT)

    def at_y(self, value: float) -> float:
        """Pixel of a y."""
        low, high = self.y
        share = 0.5 if high == low else (value - low) / (high - low)
        return self.height - self.bottom - share * (self.height - self.bottom - TOP)


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that cover `low` to `high`, at most about `most`."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 10) for n in range(first, last + 1)]


def y_range(values: Sequence[float], *, cap: float | None = None, floor: float | None = None) -> tuple[float, float]:
    """Lowest and highest y of a chart: round, within `floor` and `cap`, never empty."""
    if not values:
        return (0.0, 1.0)
    low, high = min(values), max(values)
    if high - low < 1e-3:
        low, high = low - 0.01, high + 0.01
    ticks = nice_ticks(low, high)
    low, high = ticks[0], ticks[-1]
    return (low if floor is None else max(low, floor), high if cap is None else min(high, cap))


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    x_label: str,
    bands: Sequence[Band] = (),
    cap: float | None = None,
    base: float | None = None,
) -> Markup:
    """Lines (and bands behind them) over a common x; the pointer shows the numbers.

    Args:
        lines: at least one; the first is drawn on top.
        label: the text alternative.
        x_label: of the x axis.
        bands: drawn behind the lines.
        cap: highest y that makes sense.
        base: a y that the chart shows whatever the lines do.
    """
    curves = [line.points for line in lines] + [points for band in bands for points in (band.low, band.high)]
    xs = sorted({x for points in curves for x, _ in points})
    ys = [y for points in curves for _, y in points if y is not None]
    if not ys:
        return tag("p", "No numbers: nobody holds validation rows.", class_="empty")
    ys += [] if base is None else [base]
    frame = Frame((xs[0], xs[-1]), y_range(ys, cap=cap, floor=0.0))
    drawn: list[Child] = [axes(frame, x_label, "{:g}".format)]
    drawn += [_area(frame, band) for band in bands]
    drawn += [curve(frame, line) for line in reversed(lines)]
    guide = tag("line", class_="guide", x1=0, x2=0, y1=TOP, y2=frame.height - frame.bottom)
    table = [[x, *(_at(line.points, x) for line in lines)] for x in xs]
    data = {
        "x": [round(frame.at_x(x), 1) for x in xs],
        "head": [x_label, *(line.name for line in lines)],
        "rows": [[f"{row[0]:g}", *(number(v) for v in row[1:])] for row in table],
    }
    return svg(join([*drawn, guide]), frame.width, frame.height, label, data=json.dumps(data, separators=(",", ":")))


def svg(inner: Child, width: float, height: float, label: str, *, data: str | None = None, **more: str) -> Markup:
    """An image that scales with the page and says in words what it shows."""
    box = f"0 0 {width:g} {height:g}"
    return tag("svg", inner, viewBox=box, role="img", aria_label=label, data_chart=data, **more)


def axes(frame: Frame, x_label: str, y_format: Callable[[float], str]) -> Markup:
    """Grid, ticks and the name of the x axis."""
    parts: list[Child] = []
    for y in (y for y in nice_ticks(*frame.y) if frame.y[0] - 1e-9 <= y <= frame.y[1] + 1e-9):
        at = frame.at_y(y)
        parts.append(tag("line", class_="grid", x1=frame.left, x2=frame.width - RIGHT, y1=at, y2=at))
        parts.append(tag("text", y_format(y), x=frame.left - 6, y=at + 4, text_anchor="end"))
    low, high = frame.x
    whole = [x for x in nice_ticks(low, high, 7) if float(x).is_integer() and low <= x <= high] or [low]
    base = frame.height - frame.bottom
    parts += [tag("text", f"{x:g}", x=frame.at_x(x), y=base + 15, text_anchor="middle") for x in whole]
    middle = (frame.left + frame.width - RIGHT) / 2
    parts.append(tag("text", x_label, x=middle, y=frame.height - 3, text_anchor="middle", class_="axis"))
    return join(parts)


def curve(frame: Frame, line: Line) -> Markup:
    """One line, broken at gaps; a point that stands alone is a dot."""
    parts: list[Child] = []
    for run in _runs(line.points):
        if len(run) == 1:
            x, y = run[0]
            parts.append(tag("circle", cx=frame.at_x(x), cy=frame.at_y(y), r=3.5, class_=f"dot {line.style}"))
        else:
            path = "M" + "L".join(f"{frame.at_x(x):.1f} {frame.at_y(y):.1f}" for x, y in run)
            parts.append(tag("path", d=path, class_=f"line {line.style}"))
    return join(parts)


def columns(values: Sequence[tuple[int, float]], *, label: str, y_format: Callable[[float], str], style: str) -> Markup:
    """A small column chart from zero: one column a round."""
    width, height, base = 260.0, 96.0, 78.0
    top = max((v for _, v in values), default=0.0) or 1.0
    slot = (width - 4) / max(len(values), 1)
    parts: list[Child] = [tag("line", class_="grid", x1=0.0, x2=width, y1=base, y2=base)]
    for place, (x, value) in enumerate(values):
        tall = (base - 8) * value / top
        bar = {"x": 2 + place * slot, "y": base - tall, "width": max(slot * 0.78, 0.6), "height": tall}
        parts.append(tag("rect", tag("title", f"round {x}: {y_format(value)}"), class_=f"bar {style}", **bar))
    if values:
        parts.append(tag("text", str(values[0][0]), x=2.0, y=height - 4))
        if len(values) > 1:
            parts.append(tag("text", f"round {values[-1][0]}", x=width - 2, y=height - 4, text_anchor="end"))
    return svg(join(parts), width, height, label)


def stacked_area(counts: Sequence[Sequence[int]], names: Sequence[str], *, label: str) -> Markup:
    """Many sites side by side, each a stack of its classes (counts by site, then class)."""
    tallest = max((sum(site) for site in counts), default=0)
    top = nice_ticks(0, max(tallest, 1))[-1]
    frame = Frame((0, len(counts)), (0, top), width=920, height=240)
    parts: list[Child] = [axes(frame, "sites, grouped by their largest class, most rows first", lambda y: f"{y:,.0f}")]
    below = [0] * len(counts)
    for place, name in enumerate(names):
        above = [b + site[place] for b, site in zip(below, counts, strict=True)]
        path = _steps(frame, above, "M") + _steps(frame, below, "L", back=True) + "Z"
        parts.append(tag("path", tag("title", name), d=path, style=f"fill:{class_colour(place)}"))
        below = above
    return svg(join(parts), frame.width, frame.height, label, class_="wide")


def class_colour(place: int) -> str:
    """Colour of a class: the style's palette first, then hues that keep apart."""
    return f"var(--c{place})" if place < 10 else f"hsl({place * 137.5 % 360:.0f} 42% 55%)"


def _steps(frame: Frame, values: Sequence[float], start: str, *, back: bool = False) -> str:
    """Stairs from left to right, or `back`, each a V and an H command."""
    order = range(len(values) - 1, -1, -1) if back else range(len(values))
    begin = len(values) if back else 0
    parts = [f"{start}{frame.at_x(begin):.1f} {frame.at_y(values[order[0]]):.1f}"]
    for site in order:
        parts.append(f"V{frame.at_y(values[site]):.1f}H{frame.at_x(site if back else site + 1):.1f}")
    return "".join(parts)


def _area(frame: Frame, band: Band) -> Markup:
    known = [(x, a, b) for (x, a), (_, b) in zip(band.low, band.high, strict=True) if a is not None and b is not None]
    there = [f"{frame.at_x(x):.1f} {frame.at_y(high):.1f}" for x, _, high in known]
    back = [f"{frame.at_x(x):.1f} {frame.at_y(low):.1f}" for x, low, _ in reversed(known)]
    return tag("path", tag("title", band.name), d="M" + "L".join(there + back) + "Z", class_=f"band {band.style}")


def _runs(points: Points) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _at(points: Points, x: float) -> float | None:
    return next((y for at, y in points if at == x), None)
