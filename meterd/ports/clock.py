"""Wall time, as everything inside meterd reads it."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Wall time that never goes back and never jumps."""

    def now_ms(self) -> int:
        """Return the instant, in epoch milliseconds UTC."""
        ...
