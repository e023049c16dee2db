"""Text for Markdown that is read in a terminal as often as on a code host.

Rule 1: names are whatever customers chose. In a cell they cannot end the cell, start markup, a
link, HTML or a spreadsheet formula, hide behind invisible characters or turn the line around.
Rule 2: columns are padded by how wide text is in a terminal, so a table reads without rendering.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal


NAME_CHARACTERS_MAX = 40

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""A cell that begins like this is a formula to a spreadsheet."""

_SPECIAL = re.compile(r"([\\`*{}\[\]()#!|~$:]|(?<=www)\.|(?<![^\W_])_|_(?![^\W_]))", re.IGNORECASE)
"""The dot after `www`: code hosts make a link of such a name without any markup. An underscore
within a word marks nothing: `org_acme` is left readable."""

_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}
_BARS = "▁▂▃▄▅▆▇█"


def plain(text: str, *, most: int = NAME_CHARACTERS_MAX) -> str:
    """Return text on one line, without invisible characters, at most so many characters."""
    seen = "".join(letter if _is_seen(letter) else " " for letter in text)
    short = " ".join(seen.split())
    return short if len(short) <= most else short[: most - 1] + "…"


def escaped(text: str, *, most: int = NAME_CHARACTERS_MAX) -> str:
    """Return a customer's text as Markdown that shows it and does nothing else."""
    short = plain(text, most=most)
    quoted = (
        f"'{short}"
        if text.startswith(FORMULA_STARTS) or short.startswith(FORMULA_STARTS)
        else short
    )
    safe = "".join(_HTML.get(letter, letter) for letter in _SPECIAL.sub(r"\\\1", quoted))
    return safe or "(no name)"


def _is_seen(letter: str) -> bool:
    """Tell whether a character shows; controls, formats (bidi, zero width) and the like do not."""
    return letter == " " or unicodedata.category(letter)[0] not in "CZ"


def width(text: str) -> int:
    """Return the columns that text takes in a terminal."""
    return sum(
        0
        if unicodedata.combining(letter)
        else 2
        if unicodedata.east_asian_width(letter) in "WF"
        else 1
        for letter in text
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: str) -> list[str]:
    """Return the lines of a Markdown table; `right` has an `r` for each right-aligned column."""
    assert len(right) == len(headings), (headings, right)
    cells = [list(headings), *(list(row) for row in rows)]
    widths = [max(3, *(width(row[index]) for row in cells)) for index in range(len(headings))]
    lines = [_line(row, widths, right) for row in cells]
    rule = [
        "-" * (wide - 1) + ":" if side == "r" else "-" * wide
        for wide, side in zip(widths, right, strict=True)
    ]
    return [lines[0], f"| {' | '.join(rule)} |", *lines[1:]]


def _line(row: Sequence[str], widths: Sequence[int], right: str) -> str:
    padded = [
        " " * (wide - width(cell)) + cell if side == "r" else cell + " " * (wide - width(cell))
        for cell, wide, side in zip(row, widths, right, strict=True)
    ]
    return f"| {' | '.join(padded)} |"


def sparkline(values: Sequence[int]) -> str:
    """Return a line of bars from 0 to the largest value; empty without values."""
    top = max(values, default=0)
    if top <= 0:
        return _BARS[0] * len(values)
    last = len(_BARS) - 1
    return "".join(_BARS[max(0, value) * last // top] for value in values)


def usd(amount: Decimal | None) -> str:
    """Return dollars and cents, `-` when there is no such amount."""
    if amount is None:
        return "-"
    return f"-${-amount:,.2f}" if amount < 0 else f"${amount:,.2f}"


def signed_usd(amount: Decimal) -> str:
    """Return dollars and cents with a sign, none for zero."""
    return f"+{usd(amount)}" if amount > 0 else usd(amount)


def counted(count: int, noun: str) -> str:
    """Return how many of something: `1 customer`, `2,000 customers`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def number(value: int | None) -> str:
    """Return a whole number with separators, `-` when there is none."""
    return "-" if value is None else f"{value:,}"
