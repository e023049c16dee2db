"""API keys in PostgreSQL: `KeyStore`.

Keys are written by the server, by `meterd keys` beside it, and read by whoever must know of a
revocation, so nothing here asks who owns the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import attrs

from meterd.adapters.postgres import records
from meterd.adapters.postgres.pool import Connection, PostgresPools, Work
from meterd.adapters.postgres.statements import statements
from meterd.core.ids import fact_id
from meterd.core.units import to_datetime
from meterd.ports.keys import StoredKey


T = TypeVar("T")


@attrs.define(eq=False, slots=False)
class PostgresKeys:
    """`KeyStore` on table `api_keys`, and the pepper in `meterd_secrets`.

    Errors: every method StoreUnavailableError, StoreRejectedError. Source: queries/keys.sql.
    """

    pools: PostgresPools

    async def find_key(self, digest: bytes) -> StoredKey | None:
        """Return the key with this digest, revoked or not."""

        async def work(connection: Connection) -> Any:
            return await connection.fetchrow(statements("keys")["find_key"], digest)

        record = await self.pools.read("find an API key", work)
        return None if record is None else records.key_from(record)

    async def add_key(self, key: StoredKey, digest: bytes) -> bool:
        """Store a key; False when its organization does not exist. Repeats are fine."""
        audit_id = fact_id("aud", key.created_at_ms, "key.create", key.id)
        columns = (*records.key_columns(key, digest), audit_id)

        async def work(connection: Connection) -> bool:
            return await connection.fetchval(statements("keys")["add_key"], *columns) is not None

        return await self.pools.write("add an API key", work)

    async def keys_of(
        self, organization_id: str | None, *, after: tuple[int, str] | None, limit: int
    ) -> Sequence[StoredKey]:
        """Return an organization's keys (`None`: the admin keys), newest first."""
        at, key_id = (None, "") if after is None else (to_datetime(after[0]), after[1])
        whose = () if organization_id is None else (organization_id,)
        name = "keys_of" if whose else "admin_keys"

        async def work(connection: Connection) -> list[Any]:
            return list(await connection.fetch(statements("keys")[name], *whose, at, key_id, limit))

        found = await self._read(organization_id, "list API keys", work)
        return [records.key_from(record) for record in found]

    async def valid_keys(self, organization_id: str | None) -> int:
        """Return how many keys it has that are not revoked."""

        async def work(connection: Connection) -> int:
            text = statements("keys")["valid_keys"]
            return int(await connection.fetchval(text, organization_id))

        return await self._read(organization_id, "count API keys", work)

    async def _read(
        self,
        organization_id: str | None,
        action: str,
        work: Work[T],
    ) -> T:
        """Read what is an organization's behind its wall, what is an operator's without one."""
        if organization_id is None:
            return await self.pools.read(action, work)
        return await self.pools.read_of(organization_id, action, work)

    async def revoke_key(
        self, organization_id: str | None, key_id: str, *, at_ms: int, revoked_by: str = "operator"
    ) -> StoredKey | None:
        """Revoke a key; None when the organization has no such key. The first instant counts."""
        at = to_datetime(at_ms)
        audit_id = fact_id("aud", at_ms, "key.revoke", key_id)

        async def work(connection: Connection) -> Any:
            text = statements("keys")["revoke_key"]
            return await connection.fetchrow(
                text, key_id, organization_id, at, audit_id, revoked_by
            )

        record = await self.pools.write("revoke an API key", work)
        return None if record is None else records.key_from(record)

    async def revocations(self) -> int:
        """Return how many keys were ever revoked, counted in the index `api_keys_revoked`."""

        async def work(connection: Connection) -> int:
            return int(await connection.fetchval(statements("keys")["revocations"]))

        return await self.pools.read("count revoked API keys", work)

    async def revoked_among(self, key_ids: Sequence[str]) -> Sequence[str]:
        """Return which of these keys are revoked, whenever and by whomever."""

        async def work(connection: Connection) -> list[str]:
            found = await connection.fetch(statements("keys")["revoked_among"], list(key_ids))
            return [record["id"] for record in found]

        return await self.pools.read("look for revoked API keys", work)

    async def pepper(self, candidate: bytes) -> bytes:
        """Return the database's pepper, storing the candidate if it has none yet."""
        texts = statements("keys")

        async def work(connection: Connection) -> bytes:
            await connection.execute(texts["keep_pepper"], candidate)
            return bytes(await connection.fetchval(texts["pepper"]))

        return await self.pools.write("read the pepper", work)
