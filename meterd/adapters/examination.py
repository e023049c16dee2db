"""What `meterd doctor` looks at, one function for each thing; each says what to do.

Rule 1: nothing is changed, and everything has a deadline: the patient may be dying.
Rule 2: no finding quotes a secret; URLs are shown without user and password.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
import httpx
import redis
import trio

from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.postgres.durability import unsafe_settings
from meterd.adapters.postgres.grants import lacking
from meterd.adapters.postgres.migrate import Migrations
from meterd.adapters.postgres.owner import LOCK_KEY, holder_of
from meterd.adapters.postgres.pool import (
    FLUSH_CONNECTIONS,
    READ_CONNECTIONS,
    Connection,
    open_dedicated_connection,
)
from meterd.core.units import SECOND_MS, from_datetime, rfc3339
from meterd.errors import StoreError
from meterd.ports.clock import Clock


FINE: Final = "fine"
WARNING: Final = "warning"
WRONG: Final = "wrong"

NETWORK_S: Final = 5.0
"""Seconds that Stripe or Redis may take to answer."""

DISK_FREE_BYTES_MIN: Final = 1 << 30
DISK_FREE_SHARE_MIN: Final = 0.1
"""Below the first PostgreSQL is about to stop, below the second somebody should look."""

CLOCK_DIFFERENCE_MS_MAX: Final = 1_000
"""Between this machine's clock and PostgreSQL's."""

VERSION_MIN, VERSION_MAX = 15, 18

STRIPE_URL: Final = "https://api.stripe.com"


@attrs.frozen
class Finding:
    """One thing that was looked at, and what to do if it is not fine."""

    what: str
    state: str
    detail: str
    advice: str = ""


def examine_disk(directory: Path) -> Finding:
    """Look for room where PostgreSQL writes."""
    place = next(each for each in (directory, *directory.absolute().parents) if each.exists())
    usage = shutil.disk_usage(place)
    detail = f"{usage.free >> 20} MiB of {usage.total >> 20} free at {place}"
    if usage.free < DISK_FREE_BYTES_MIN:
        return Finding("disk", WRONG, detail, "make room: PostgreSQL stops on a full disk")
    if usage.free < usage.total * DISK_FREE_SHARE_MIN:
        return Finding("disk", WARNING, detail, "make room, or move the data directory")
    return Finding("disk", FINE, detail)


def examine_descriptors(connections_max: int) -> Finding:
    """Look whether as many connections as configured can be open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{hard} files may be open, {connections_max} connections are configured"
    if hard != resource.RLIM_INFINITY and hard < connections_max + 100:
        advice = "raise LimitNOFILE of the unit (ulimit -Hn), or lower connections_max"
        return Finding("open files", WARNING, detail, advice)
    return Finding("open files", FINE, detail)


async def examine_database(portal: AsyncioThread, dsn: str, clock: Clock) -> list[Finding]:
    """Look at the server, its settings, our rights, the schema, the owner and the clock."""
    try:
        async with open_dedicated_connection(portal, dsn, name="doctor") as connection:
            began_ms = clock.now_ms()
            seen = await connection.run("look at the server", _look)
            took_ms = clock.now_ms() - began_ms
        findings = list(_judge(seen, began_ms, took_ms))
        findings.append(await _examine_schema(portal, dsn))
        if seen["has_owner_table"]:
            findings.append(await _examine_owner(portal, dsn, is_locked=seen["is_locked"]))
    except StoreError as error:
        advice = "start PostgreSQL, or correct database_url; see docs/runbooks"
        return [Finding("database", WRONG, str(error), advice)]
    return findings


async def _look(connection: Connection) -> dict[str, Any]:
    row = await connection.fetchrow(
        """
        SELECT current_setting('server_version_num')::int / 10000 AS version,
            current_setting('max_connections')::int AS connections,
            pg_is_in_recovery() AS is_standby,
            clock_timestamp() AS now,
            pg_database_size(current_database()) AS bytes,
            has_schema_privilege(current_schema(), 'CREATE') AS may_create,
            to_regclass('meterd_owner') IS NOT NULL AS has_owner_table,
            EXISTS (
                SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted
                    AND (classid::bigint << 32 | objid::bigint) = $1
                    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            ) AS is_locked,
            (SELECT string_agg(tablename, ', ') FROM pg_tables
                WHERE schemaname = current_schema()
                    AND tablename IN ('organizations', 'usage_records')
                    AND NOT pg_has_role(tableowner, 'MEMBER')) AS not_ours
        """,
        LOCK_KEY,
    )
    assert row is not None, "a query without FROM gives a row"
    return {
        **dict(row),
        "unsafe": await unsafe_settings(connection),
        "lacking": await lacking(connection),
    }


