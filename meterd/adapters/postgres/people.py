"""One person's data in PostgreSQL: what is held, and how it is taken out: `People`.

Erasing replaces the person's id by a pseudonym and empties what was said about the work. Amounts,
prices and times stay, so that every sum, bill and audit stays what it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import attrs

from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.statements import statements
from meterd.core.units import from_datetime, rfc3339
from meterd.ports.people import SIGNED_IN


ERASE_S: Final = 300.0
"""Seconds one person's rows may take to be found and rewritten."""


@attrs.define(eq=False, slots=False)
class PostgresPeople:
    """`People` on `usage_records`, `tasks`, `api_keys` and `webhook_endpoints`.

    Errors: every method StoreUnavailableError, StoreRejectedError. Source: queries/people.sql.
    """

    pools: PostgresPools

    async def held(self, organization_id: str, user_id: str) -> Mapping[str, list[dict[str, Any]]]:
        """Return everything stored under a person's id, as JSON values."""
        texts = statements("people")

        async def work(connection: Connection) -> dict[str, list[Any]]:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                await connection.execute(f"SET LOCAL statement_timeout = {int(ERASE_S * 1_000)}")
                return {
                    name: list(await connection.fetch(texts[name], organization_id, user_id))
                    for name in ("tasks", "records")
                } | {
                    name: list(
                        await connection.fetch(texts[name], organization_id, SIGNED_IN + user_id)
                    )
                    for name in ("keys", "endpoints")
                }

        found = await self.pools.read("read a person's data", work, timeout_s=ERASE_S)
        return {name: [_object(row) for row in rows] for name, rows in found.items()}

    async def erase(self, organization_id: str, user_id: str, pseudonym: str) -> tuple[int, int]:
        """Put a pseudonym in a person's place; return how many rows and tasks it was."""
        texts = statements("people")

        async def work(connection: Connection) -> Any:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL statement_timeout = {int(ERASE_S * 1_000)}")
                for name in ("disown_keys", "disown_endpoints"):
                    await connection.execute(
                        texts[name],
                        organization_id,
                        SIGNED_IN + user_id,
                        SIGNED_IN + pseudonym,
                    )
                return await connection.fetchrow(
                    texts["erase"], organization_id, user_id, pseudonym
                )

        row = await self.pools.read("erase a person", work, timeout_s=ERASE_S)
        return row["records"], row["ended_tasks"]


def _object(row: Any) -> dict[str, Any]:
    found = {}
    for name, value in dict(row).items():
        if isinstance(value, datetime):
            found[name] = rfc3339(from_datetime(value))
        else:
            found[name] = json.loads(value) if name == "metadata" else value
    return found
