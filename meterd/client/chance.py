"""The client's one source of randomness, so that a simulated world can replace it."""

from __future__ import annotations

import secrets
from typing import Protocol


class Chance(Protocol):
    """What the client needs that must differ between clients."""

    def up_to(self, most: int) -> int:
        """Give an integer from 0 to `most`, both included, each equally likely."""
        ...

    def task_id(self) -> str:
        """Give a new task id, unique within the organization."""
        ...


class SystemChance:
    """Randomness of the operating system: never repeats after a fork, needs no seed."""

    def up_to(self, most: int) -> int:
        """Give an integer from 0 to `most`, both included."""
        return secrets.randbelow(most + 1)

    def task_id(self) -> str:
        """Give `task_` and 128 random bits."""
        return f"task_{secrets.token_hex(16)}"