def _judge(seen: dict[str, Any], began_ms: int, took_ms: int) -> Iterator[Finding]:
    version = seen["version"]
    known = VERSION_MIN <= version <= VERSION_MAX
    yield Finding(
        "database version",
        FINE if known else WARNING,
        f"PostgreSQL {version}, {seen['bytes'] >> 20} MiB, answers in {took_ms} ms",
        "" if known else f"meterd is tested with {VERSION_MIN} to {VERSION_MAX}",
    )
    unsafe = ", ".join(f"{name}=off" for name in seen["unsafe"])
    yield Finding(
        "database settings",
        WRONG if unsafe else FINE,
        unsafe or "fsync, full_page_writes and synchronous_commit are on",
        "switch it on: what meterd acknowledges could be lost" if unsafe else "",
    )
    if seen["is_standby"]:
        yield Finding("database role", WRONG, "a standby, read-only", "connect to the primary")
    wanted = FLUSH_CONNECTIONS + READ_CONNECTIONS + 2
    few = seen["connections"] < 2 * wanted  # an old and a new meterd during a deploy
    yield Finding(
        "database connections",
        WARNING if few else FINE,
        f"max_connections is {seen['connections']}, meterd uses up to {wanted}",
        f"raise it to {2 * wanted} at least" if few else "",
    )
    yield _judge_rights(seen)
    difference_ms = from_datetime(seen["now"]) - began_ms - took_ms // 2
    off = abs(difference_ms) > CLOCK_DIFFERENCE_MS_MAX + took_ms
    yield Finding(
        "clock",
        WRONG if off else FINE,
        f"PostgreSQL's clock is {difference_ms / SECOND_MS:+.3f} s from this machine's",
        "correct the clock that is wrong (chronyc tracking) before meterd starts" if off else "",
    )


def _judge_rights(seen: dict[str, Any]) -> Finding:
    """Look whether the role owns the tables, or has been granted all that meterd needs."""
    lacks = seen["lacking"]
    if lacks or (not seen["has_owner_table"] and not seen["may_create"]):
        detail = f"the role lacks {', '.join(lacks) or 'CREATE on the schema'}"
        advice = "as the owner of the tables: meterd migrate --grant-service ROLE"
        return Finding("database rights", WRONG, detail, advice)
    if not seen["may_create"] or seen["not_ours"]:
        return Finding("database rights", FINE, "may meter, and not change tables")
    return Finding("database rights", FINE, "owns the tables: may meter and migrate")


async def _examine_schema(portal: AsyncioThread, dsn: str) -> Finding:
    pending = await Migrations(portal, dsn).pending()
    if pending:
        detail = f"{len(pending)} migrations are pending, the first is {pending[0].id}"
        return Finding("schema", WARNING, detail, "back up; meterd serve runs them when it starts")
    return Finding("schema", FINE, "up to date")


async def _examine_owner(portal: AsyncioThread, dsn: str, *, is_locked: bool) -> Finding:
    holder = await holder_of(portal, dsn)
    since = f"{holder.owner}, epoch {holder.epoch}, since {rfc3339(holder.taken_at_ms)}"
    return Finding("owner", FINE, f"{'owned by' if is_locked else 'free; last owned by'} {since}")


async def examine_stripe(key: str, api_base: str | None) -> Finding:
    """Ask Stripe something harmless with the key."""
    base = api_base or STRIPE_URL
    shown = _shown(base)
    try:
        async with httpx.AsyncClient(timeout=NETWORK_S) as client:
            answer = await client.get(f"{base}/v1/balance", auth=(key, ""))
    except httpx.HTTPError as error:
        advice = "let this machine reach it (firewall, proxy, DNS); events wait meanwhile"
        return Finding("Stripe", WRONG, f"{shown}: {type(error).__name__}", advice)
    if answer.status_code in {401, 403}:
        advice = "set METERD_STRIPE_API_KEY to a valid key that may read balance"
        return Finding("Stripe", WRONG, f"{shown} refuses the key", advice)
    if answer.is_server_error:
        detail = f"{shown} answers {answer.status_code}"
        return Finding("Stripe", WARNING, detail, "wait: Stripe itself is in trouble")
    return Finding("Stripe", FINE, f"{shown} takes the key")


async def examine_redis(url: str) -> Finding:
    """Ask Redis for a sign of life."""
    shown = _shown(url)

    def ping() -> None:
        with redis.Redis.from_url(
            url, socket_timeout=NETWORK_S, socket_connect_timeout=NETWORK_S
        ) as client:
            client.ping()

    try:
        await trio.to_thread.run_sync(ping)
    except redis.RedisError as error:
        advice = "start it, or correct redis_url; meterd works without it"
        return Finding("Redis", WARNING, f"{shown}: {type(error).__name__}", advice)
    return Finding("Redis", FINE, f"{shown} answers")


def examine_account() -> Finding:
    """Look under which account we run."""
    if os.geteuid() == 0:
        advice = "run it as a user of its own: deploy/systemd/meterd.service"
        return Finding("account", WARNING, "runs as root", advice)
    return Finding("account", FINE, "no root")


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
