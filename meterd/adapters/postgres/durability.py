"""The check at boot that PostgreSQL keeps what it has committed.

An acknowledgement of meterd means "committed and synced". These settings make a commit less than
that, on the embedded server as on any other, so meterd refuses to start on them.
"""

from __future__ import annotations

from meterd.adapters.postgres.pool import Connection
from meterd.errors import ConfigError


UNSAFE_WHEN_OFF = ("fsync", "full_page_writes", "synchronous_commit")
"""Settings under which a crash loses or tears what was committed.
https://www.postgresql.org/docs/18/runtime-config-wal.html"""


async def unsafe_settings(connection: Connection) -> tuple[str, ...]:
    """Return the names of the settings that are off, sorted. Runs on the asyncio loop."""
    rows = await connection.fetch(
        "SELECT name FROM pg_settings WHERE name = ANY($1) AND setting = 'off' ORDER BY name",
        UNSAFE_WHEN_OFF,
    )
    return tuple(row["name"] for row in rows)


async def assert_durable_settings(connection: Connection, *, is_unsafe_allowed: bool) -> None:
    """Refuse a server that may lose commits, unless the operator allowed it.

    Errors: ConfigError naming every setting. Runs on the asyncio loop.
    """
    unsafe = await unsafe_settings(connection)
    if unsafe and not is_unsafe_allowed:
        named = ", ".join(f"{name}=off" for name in unsafe)
        raise ConfigError(
            f"PostgreSQL runs with {named}: what meterd acknowledges could be lost in a crash. "
            "Switch it on, or allow it for data you can afford to lose"
        )
