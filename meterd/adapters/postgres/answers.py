"""Answers under idempotency keys: `AnswerStore`. What is older than a day goes as others come."""

from __future__ import annotations

from typing import Any

import attrs

from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.statements import statements
from meterd.core.units import from_datetime, to_datetime
from meterd.ports.answers import RememberedAnswer


@attrs.define(eq=False, slots=False)
class PostgresAnswers:
    """`AnswerStore` on table `idempotency_keys`.

    Errors: every method StoreUnavailableError, StoreRejectedError. Source: queries/answers.sql.
    """

    pools: PostgresPools

    async def begin_answer(
        self, scope: str, key_hash: bytes, fingerprint: bytes, *, at_ms: int, forget_before_ms: int
    ) -> RememberedAnswer:
        """Return what is known of the key, remembering it; what is older is forgotten."""
        texts = statements("answers")
        at, before = to_datetime(at_ms), to_datetime(forget_before_ms)

        async def work(connection: Connection) -> Any:
            await connection.execute(texts["forget"], before)
            while True:
                begun = await connection.fetchrow(texts["begin"], scope, key_hash, fingerprint, at)
                found = begun or await connection.fetchrow(texts["find"], scope, key_hash)
                if found is not None:  # not dropped in between
                    return found

        found = await self.pools.write("begin an answer", work)
        return RememberedAnswer(
            is_new=found["is_new"],
            fingerprint=found["fingerprint"],
            begun_at_ms=from_datetime(found["created_at"]),
            status=found["status"],
            sealed=found["sealed"],
        )

    async def keep_answer(self, scope: str, key_hash: bytes, *, status: int, sealed: bytes) -> None:
        """Keep the answer of a request that has begun."""

        async def work(connection: Connection) -> None:
            text = statements("answers")["keep"]
            await connection.execute(text, scope, key_hash, status, sealed)

        await self.pools.write("keep an answer", work)

    async def drop_answer(self, scope: str, key_hash: bytes) -> None:
        """Forget a request that has begun: it changed nothing."""

        async def work(connection: Connection) -> None:
            await connection.execute(statements("answers")["drop"], scope, key_hash)

        await self.pools.write("drop an answer", work)
