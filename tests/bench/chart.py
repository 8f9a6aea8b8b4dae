"""The bench as a picture: bars of calls per second, one group for each number of callers, on a scale of tens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, BAR, GAP, LEFT, TOP = 760, 16, 32, 130, 50
COLOURS = ("#0b6e4f", "#3d5a80", "#98c1d9", "#ee6c4d", "#8d99ae", "#b08968", "#6d597a", "#adb5bd")


def chart(calls: Mapping[str, Any], callers: Sequence[int]) -> str:
    """SVG. calls: system -> number of callers, as text -> a point with `per_second`."""
    most = max(row[str(count)].per_second for row in calls.values() for count in callers) or 1.0
    across = (WIDTH - LEFT - 90) / max(1.0, math.log10(most))
    lines = [f'<text x="{LEFT}" y="20" font-weight="bold">Calls per second, logarithmic</text>']
    y = TOP
    for count in callers:
        lines.append(f'<text x="{LEFT}" y="{y - 6}" font-weight="bold">{count} caller{"s" if count > 1 else ""}</text>')
        for index, (name, row) in enumerate(calls.items()):
            rate = row[str(count)].per_second
            width = across * math.log10(max(1.0, rate))
            colour = COLOURS[index % len(COLOURS)]
            lines += [
                f'<text x="{LEFT - 6}" y="{y + 12}" text-anchor="end">{escape(name)}</text>',
                f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 3}" fill="{colour}"/>',
                f'<text x="{LEFT + width + 6:.1f}" y="{y + 12}">{rate:,.0f}</text>',
            ]
            y += BAR
        y += GAP
    body = "\n".join(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )
