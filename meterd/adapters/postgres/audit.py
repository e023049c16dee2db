"""The audit: what is stored, checked against the invariants of the ledger, in one snapshot.

Rule 1: it reads only, in one REPEATABLE READ transaction, so it is right beside a working server.
Rule 2: it recomputes from the rows and never trusts a stored total. What is expected follows from
the rows and the terms they name; what is found is what the tables say.
Rule 3: a difference is never repaired here, only told.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

import attrs

from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.statements import statements
from meterd.core.units import from_datetime, rfc3339


CHECKS = (
    "sums",
    "used",
    "tasks",
    "chain",
    "caps",
    "rows",
    "periods",
    "positions",
    "slots",
    "events",
    "days",
    "charges",
)
"""The statements of queries/audit.sql, in the order in which they are told."""

AUDIT_S = 3_600.0
"""Seconds an audit may take: it reads the whole ledger."""

DIFFERENCES_MAX = 1_000
"""Differences told of one check: one tampered row can break a whole chain."""


@attrs.frozen(kw_only=True)
class Difference:
    """One thing that is not what it must be."""

    check: str
    """One of CHECKS."""
    organization_id: str
    subject: str
    """A billing period, `task <id>`, `row <id>`, `agents` or `position`."""
    what: str
    expected: str | None
    found: str | None


@attrs.frozen(kw_only=True)
class Evidence:
    """Everything stored about a task: its position and its ledger rows, as JSON values."""

    task: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]


@attrs.frozen(kw_only=True)
class AuditResult:
    """What an audit saw; `differences` is empty when every invariant holds."""

    as_of_ms: int
    organizations: int
    differences: tuple[Difference, ...]
    evidence: tuple[Evidence, ...] = ()


async def audit(
    pools: PostgresPools,
    *,
    organization_id: str | None = None,
    task_id: str | None = None,
    timeout_s: float = AUDIT_S,
) -> AuditResult:
    """Check one organization or all, and collect what is known of a task if one is named.

    Units:  `timeout_s` seconds for everything.
    Errors: StoreUnavailableError, StoreRejectedError. Source: queries/audit.sql.
    """

    async def work(connection: Connection) -> AuditResult:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            limit_ms = int(timeout_s * 1_000)
            await connection.execute(f"SET LOCAL statement_timeout = {limit_ms}")
            return await _audit(connection, organization_id, task_id)

    return await pools.read("audit the ledger", work, timeout_s=timeout_s)


async def _audit(
    connection: Connection, organization_id: str | None, task_id: str | None
) -> AuditResult:
    texts = statements("audit")
    as_of = await connection.fetchval("SELECT now()")
    differences: list[Difference] = []
    for check in CHECKS:
        limited = f"SELECT * FROM ({texts[check]}\n) d ORDER BY 1, 2, 3 LIMIT {DIFFERENCES_MAX}"  # noqa: S608  # our own files
        differences += [
            Difference(
                check=check,
                organization_id=record["organization_id"],
                subject=record["subject"],
                what=record["what"],
                expected=_text(record["expected"]),
                found=_text(record["found"]),
            )
            for record in await connection.fetch(limited, organization_id)
        ]
    evidence = []
    if task_id is not None:
        rows = await connection.fetch(texts["task_rows"], organization_id, task_id)
        for task in await connection.fetch(texts["task_positions"], organization_id, task_id):
            mine = [row for row in rows if row["organization_id"] == task["organization_id"]]
            evidence.append(Evidence(task=_json(task), rows=tuple(map(_json, mine))))
    return AuditResult(
        as_of_ms=from_datetime(as_of),
        organizations=await connection.fetchval(texts["organizations"], organization_id),
        differences=tuple(differences),
        evidence=tuple(evidence),
    )


def _text(value: object) -> str | None:
    if isinstance(value, Decimal):
        return f"{value:f}"  # never 3.60E+6
    return None if value is None else str(value)


def _json(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with instants as RFC 3339 and amounts as text."""
    return {name: _json_value(value) for name, value in record.items()}


def _json_value(value: object) -> object:
    if isinstance(value, datetime):
        return rfc3339(from_datetime(value))
    return value if value is None or isinstance(value, int | str) else str(value)
