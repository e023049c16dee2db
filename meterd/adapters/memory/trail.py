"""The twin in memory of the audit log and the dead letters: `Trail`."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import trio

from meterd.adapters.memory.store import Database
from meterd.core.units import INSTANT_MS_MAX
from meterd.ports.trail import AuditRecord, DeadLetter


@attrs.define(eq=False)
class MemoryTrail:
    """`Trail` on a `Database`; what facts brought with them is there too."""

    database: Database
    noted: dict[str, AuditRecord] = attrs.Factory(dict)

    async def note(self, record: AuditRecord) -> None:
        """Keep an entry; a known id changes nothing."""
        await trio.lowlevel.checkpoint()
        self.noted.setdefault(record.id, record)

    async def audit(
        self,
        *,
        organization_id: str | None,
        action: str | None,
        after: tuple[int, str] | None,
        limit: int,
    ) -> Sequence[AuditRecord]:
        """Return entries, newest first."""
        await trio.lowlevel.checkpoint()
        before = after or (INSTANT_MS_MAX, "")
        flushed = [
            AuditRecord(
                id=entry.id,
                at_ms=entry.at_ms,
                actor=entry.actor,
                action=entry.action,
                organization_id=owner,
                reason=entry.reason,
                before_json=entry.before_json,
                after_json=entry.after_json,
            )
            for owner, entry in self.database.audits.values()
        ]
        found = [
            record
            for record in (*flushed, *self.noted.values())
            if organization_id in (None, record.organization_id)
            and action in (None, record.action)
            and (record.at_ms, record.id) < before
        ]
        return sorted(found, key=lambda record: (record.at_ms, record.id), reverse=True)[:limit]

    async def dead_letters(
        self, *, address: str | None, after: tuple[int, str] | None, limit: int
    ) -> Sequence[DeadLetter]:
        """Return dead letters, newest first."""
        await trio.lowlevel.checkpoint()
        before = after or (INSTANT_MS_MAX, "")
        found = [
            letter
            for letter in self.database.letters.values()
            if address in (None, letter.address) and (letter.at_ms, letter.id) < before
        ]
        return sorted(found, key=lambda letter: (letter.at_ms, letter.id), reverse=True)[:limit]
