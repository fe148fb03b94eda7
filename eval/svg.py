"""Small plots as inline SVG: lines over a logarithmic depth, and sorted differences. No script, no outside resource."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["COLOURS", "difference_bars", "line_plot", "nice_ticks"]

COLOURS = ("#0b6bcb", "#c2410c", "#15803d", "#7c3aed", "#b4860b", "#be185d", "#0e7490", "#57534e")
_BARS = 400  # more queries than this are shown in groups of neighbours


@dataclass(frozen=True)
class _Frame:
    """A plot's area in pixels and its value range."""

    left: float
    top: float
    width: float
    height: float
    low: float
    high: float

    def y(self, value: float) -> float:
        return self.top + self.height * (self.high - value) / (self.high - self.low)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values from `low` to `high` or just inside."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _grid(frame: _Frame, ticks: Sequence[float]) -> list[str]:
    parts = []
    for tick in ticks:
        y = frame.y(tick)
        strong = ' class="zero"' if tick == 0 else ' class="grid"'
        parts.append(f'<line{strong} x1="{frame.left}" x2="{frame.left + frame.width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{frame.left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    return parts


def line_plot(curves: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str, y_label: str) -> str:
    """Lines of (depth, value) over a logarithmic depth, with a legend beside and a hover title at every point."""
    depths = sorted({depth for curve in curves.values() for depth, _ in curve})
    top = max((value for curve in curves.values() for _, value in curve), default=1.0)
    frame = _Frame(58, 16, 520, 260, 0.0, min(1.0, math.ceil(max(top, 0.05) * 10.5) / 10))
    span = math.log10(depths[-1] / depths[0]) if len(depths) > 1 else 1.0

    def x(depth: float) -> float:
        return frame.left + 10 + (frame.width - 20) * (math.log10(depth / depths[0]) / span)

    parts = _grid(frame, nice_ticks(frame.low, frame.high))
    for depth in depths:
        parts.append(f'<text class="tick" x="{x(depth):.1f}" y="{frame.top + frame.height + 18}" '
                     f'text-anchor="middle">{depth}</text>')  # fmt: skip
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x(depth):.1f},{frame.y(value):.1f}" for depth, value in curve)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.extend(
            f'<circle cx="{x(depth):.1f}" cy="{frame.y(value):.1f}" r="4" fill="{colour}">'
            f"<title>{escape(name)}: {value:.4f} at {depth}</title></circle>"
            for depth, value in curve
        )
    bottom = frame.top + frame.height + 40
    parts.append(f'<text class="label" x="{frame.left + frame.width / 2}" y="{bottom}" '
                 f'text-anchor="middle">{escape(x_label)}</text>')  # fmt: skip
    middle = frame.top + frame.height / 2
    parts.append(f'<text class="label" transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
                 f"{escape(y_label)}</text>")  # fmt: skip
    return _svg(600, int(bottom + 10), parts, f"{y_label} against {x_label}")


def difference_bars(qids: Sequence[str], values: Sequence[float], *, label: str, limit: float | None = None) -> str:
    """Per-query differences, best first: gains above the line, losses below, each bar with a hover title.

    Args:
        qids: the queries.
        values: their differences.
        label: for the vertical axis.
        limit: the axis reaches from -limit to limit; None takes the largest difference.
    """
    order = sorted(range(len(values)), key=lambda at: -values[at])
    bound = limit or max((abs(value) for value in values), default=0.0) or 1.0
    frame = _Frame(58, 12, 520, 200, -bound, bound)
    parts = _grid(frame, nice_ticks(-bound, bound, 6))
    groups = [order[len(order) * at // _BARS : len(order) * (at + 1) // _BARS] for at in range(_BARS)]
    groups = groups if len(order) > _BARS else [[at] for at in order]
    step = frame.width / max(len(groups), 1)
    gap = min(1.0, step * 0.2)
    for place, group in enumerate(groups):
        mean = sum(values[at] for at in group) / len(group)
        height = max(abs(frame.y(mean) - frame.y(0.0)), 0.6)
        y = frame.y(mean) if mean > 0 else frame.y(0.0)
        kind = "gain" if mean > 0 else "loss" if mean < 0 else "tie"
        title = f"query {qids[group[0]]}: {mean:+.4f}" if len(group) == 1 else f"{len(group)} queries: mean {mean:+.4f}"
        parts.append(
            f'<rect class="{kind}" x="{frame.left + place * step:.2f}" y="{y:.2f}" width="{step - gap:.2f}" '
            f'height="{height:.2f}"><title>{escape(title)}</title></rect>'
        )
    bottom = frame.top + frame.height + 22
    shown = f"{len(order)} queries, best first" + (f", in {_BARS} groups" if len(order) > _BARS else "")
    parts.append(
        f'<text class="label" x="{frame.left + frame.width / 2}" y="{bottom}" text-anchor="middle">{shown}</text>'
    )
    parts.append(f'<text class="label" transform="translate(14 {frame.top + frame.height / 2}) rotate(-90)" '
                 f'text-anchor="middle">{escape(label)}</text>')  # fmt: skip
    return _svg(600, int(bottom + 10), parts, f"{label}, query by query")


def _svg(width: int, height: int, parts: Sequence[str], name: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(name, quote=True)}">' + "".join(parts) + "</svg>"
    )
