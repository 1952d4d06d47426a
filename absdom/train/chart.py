"""Line charts as SVG text, a panel below another: enough for what training measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from math import floor, isfinite, log10

WIDTH, HEIGHT, MARGIN, LEGEND = 680, 190, 64, 28
COLOURS = ("#3366aa", "#cc4433", "#338855", "#aa7722", "#7744aa", "#555555")


@dataclass
class Panel:
    """One chart: named series of points, each with a band around it if it has one."""

    title: str
    series: list[tuple[str, list[tuple[float, float, float, float]]]] = field(default_factory=list)

    def line(self, name: str, x: Sequence[float], y: Sequence[float]) -> None:
        """Points x, y; those that are not finite are left out."""
        self.band(name, x, y, y, y)

    def band(self, name: str, x: Sequence[float], y: Sequence[float], low: Sequence[float], high: Sequence[float]):
        """Points x, y with a range low to high at each."""
        points = [p for p in zip(x, y, low, high, strict=True) if all(map(isfinite, p))]
        self.series.append((name, points))

    def range(self, axes: tuple[int, ...]) -> tuple[float, float]:
        values = [p[axis] for _, points in self.series for p in points for axis in axes]
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        return (low, high) if low < high else (low - 0.5, high + 0.5)


def draw(panels: Sequence[Panel], x_title: str) -> str:
    """The SVG text of panels over one x axis, with a legend on top."""
    names = list(dict.fromkeys(name for panel in panels for name, _ in panel.series))
    colours = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}
    height = LEGEND + HEIGHT * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="white"/>'
    ]
    for k, name in enumerate(names):
        x = MARGIN + k * (WIDTH - 2 * MARGIN) / len(names)
        parts.append(f'<rect x="{x:.0f}" y="10" width="12" height="12" fill="{colours[name]}"/>')
        parts.append(_text(x + 18, 21, name, "start"))
    for k, panel in enumerate(panels):
        parts += _panel(panel, LEGEND + k * HEIGHT, colours, x_title if k == len(panels) - 1 else "")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, top: float, colours: dict[str, str], x_title: str) -> list[str]:
    left, right, upper, lower = MARGIN, WIDTH - 16, top + 24, top + HEIGHT - 36
    (x0, x1), (y0, y1) = panel.range((0,)), panel.range((1, 2, 3))

    def place(x: float, y: float) -> str:
        return (
            f"{left + (x - x0) / (x1 - x0) * (right - left):.1f},{lower - (y - y0) / (y1 - y0) * (lower - upper):.1f}"
        )

    parts = [
        f'<rect x="{left}" y="{upper}" width="{right - left}" height="{lower - upper}" fill="none" stroke="black"/>',
        _text((left + right) / 2, top + 17, panel.title),
        _text((left + right) / 2, lower + 30, x_title),
    ]
    for value in ticks(y0, y1):
        parts.append(_text(left - 6, float(place(x0, value).split(",")[1]) + 4, f"{value:g}", "end"))
    for value in ticks(x0, x1):
        parts.append(_text(float(place(value, y0).split(",")[0]), lower + 15, f"{value:g}"))
    for name, points in panel.series:
        high, low = [place(x, h) for x, _, _, h in points], [place(x, b) for x, _, b, _ in reversed(points)]
        if any(b < h for _, _, b, h in points):
            parts.append(f'<polygon fill="{colours[name]}" fill-opacity="0.25" points="{" ".join(high + low)}"/>')
        middle = " ".join(place(x, y) for x, y, _, _ in points)
        parts.append(f'<polyline fill="none" stroke="{colours[name]}" points="{middle}"/>')
    return parts


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within the range, three to eight."""
    base = 10 ** floor(log10(high - low))
    step = next(base * k for k in (5, 2, 1, 0.5, 0.2) if (high - low) / (base * k) >= 3)
    first = -floor(-low / step)
    return [round((first + k) * step, 12) for k in range(int((high - first * step) / step + 1e-9) + 1)]


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" text-anchor="{anchor}">{escape(words)}</text>'
