"""Where live quotas are mirrored for others to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class QuotaSink(Protocol):
    """Where live quotas are mirrored for others; nothing is read back."""

    async def put(self, quotas: Sequence[tuple[str, bytes]], *, ttl_ms: int) -> None:
        """Make these quotas readable by organization. Errors: SinkUnavailableError."""
        ...
