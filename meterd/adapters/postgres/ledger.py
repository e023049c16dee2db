"""Writing facts: one transaction a flush, which is one statement and one round trip.

Rule 1: the owner's epoch is checked and locked inside the statement. When another process has
taken over, no part writes anything and OwnershipLostError says so.
Rule 2: every part is harmless to repeat: rows by their id, counters and positions by their seq.
A flush whose reply was lost is simply sent again.
Rule 3: what one organization has wrong fails the whole flush, and nothing of it is written; who
calls decides whom to leave out.
The parts that have nothing to write are left out of the statement.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import attrs

from meterd.adapters.postgres import records
from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.statements import renumbered, statements
from meterd.core.journal import OrganizationBatch
from meterd.errors import OwnershipLostError
from meterd.ports.trail import DeadLetter


PARTS = (
    "positions",
    "terms",
    "profiles",
    "periods",
    "started",
    "moved",
    "rows",
    "audits",
    "findings",
    "notifications",
    "events",
    "voids",
)
"""What a flush can write, named as in queries/flush.sql."""


@attrs.define(eq=False, slots=False)
class LedgerWriter:
    """The writing half of `LedgerStore`, for the owner with this epoch."""

    pools: PostgresPools
    epoch: int

    async def flush(self, batches: Sequence[OrganizationBatch]) -> None:
        """Write the batches in one transaction; a batch that is already written changes nothing.

        Units:  at most one batch an organization; ~500 facts, encoding holds the interpreter.
        Errors: OwnershipLostError: nothing was written. StoreRejectedError: nothing was written.
                StoreUnavailableError: unknown whether it was written, send it again.
        Source: queries/flush.sql.
        """
        assert len({batch.organization_id for batch in batches}) == len(batches), "one batch each"
        if not batches:
            return
        parts = _parts(batches)
        names = tuple(parts)
        arguments = [column for rows in parts.values() for column in zip(*rows, strict=True)]
        text = _statement(names, tuple(len(rows[0]) for rows in parts.values()))

        async def work(connection: Connection) -> bool:
            return bool(await connection.fetch(text, self.epoch, *arguments))

        if not await self.pools.write("flush facts", work):
            raise OwnershipLostError(
                f"epoch {self.epoch} no longer owns the database: nothing was written"
            )

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Write dead letters. Errors: as `flush`, ownership aside. Source: queries/flush.sql."""
        if not letters:
            return
        columns = zip(*(records.letter_columns(letter) for letter in letters), strict=True)
        arguments = [list(column) for column in columns]

        async def work(connection: Connection) -> None:
            await connection.execute(statements("flush")["bury"], *arguments)

        await self.pools.write("bury dead letters", work)


def _parts(batches: Iterable[OrganizationBatch]) -> dict[str, list[records.Columns]]:
    """Return the rows to write for each part that has any."""
    found: dict[str, list[records.Columns]] = {name: [] for name in PARTS}
    for batch in batches:
        key = batch.organization_id
        found["positions"].append((key, batch.seq))
        found["moved"] += [records.moved_columns(key, task) for task in batch.moved]
        found["rows"] += [records.row_columns(key, row) for row in batch.rows]
        found["started"] += [records.started_columns(key, task) for task in batch.started]
        if batch.periods:
            known = {terms.seq: terms for terms in batch.terms}
            found["periods"] += [
                records.period_columns(key, batch.seq, period, known) for period in batch.periods
            ]
        found["terms"] += [records.terms_columns(key, terms) for terms in batch.terms]
        if batch.profile is not None:
            found["profiles"].append(records.profile_columns(key, batch.profile))
        found["audits"] += [records.audit_columns(key, audit) for audit in batch.audits]
        found["findings"] += [records.finding_columns(key, entry) for entry in batch.findings]
        found["notifications"] += [
            records.notification_columns(key, told) for told in batch.notifications
        ]
        found["events"] += [records.event_columns(key, event) for event in batch.events]
        found["voids"] += [records.void_columns(key, void) for void in batch.voids]
    return {name: rows for name, rows in found.items() if rows}


@functools.cache
def _statement(names: tuple[str, ...], widths: tuple[int, ...]) -> str:
    """Return one statement of the owner check and these parts; the epoch is its $1."""
    texts = statements("flush")
    ctes = [f"owner AS (\n{texts['owner']}\n)"]
    first = 2
    for name, width in zip(names, widths, strict=True):
        ctes.append(f"{name} AS (\n{renumbered(texts[name], first)}\n)")
        first += width
    if "rows" in names:
        ctes.append(f"days AS (\n{texts['days']}\n)")
    if "notifications" in names:
        ctes.append(f"deliveries AS (\n{texts['deliveries']}\n)")
    return "WITH " + ", ".join(ctes) + "\nSELECT epoch FROM owner"
