"""Bar charts as SVG, without a library."""

from __future__ import annotations

from collections.abc import Container, Mapping


HEIGHT = 34
"""Of one bar with its gap, in pixels."""


def bars(title: str, values: Mapping[str, float], *, highlighted: Container[str]) -> str:
    """Return a chart of the values, the largest first."""
    ranked = sorted(values.items(), key=lambda one: one[1], reverse=True)
    most = max((value for _, value in ranked), default=1.0)
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="720" font-size="13"'
            f' height="{HEIGHT * len(ranked) + 44}" font-family="sans-serif">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="22" font-weight="bold">{title}</text>',
    ]
    for index, (name, value) in enumerate(ranked):
        y, width = 36 + index * HEIGHT, max(2, round(400 * value / most))
        color = "#1f6feb" if name in highlighted else "#9aa4b2"
        lines += [
            f'<text x="190" y="{y + 17}" text-anchor="end">{name}</text>',
            f'<rect x="200" y="{y}" width="{width}" height="24" fill="{color}"/>',
            f'<text x="{206 + width}" y="{y + 17}">{value:,.0f}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
