"""Answers kept under idempotency keys."""

from __future__ import annotations

from typing import Protocol

import attrs


@attrs.frozen(kw_only=True)
class RememberedAnswer:
    """What is known of a request that was sent under an idempotency key."""

    is_new: bool
    """Nothing was known: it is remembered from now on, without an answer."""
    fingerprint: bytes
    begun_at_ms: int
    status: int | None
    """`None`: no answer was kept; the process may have died in the middle."""
    sealed: bytes | None


class AnswerStore(Protocol):
    """Answers under idempotency keys, for a day."""

    async def begin_answer(
        self, scope: str, key_hash: bytes, fingerprint: bytes, *, at_ms: int, forget_before_ms: int
    ) -> RememberedAnswer:
        """Return what is known of the key, remembering it; what is older is forgotten."""
        ...

    async def keep_answer(self, scope: str, key_hash: bytes, *, status: int, sealed: bytes) -> None:
        """Keep the answer of a request that has begun."""
        ...

    async def drop_answer(self, scope: str, key_hash: bytes) -> None:
        """Forget a request that has begun: it changed nothing."""
        ...
