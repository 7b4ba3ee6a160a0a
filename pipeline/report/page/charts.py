"""Charts that the page draws as inline SVG: axes with round ticks, lines, and their positions in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLOURS, DASHES = 8, 3  # of the page's style sheet: 24 lines look different
WIDE, SQUARE = (330, 190), (330, 330)  # pixels of the area within the axes
LETTER = 6.2  # pixels, width of a digit in a tick
LEFT, RIGHT = 46.0, 14.0  # pixels, the least margins
SMALL, LARGE = 1e-3, 1e6  # ticks below or from these on are written with powers of ten
BEYOND = 20  # points outside the area are drawn this many pixels outside it, so that no line runs along the border


@dataclass(frozen=True)
class Axis:
    """An axis: its label, the values at its ends, and ticks as (value, text)."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def share(self, value: float) -> float:
        """The position of a value along the axis, from 0 at the low end to 100 at the high end."""
        return round(min(max(100 * (value - self.low) / (self.high - self.low), 0.0), 100.0), 2)


@dataclass(frozen=True)
class Line:
    """A line of a chart. name: in the legend. style: its CSS classes. points: (n, 2). dot: a marked point, or None."""

    name: str
    style: str
    points: NDArray[np.float64]
    dot: tuple[float, float] | None = None


@dataclass(frozen=True)
class Ring:
    """A ring around a point of a chart, with a short text above it. x, y: in the units of the axes."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart: its caption, the size of the area in pixels, its axes, and lines and rings in the units of the axes."""

    caption: str
    size: tuple[int, int]
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    rings: tuple[Ring, ...] = ()

    @property
    def left(self) -> float:
        """Pixels of the margin at the left, which holds the ticks and the label of the y axis."""
        return round(max(LEFT, 24 + LETTER * max((len(text) for _, text in self.y.ticks), default=0)), 1)

    @property
    def right(self) -> float:
        """Pixels of the margin at the right, which holds half of the last tick of the x axis."""
        return round(max(RIGHT, 4 + LETTER * len(self.x.ticks[-1][1]) / 2 if self.x.ticks else 0), 1)

    def across(self, value: float) -> float:
        """Pixels from the left for a value on the x axis."""
        return _pixels(value, self.x, self.size[0])

    def down(self, value: float) -> float:
        """Pixels from the top for a value on the y axis."""
        return round(self.size[1] - _pixels(value, self.y, self.size[1]), 1)

    def path(self, line: Line) -> str:
        """The points of a line in the notation of SVG."""
        return " ".join(f"{self.across(x):g},{self.down(y):g}" for x, y in line.points.tolist())


def _pixels(value: float, axis: Axis, size: int) -> float:
    place = size * (value - axis.low) / (axis.high - axis.low)
    return round(min(max(place, -BEYOND), size + BEYOND), 1)


def style(rank: int) -> str:
    """The CSS classes of the line with that rank. When all colours are used, the dash changes."""
    return f"c{rank % COLOURS} d{rank // COLOURS % DASHES}"


def linear_axis(label: str, values: NDArray[np.float64], *, whole: bool = False, snap: bool = True) -> Axis:
    """An axis over the finite values with about five ticks at 1, 2 or 5 times a power of ten.

    whole: ticks at whole numbers only. snap: the axis begins and ends at ticks, else at values.
    """
    values = values[np.isfinite(values)].clip(-1e300, 1e300)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if high - low <= max(1e-300, 1e-12 * max(abs(low), abs(high))):
        high = low + max(abs(low), 1.0)
    step = _step(high / 5 - low / 5)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [(i * step, _tick(i * step, step, largest=max(abs(low), abs(high)))) for i in range(first, last + 1)]
    if snap:
        return Axis(label, first * step, last * step, tuple(ticks))
    return Axis(label, low, high, tuple(tick for tick in ticks if low <= tick[0] <= high))


def _tick(value: float, step: float, *, largest: float) -> str:
    """A tick as text, with the digits that tell it from its neighbours; very small and large ones as 1.5e−5."""
    if step >= SMALL and largest < LARGE:
        decimals = max(0, -math.floor(math.log10(step)))
        text = f"{value:.{decimals}f}"
    elif abs(value) < step / 2:
        text = "0"
    else:
        digits = max(0, math.floor(math.log10(abs(value) * (1 + 1e-9))) - math.floor(math.log10(step * (1 + 1e-9))))
        mantissa, exponent = f"{value:.{digits}e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "\N{MINUS SIGN}")


def _step(least: float) -> float:
    """The smallest number not below `least` that is 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
