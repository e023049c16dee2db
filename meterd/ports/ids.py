"""Where identifiers come from."""

from __future__ import annotations

from typing import Protocol


class Ids(Protocol):
    """Sortable identifiers for things that are not facts."""

    def new(self, prefix: str) -> str:
        """Return `prefix_` + 32 hex digits of a new UUIDv7."""
        ...
