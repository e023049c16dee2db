"""The newest instant on record: what a clock at start is held against."""

from __future__ import annotations

from datetime import datetime

from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.core.units import from_datetime


NEWEST = """
SELECT greatest(
    (SELECT max("timestamp") FROM usage_records),
    (SELECT max(last_heartbeat_at) FROM tasks WHERE state <> 'finished')
)
"""


async def last_recorded_ms(pools: PostgresPools) -> int | None:
    """Return the newest ledger row's or live task's instant, None when there is none.

    Errors: StoreUnavailableError. Source: tables usage_records (index on timestamp) and tasks
    (its partial index of live tasks).
    """

    async def work(connection: Connection) -> datetime | None:
        newest: datetime | None = await connection.fetchval(NEWEST)
        return newest

    newest = await pools.read("find the newest record", work)
    return None if newest is None else from_datetime(newest)
