"""Identifiers that follow from facts, so that writing a fact twice writes one row.

The id of a ledger row or a period is a UUIDv7 (RFC 9562) whose time is the fact's and whose
random bits are a hash of what makes the fact unique. The same fact always has the same id, on a
retry as after a crash; ids of one organization sort by time.
"""

from __future__ import annotations

import hashlib
import re


ORGANIZATION_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
"""What an `organization_id` may be; a Clerk `org_…` id fits."""

NAME_CHARACTERS_MAX = 128
"""Longest `agent_id`, `task_id` and `user_id`, in characters."""

_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62
_RANDOM_B = (1 << 62) - 1


def fact_id(prefix: str, at_ms: int, *parts: str | int) -> str:
    """Return `prefix_` + 32 hex digits: a UUIDv7 at `at_ms` that only these parts produce."""
    # A length before each part keeps ("a-b", "c") apart from ("a", "b-c").
    text = "".join(f"{len(part)}:{part}" for part in map(str, parts))
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:10])
    random_a = (digest & ((1 << 12) - 1)) << 64
    random_b = (digest >> 12) & _RANDOM_B
    number = (at_ms & ((1 << 48) - 1)) << 80 | _VERSION_7 | random_a | _VARIANT | random_b
    return f"{prefix}_{number:032x}"


def is_printable_name(text: str) -> bool:
    """Tell whether text can name an agent, task or user: 1-128 printable characters."""
    return 0 < len(text) <= NAME_CHARACTERS_MAX and text.isprintable()
