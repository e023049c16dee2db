"""New ids: prefixed, sortable by time, and the same again from the same seed.

An id is a UUIDv7 (RFC 9562, method 2: monotonic random) as a prefix and 32 hex digits, the form
that core.ids gives to facts, so both kinds sort by time in one column and in every collation.
Time comes from the clock, chance from the injected source.
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable


RANDOM_BITS = 74
"""Bits of a UUIDv7 that are neither time, version nor variant."""

STEP_BITS = 32
"""Ids of one millisecond are this many random bits apart, so that none can be guessed."""

_PREFIX = re.compile(r"[a-z]{1,16}")
_ID = re.compile(r"[a-z]{1,16}_([0-9a-f]{32})")


class IdSource:
    """Makes ids, each greater than the one before, also when the clock stands still."""

    def __init__(self, now_ms: Callable[[], int], random_source: random.Random) -> None:
        """Take the time of `now_ms` (epoch milliseconds); production passes SystemRandom."""
        self._now_ms = now_ms
        self._random = random_source
        self._last_ms = -1
        self._last_chance = 0

    def uuid7(self) -> uuid.UUID:
        """Return a new UUIDv7."""
        return uuid.UUID(int=self._next())

    def _next(self) -> int:
        at_ms = max(self._now_ms(), self._last_ms)
        if at_ms == self._last_ms:
            chance = self._last_chance + 1 + self._random.getrandbits(STEP_BITS)
            if chance >= 1 << RANDOM_BITS:  # this millisecond is used up: borrow from the next
                at_ms += 1
                chance = self._fresh_chance()
        else:
            chance = self._fresh_chance()
        self._last_ms, self._last_chance = at_ms, chance
        return _layout(at_ms, chance)

    def new(self, prefix: str) -> str:
        """Return a new id such as `new("rec")` → `rec_019c5058…`; the prefix is 1-16 of a-z."""
        assert _PREFIX.fullmatch(prefix), prefix
        return f"{prefix}_{self._next():032x}"

    def _fresh_chance(self) -> int:
        # The top bit stays 0, which leaves room to count up within the millisecond.
        return self._random.getrandbits(RANDOM_BITS - 1)


def new_secret() -> str:
    """Return 192 bits of the operating system's chance, as 48 hex digits."""
    return f"{random.SystemRandom().getrandbits(192):048x}"


def id_text(prefix: str, value: uuid.UUID) -> str:
    """Return the text form of a UUID under a prefix."""
    return f"{prefix}_{value.hex}"


def id_uuid(text: str) -> uuid.UUID | None:
    """Return the UUID inside an id, or None when the text is not one."""
    match = _ID.fullmatch(text)
    if match is None:
        return None
    return uuid.UUID(hex=match[1])


def _layout(at_ms: int, chance: int) -> int:
    """Lay out the 128 bits: 48 time, 4 version, 12 chance, 2 variant, 62 chance."""
    assert 0 <= at_ms < 1 << 48, at_ms
    return at_ms << 80 | 7 << 76 | chance >> 62 << 64 | 2 << 62 | chance & ((1 << 62) - 1)
