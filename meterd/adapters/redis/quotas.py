"""Quotas in Redis (`QuotaSink`): a key with a time to live, and a message, per organization.

Rule 1: what is written is all that is known; nothing is ever read, so whatever is or is not in
        Redis changes nothing here.
Rule 2: one round trip writes a batch, under a deadline; there are no retries in the client.

These coroutines run on the asyncio thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

import attrs
import trio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.errors import SinkUnavailableError


PREFIX: Final = "meterd:quota:"
"""Of keys and of channels; the organization's id follows."""

TIMEOUT_S: Final = 2
"""Seconds for a batch, connecting included."""


@attrs.frozen(eq=False)
class RedisQuotas:
    """A `QuotaSink` on one connection."""

    portal: AsyncioThread
    client: Redis

    async def put(self, quotas: Sequence[tuple[str, bytes]], *, ttl_ms: int) -> None:
        """Set the key of each organization and publish the same on its channel.

        Errors: SinkUnavailableError, PortalClosedError; some of the batch may be written.
        """
        await self.portal.run(_put, self.client, quotas, ttl_ms)


async def _put(client: Redis, quotas: Sequence[tuple[str, bytes]], ttl_ms: int) -> None:
    try:
        async with asyncio.timeout(TIMEOUT_S), client.pipeline(transaction=False) as pipeline:
            for organization_id, payload in quotas:
                pipeline.set(PREFIX + organization_id, payload, px=ttl_ms)
                pipeline.publish(PREFIX + organization_id, payload)
            await pipeline.execute()
    except TimeoutError as error:
        raise SinkUnavailableError(f"no answer within {TIMEOUT_S} s") from error
    except (RedisError, OSError, ValueError) as error:
        raise SinkUnavailableError(f"{type(error).__name__}: {error}"[:200]) from error


@contextlib.asynccontextmanager
async def open_redis_quotas(portal: AsyncioThread, url: str) -> AsyncIterator[RedisQuotas]:
    """Give a sink that connects when it is used; a Redis that is away shows then."""
    client = await portal.run(_open, url)
    try:
        yield RedisQuotas(portal, client)
    finally:
        with trio.CancelScope(shield=True):  # bounded: closing waits for nobody
            await portal.run(_close, client)


async def _open(url: str) -> Redis:
    return Redis.from_url(
        url,
        single_connection_client=False,
        max_connections=1,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        client_name="meterd",
    )


async def _close(client: Redis) -> None:
    with contextlib.suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(TIMEOUT_S):
            await client.aclose()
