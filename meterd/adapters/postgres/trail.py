"""The audit log and the dead letters in PostgreSQL: `Trail`.

Entries of an organization's changes are written with the facts of the change (flush.sql); `note`
is for what changes no fact: operators' hands on actors, exports, erasures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.statements import statements
from meterd.core.units import INSTANT_MS_MAX, from_datetime, to_datetime
from meterd.ports.trail import AuditRecord, DeadLetter


@attrs.define(eq=False, slots=False)
class PostgresTrail:
    """`Trail` on tables `audit_log` and `dead_letters`.

    Errors: every method StoreUnavailableError, StoreRejectedError. Source: queries/trail.sql.
    """

    pools: PostgresPools

    async def note(self, record: AuditRecord) -> None:
        """Write that something is about to be changed; a known id changes nothing."""
        arguments = (
            record.id,
            to_datetime(record.at_ms),
            record.actor,
            record.action,
            record.organization_id,
            record.reason,
            record.before_json,
            record.after_json,
        )

        async def work(connection: Connection) -> None:
            await connection.execute(statements("trail")["note"], *arguments)

        await self.pools.write("write the audit log", work)

    async def audit(
        self,
        *,
        organization_id: str | None,
        action: str | None,
        after: tuple[int, str] | None,
        limit: int,
    ) -> Sequence[AuditRecord]:
        """Return entries, newest first; `after` is the (at_ms, id) seen last."""
        at_ms, last_id = after or (INSTANT_MS_MAX, "")
        found = await self._read(
            "audit", organization_id, action, to_datetime(at_ms), last_id, limit
        )
        return [
            AuditRecord(
                id=row["id"],
                at_ms=from_datetime(row["at"]),
                actor=row["actor"],
                action=row["action"],
                organization_id=row["organization_id"],
                reason=row["reason"],
                before_json=row["before"],
                after_json=row["after"],
            )
            for row in found
        ]

    async def dead_letters(
        self, *, address: str | None, after: tuple[int, str] | None, limit: int
    ) -> Sequence[DeadLetter]:
        """Return dead letters, newest first; `after` is the (at_ms, id) seen last."""
        at_ms, last_id = after or (INSTANT_MS_MAX, "")
        found = await self._read("dead_letters", address, to_datetime(at_ms), last_id, limit)
        return [
            DeadLetter(
                id=row["id"],
                at_ms=from_datetime(row["at"]),
                address=row["address"],
                kind=row["kind"],
                error=row["error"],
                detail_json=row["detail"],
            )
            for row in found
        ]

    async def _read(self, name: str, *arguments: Any) -> list[Any]:
        async def work(connection: Connection) -> list[Any]:
            return list(await connection.fetch(statements("trail")[name], *arguments))

        return await self.pools.read("read what happened", work)
