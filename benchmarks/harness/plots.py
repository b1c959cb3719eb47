"""Plots as SVG text: no library, and colours that follow the reader's light or dark setting."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 760
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f } .small { font-size: 11px } .title { font-weight: 600 }
.grid { stroke: #d0d7de } .c0 { fill: #1a7f64; stroke: #1a7f64 } .c1 { fill: #8c959f; stroke: #8c959f }
.line { fill: none; stroke-width: 2 } .range { stroke: #24292f }
.dash { stroke-dasharray: 5 4 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .grid { stroke: #30363d } .range { stroke: #e6edf3 }
  .c0 { fill: #3fb950; stroke: #3fb950 } .c1 { fill: #768390; stroke: #768390 }
  .line { fill: none }
}
"""


def svg(title: str, height: float, parts: Sequence[str]) -> str:
    box = f'viewBox="0 0 {WIDTH} {height:.0f}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="{escape(title)}">',
            f"<style>{STYLE}</style>",
            text(0, 16, title, "title"),
            *parts,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


@dataclass(frozen=True)
class Bar:
    title: str
    colour: int
    median: float
    least: float
    greatest: float


def bars(title: str, unit: str, rows: Sequence[Bar], *, logarithmic: bool = False) -> str:
    """Horizontal bars, each with a line from its least to its greatest value."""
    left, right, top, step = 225, 90, 32, 26
    high = max(row.greatest for row in rows)
    low = 10 ** math.floor(math.log10(min(row.least for row in rows) * 0.8)) if logarithmic else 0.0
    bottom = top + step * len(rows)

    def at(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if logarithmic else value / high
        return left + (WIDTH - left - right) * share

    parts = []
    for tick in logarithmic_ticks(low, high) if logarithmic else even_ticks(high):
        parts.append(f'<line class="grid" x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(text(at(tick), bottom + 16, number(tick), "small", "middle"))
    for n, row in enumerate(rows):
        y = top + step * n
        least, middle, greatest = at(row.least), at(row.median), at(row.greatest)
        width = middle - left
        parts.append(text(left - 8, y + 16, row.title, anchor="end"))
        parts.append(f'<rect class="c{row.colour}" x="{left}" y="{y + 4}" width="{width:.1f}" height="17" rx="2"/>')
        parts.append(f'<line class="range" x1="{least:.1f}" x2="{greatest:.1f}" y1="{y + 12.5}" y2="{y + 12.5}"/>')
        parts.append(text(greatest + 6, y + 16, f"{number(row.median)} {unit}"))
    return svg(heading(title, unit, logarithmic), bottom + 26, parts)


@dataclass(frozen=True)
class Line:
    title: str
    """Stands in the key, unless it is empty."""
    colour: int
    points: Mapping[float, float]
    dashed: bool = False


def lines(title: str, unit: str, across: str, series: Sequence[Line], *, logarithmic: bool = False) -> str:
    """Lines over a logarithmic horizontal axis, with a tick for every value measured."""
    left, right, top, bottom = 60, 20, 62, 300
    xs = sorted({x for line in series for x in line.points})
    ys = [y for line in series for y in line.points.values()]
    high = max(ys) * 1.08
    low = 10 ** math.floor(math.log10(min(ys))) if logarithmic else 0.0

    def x_at(x: float) -> float:
        return left + 20 + (WIDTH - left - right - 60) * math.log(x / xs[0]) / math.log(xs[-1] / xs[0])

    def y_at(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if logarithmic else y / high
        return bottom - (bottom - top) * share

    parts = []
    for tick in logarithmic_ticks(low, high) if logarithmic else even_ticks(high):
        y = y_at(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text(left - 8, y + 4, number(tick), "small", "end"))
    parts += [text(x_at(x), bottom + 18, f"{x:,.0f}", "small", "middle") for x in xs]
    parts.append(text(WIDTH / 2, bottom + 36, across, "small", "middle"))
    key = float(left)
    for line in series:
        dash = " dash" if line.dashed else ""
        path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in sorted(line.points.items()))
        parts.append(f'<polyline class="c{line.colour} line{dash}" points="{path}"/>')
        parts += [
            f'<circle class="c{line.colour}" cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3"/>'
            for x, y in line.points.items()
        ]
        if line.title:
            parts.append(f'<line class="c{line.colour} line{dash}" x1="{key}" x2="{key + 22}" y1="38" y2="38"/>')
            parts.append(text(key + 28, 42, line.title))
            key += 48 + 7 * len(line.title)
    return svg(heading(title, unit, logarithmic), bottom + 46, parts)


def heading(title: str, unit: str, logarithmic: bool) -> str:
    return f"{title} ({unit}, logarithmic)" if logarithmic else f"{title} ({unit})"


def even_ticks(high: float) -> list[float]:
    step = 10 ** math.floor(math.log10(high))
    if high / step < 3:
        step /= 2
    return [n * step for n in range(int(high / step) + 1)]


def logarithmic_ticks(low: float, high: float) -> list[float]:
    return [low * 10**n for n in range(int(math.log10(high / low)) + 1)]
