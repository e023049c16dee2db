"""The SQL of this package: files in `queries/`, several named statements in each.

A statement begins with `-- name: NAME`; comment lines under it describe it, and are sent along, so
that they show in `pg_stat_activity`. Comments above the first name describe the file.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib import resources


_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_PARAMETER = re.compile(r"\$(\d+)")


@functools.cache
def statements(file: str) -> Mapping[str, str]:
    """Return the statements of `queries/<file>.sql` by name."""
    source = resources.files(__package__) / "queries" / f"{file}.sql"
    _, *parts = _NAME.split(source.read_text(encoding="utf-8"))
    found = {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}
    assert len(found) * 2 == len(parts), f"a name occurs twice in {file}.sql"
    return found


@functools.cache
def renumbered(text: str, first: int) -> str:
    """Return a statement whose parameters count from `$first` instead of `$1`."""
    return _PARAMETER.sub(lambda found: f"${int(found[1]) + first - 1}", text)
