"""Every bug that is planted anywhere, by name: the modules that plant them register themselves."""

from __future__ import annotations

from tests.simulation import (
    planted_books,
    planted_caps,
    planted_client,
    planted_keys,
    planted_mirror,
    planted_stripe,
)
from tests.simulation.planted import BUGS


__all__ = [
    "BUGS",
    "planted_books",
    "planted_caps",
    "planted_client",
    "planted_keys",
    "planted_mirror",
    "planted_stripe",
]
