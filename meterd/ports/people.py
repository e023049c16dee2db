"""What is stored under a person's id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol


SIGNED_IN: Final = "clerk:"
"""Stands before a person's id where a person who signed in is named as who did something."""


class People(Protocol):
    """What is stored under a person's id."""

    async def held(
        self, organization_id: str, user_id: str
    ) -> Mapping[str, Sequence[Mapping[str, object]]]:
        """Return a person's `tasks`, `records`, `keys` and `endpoints`, as JSON values."""
        ...

    async def erase(self, organization_id: str, user_id: str, pseudonym: str) -> tuple[int, int]:
        """Put a pseudonym in a person's place; return how many rows and tasks it was."""
        ...
