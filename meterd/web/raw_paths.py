"""Paths as they were sent: an encoded slash belongs to a name, and separates nothing.

Routing sees decoded paths, where `/v1%2Fquota` and `/v1/quota` are the same. What guards paths in
front of meterd may tell them apart, so meterd does, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from quart import request


_CONVERTED = re.compile(r"<(?:\w+:)?(\w+)>")

_WITH_SLASHES = frozenset({"address"})
"""Parts of routes whose own slashes are sent bare: actors' addresses."""


def raw_path() -> bytes:
    """Return the path of the request at hand as it was sent, without its query."""
    raw: bytes = request.scope.get("raw_path", b"")
    return raw.partition(b"?")[0]


@cache
def _pattern(rule: str) -> re.Pattern[bytes]:
    """Return what a path of this route looks like before it is decoded."""
    parts, end = [], 0
    for found in _CONVERTED.finditer(rule):
        parts.append(re.escape(rule[end : found.start()]))
        parts.append(".+" if found[1] in _WITH_SLASHES else "[^/]+")
        end = found.end()
    return re.compile("".join((*parts, re.escape(rule[end:]))).encode())


def is_of(rule: str, raw: bytes) -> bool:
    """Tell whether a path that routing gave to this rule has its slashes where the rule has."""
    return b"%2f" not in raw.lower() or _pattern(rule).fullmatch(raw) is not None


def methods_of(rules: Iterable[tuple[str, Iterable[str]]], raw: bytes) -> set[str]:
    """Return the methods of the rules that a path can mean; each rule comes with its methods."""
    return {name for rule, names in rules if _pattern(rule).fullmatch(raw) for name in names}
