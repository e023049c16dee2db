"""Least privilege: what the role that meterd runs under, and one that only reads, may do.

Rule 1: granting replaces everything a role was granted before on meterd's tables, so running it
again after an upgrade is always right. It is done by the owner of the tables, and to roles that an
administrator made: meterd makes no roles and knows no passwords.
Rule 2: a new table is listed here, or a test fails: nothing is granted by accident.
Row-level security (migration 0008) stands behind these grants: a role that may not write the
ledger sees the one organization that it names with `SET app.organization`, or nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import asyncpg
import attrs

from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.postgres.errors import translated
from meterd.adapters.postgres.pool import CONNECT_S, READ_S, Connection
from meterd.errors import ConfigError


READ: Final = "SELECT"
APPEND: Final = "SELECT, INSERT"
CHANGE: Final = "SELECT, INSERT, UPDATE"
DROP: Final = "SELECT, INSERT, UPDATE, DELETE"

SERVICE: Final[Mapping[str, str]] = {
    "alembic_version": READ,
    "api_keys": CHANGE,
    "audit_log": APPEND,
    "daily_metrics": DROP,
    "daily_reports": CHANGE,
    "dead_letters": APPEND,
    "findings": APPEND,
    "idempotency_keys": DROP,
    "job_runs": DROP,
    "jobs": CHANGE,
    "meterd_owner": "SELECT, UPDATE",
    "meterd_secrets": APPEND,
    "metrics_position": "SELECT, UPDATE",
    "migration_checksums": READ,
    "notifications": "SELECT, INSERT, DELETE",
    "organization_positions": CHANGE,
    "organization_terms": APPEND,
    "organizations": CHANGE,
    "overage_charges": CHANGE,
    "overage_periods": CHANGE,
    "retention_marks": CHANGE,
    "revenue_snapshot_days": CHANGE,
    "revenue_snapshots": "SELECT, INSERT, DELETE",
    "stripe_events": CHANGE,
    "stripe_invoices": CHANGE,
    "stripe_subscriptions": CHANGE,
    "subscription_usage": CHANGE,
    "tasks": DROP,
    "usage_days": CHANGE,
    "usage_event_voids": APPEND,
    "usage_events": APPEND,
    "usage_records": APPEND,
    "webhook_deliveries": CHANGE,
    "webhook_endpoints": DROP,
}
"""What meterd's own role needs: no table is emptied, no ledger row, term or audit entry changed."""

REPORTING: Final = (
    "daily_metrics",
    "notifications",
    "organization_terms",
    "organizations",
    "subscription_usage",
    "tasks",
    "usage_days",
    "usage_event_voids",
    "usage_events",
    "usage_records",
)
"""What a role that only reads may read: what a customer is shown anyway, and no secret."""

ERASE: Final = "erase_user(text, text, text)"


@attrs.frozen
class Grants:
    """What roles may do in one database. Errors: StoreError; ConfigError names what is missing."""

    portal: AsyncioThread
    dsn: str = attrs.field(repr=False)

    async def to_service(self, role: str) -> None:
        """Let the role do what meterd does, and nothing else: no DDL, no change of the past."""
        statements = [f"GRANT {rights} ON {table} TO {{role}}" for table, rights in SERVICE.items()]
        await self._grant(role, [*statements, f"GRANT EXECUTE ON FUNCTION {ERASE} TO {{role}}"])

    async def to_reporting(self, role: str) -> None:
        """Let the role read what belongs to customers, of one organization at a time."""
        await self._grant(role, [f"GRANT SELECT ON {', '.join(REPORTING)} TO {{role}}"])

    async def _grant(self, role: str, statements: list[str]) -> None:
        await self.portal.run(_grant, self.dsn, role, statements)


# From here on everything runs on the asyncio loop.


async def lacking(connection: Connection) -> list[str]:
    """Return what this connection's role lacks to run meterd, such as "INSERT on tasks"."""
    pairs = [(table, right) for table, rights in SERVICE.items() for right in rights.split(", ")]
    rows = await connection.fetch(
        """
        SELECT t, r FROM unnest($1::text[], $2::text[]) AS x (t, r)
        WHERE to_regclass(t) IS NOT NULL AND NOT has_table_privilege(to_regclass(t), r)
        """,
        *map(list, zip(*pairs, strict=True)),
    )
    return [f"{row['r']} on {row['t']}" for row in rows]


async def _grant(dsn: str, role: str, statements: list[str]) -> None:
    with translated(f"grant rights to {role}"):
        async with asyncio.timeout(READ_S):
            connection = await asyncpg.connect(dsn, timeout=CONNECT_S)
            try:
                async with connection.transaction():
                    await _grant_in(connection, role, statements)
            finally:
                connection.terminate()


async def _grant_in(connection: Connection, role: str, statements: list[str]) -> None:
    known = await connection.fetchrow(
        """
        SELECT quote_ident(rolname) AS role, rolsuper OR rolbypassrls AS is_above_the_wall,
            pg_has_role(oid, (SELECT relowner FROM pg_class WHERE oid = 'usage_records'::regclass),
                'MEMBER') AS is_owner,
            quote_ident(current_schema()) AS schema, quote_ident(current_database()) AS database
        FROM pg_roles WHERE rolname = $1
        """,
        role,
    )
    if known is None:
        raise ConfigError(f"There is no role {role}: have it created, CREATE ROLE … LOGIN.")
    if known["is_above_the_wall"] or known["is_owner"]:
        raise ConfigError(
            f"{role} is a superuser, has BYPASSRLS or owns the tables: nothing can be kept from "
            "it. Choose a role of its own."
        )
    name, schema = known["role"], known["schema"]
    for statement in (
        f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {{role}}",
        f"REVOKE ALL ON FUNCTION {ERASE} FROM {{role}}",
        f"REVOKE CREATE ON SCHEMA {schema} FROM {{role}}",
        f"GRANT USAGE ON SCHEMA {schema} TO {{role}}",
        *statements,
    ):
        await connection.execute(statement.format(role=name))
