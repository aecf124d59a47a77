"""Time series as shapes for SVG: stacked bars and step lines. Pure.

A drawing is 1000 wide and 100 high and is stretched to its container; text and line widths are set by the
page. Each value is available as a shape, in the shape's title, and in an accessible table below the chart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 1000.0, 100.0
GAP = 0.18
"""Gap between two bars, as a fraction of a slot's width."""
MIN_HEIGHT = 0.8
"""Minimum visible height."""
TICKS = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """A rectangle of a bar."""

    series: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Column:
    """A time slot: its shapes, its hover area and its title."""

    x: float
    width: float
    title: str
    shapes: tuple[Shape, ...] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart."""

    name: str
    series: tuple[str, ...]
    columns: tuple[Column, ...]
    lines: tuple[str, ...]
    """Path data, one line per series; empty for bars."""
    top: str
    """Label of the upper edge."""
    middle: str
    ticks: tuple[str, ...]
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """Rows of the table: time slots with data."""

    @property
    def is_empty(self) -> bool:
        return not self.rows


def nice_ceiling(value: float) -> float:
    """Return the next round number: 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    size = 1.0
    while size * 10 <= value:
        size *= 10
    while size > value:
        size /= 10
    return next(size * step for step in (1, 2, 5, 10) if size * step >= value)


def stacked_bars(
    name: str,
    series: Sequence[str],
    times: Sequence[str],
    values: Sequence[Sequence[float]],
    say: Callable[[float], str],
    *,
    whole: bool = True,
) -> Chart:
    """Return a chart of stacked bars; with `whole`, half of the scale is an integer too."""
    limit = max((sum(stack) for stack in values), default=0.0)
    top = 2 * nice_ceiling(max(1.0, limit / 2)) if whole else nice_ceiling(limit)
    width = WIDTH / max(1, len(values))
    columns = []
    for place, (when, stack) in enumerate(zip(times, values, strict=True)):
        shapes, floor = [], HEIGHT
        for number, value in enumerate(stack):
            if value > 0:
                height = max(MIN_HEIGHT, value / top * HEIGHT)
                floor -= height
                shapes.append(
                    Shape(number, (place + GAP / 2) * width, max(0.0, floor), width * (1 - GAP), height)
                )
        values_text = ", ".join(
            f"{say(value)} {which}" for which, value in zip(series, stack, strict=True) if value
        )
        columns.append(Column(place * width, width, f"{when}: {values_text or 'nothing'}", tuple(shapes)))
    rows = tuple(
        (when, *(say(value) for value in stack))
        for when, stack in zip(times, values, strict=True)
        if any(stack)
    )
    return _chart(name, series, times, columns, (), top, say, rows)


def step_chart(
    name: str,
    series: Sequence[str],
    times: Sequence[str],
    values: Sequence[Sequence[float | None]],
    say: Callable[[float | None], str],
) -> Chart:
    """Return a chart of step lines, interrupted where a value is unknown."""
    known = [value for row in values for value in row if value is not None]
    top, width = nice_ceiling(max(known, default=0.0)), WIDTH / max(1, len(values))
    lines = tuple(_steps([row[number] for row in values], top, width) for number in range(len(series)))
    rows = tuple(
        (when, *(say(value) for value in row))
        for when, row in zip(times, values, strict=True)
        if any(value is not None for value in row)
    )
    columns = [
        Column(place * width, width, f"{when}: " + _describe(series, row, say))
        for place, (when, row) in enumerate(zip(times, values, strict=True))
    ]
    return _chart(name, series, times, columns, lines, top, say, rows)


def _describe(series: Sequence[str], row: Sequence[float | None], say: Callable[[float | None], str]) -> str:
    known = [f"{which} {say(value)}" for which, value in zip(series, row, strict=True) if value is not None]
    return ", ".join(known) or "nothing"


def _steps(values: Sequence[float | None], top: float, width: float) -> str:
    """Return one line as path data: `H` along a slot, `V` to the next value."""
    path, drawing = [], False
    for place, value in enumerate(values):
        if value is None:
            drawing = False
            continue
        y = HEIGHT - value / top * HEIGHT
        path.append(f"V{y:.2f}" if drawing else f"M{place * width:.2f} {y:.2f}")
        path.append(f"H{(place + 1) * width:.2f}")
        drawing = True
    return "".join(path)


def _chart(
    name: str,
    series: Sequence[str],
    times: Sequence[str],
    columns: Sequence[Column],
    lines: tuple[str, ...],
    top: float,
    say: Callable[[float], str],
    rows: tuple[tuple[str, ...], ...],
) -> Chart:
    step = max(1, -(-len(times) // TICKS))
    return Chart(
        name, tuple(series), tuple(columns), lines, say(top), say(top / 2),
        tuple(times[::step]), ("time", *series), rows,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bar:
    """A usage bar."""

    label: str
    text: str
    percent: float
    """Percentage of the limit; 0 without a limit."""
    severity: str
    """calm, near or full; none without a limit."""


def usage_bars(
    label: str, use: float, limit: float | None, say: Callable[[float], str], unit: str = ""
) -> Bar:
    """Return a bar for usage of a limit."""
    tail = f" {unit}" if unit else ""
    if not limit:
        return Bar(label, f"{say(use)}{tail}", 0.0, "none")
    percent = min(100.0, use / limit * 100)
    level = "full" if percent >= 100 else "near" if percent >= 80 else "calm"
    return Bar(label, f"{say(use)} of {say(limit)}{tail}", round(percent, 1), level)
