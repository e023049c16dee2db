"""The composition of what customers are told: which store and which sender are behind it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from meterd.actors.live import LiveFeed
from meterd.actors.mirror import Mirror
from meterd.actors.organizations import Organizations
from meterd.actors.publisher import Publisher
from meterd.actors.sessions import Sessions
from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.key_set import HttpKeySet
from meterd.adapters.postgres.pool import PostgresPools
from meterd.adapters.postgres.webhooks import PostgresWebhooks
from meterd.adapters.sealing import Sealer
from meterd.adapters.webhook_sender import HttpsSender, checked_url
from meterd.config import Config
from meterd.observe import metrics as names
from meterd.observe.metrics import Metrics
from meterd.ports.clock import Clock
from meterd.ports.mirror import QuotaSink
from meterd.web.services import LiveServices, WebhookServices
from meterd.web.tickets import Tickets
from meterd.web.usage_live import encode_alert, encode_quota, encode_snapshot


def sessions_of(config: Config, clock: Clock) -> Sessions | None:
    """Return who verifies Clerk's session tokens; None: nobody signs in."""
    if config.clerk_issuer is None:
        return None
    issuer = config.clerk_issuer.rstrip("/")
    url = config.clerk_jwks_url or f"{issuer}/.well-known/jwks.json"
    parties = frozenset(config.clerk_authorized_parties)
    return Sessions(HttpKeySet(url), issuer=issuer, parties=parties, clock=clock)


def live_of(
    config: Config, organizations: Organizations, chance: Callable[[int], bytes]
) -> LiveServices:
    """Return the live feed of a running meterd; run it as a service."""
    return LiveServices(
        feed=LiveFeed(organizations, encode=encode_snapshot, encode_alert=encode_alert),
        tickets=Tickets(organizations.clock, chance),
        origins=frozenset(config.live_origins),
    )


@contextlib.asynccontextmanager
async def quota_sink(portal: AsyncioThread, config: Config) -> AsyncIterator[QuotaSink | None]:
    """Give where live quotas are mirrored; None without a `redis_url`."""
    if config.redis_url is None:
        yield None
        return
    # Its client library takes longer to load than the rest of the start without a database.
    from meterd.adapters.redis.quotas import open_redis_quotas  # noqa: PLC0415

    async with open_redis_quotas(portal, config.redis_url.get_secret_value()) as sink:
        yield sink


def mirror_of(
    organizations: Organizations, sink: QuotaSink | None, jitter: Iterator[float]
) -> Mirror | None:
    """Return who mirrors live quotas, already told of every change; run it as a service."""
    if sink is None:
        return None
    mirror = Mirror(organizations, sink, encode=encode_quota, jitter=jitter)
    organizations.cells.on_change = mirror.note
    return mirror


def states(
    live: LiveServices, webhooks: WebhookServices, mirror: Mirror | None
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what operators see of these service actors."""
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "live": lambda: live.feed.figures,
        "publisher": lambda: webhooks.publisher.figures,
    }
    if mirror is not None:
        found["mirror"] = lambda: mirror.figures
    return found


def measure(
    metrics: Metrics, live: LiveServices, webhooks: WebhookServices, mirror: Mirror | None
) -> None:
    """Put the metrics of telling in place."""
    outcomes = webhooks.publisher.outcomes
    metrics.read(names.WEBHOOK_ATTEMPTS, lambda: {(each,): n for each, n in outcomes.items()})
    metrics.read(names.LIVE_VIEWERS, lambda: live.feed.figures["viewers"])
    if mirror is not None:
        metrics.read(names.MIRROR_WRITTEN, lambda: mirror.written)
        metrics.read(names.MIRROR_FAILURES, lambda: mirror.failures)
        metrics.read(names.MIRROR_WAITING, lambda: mirror.waiting)
        metrics.read(names.MIRROR_OPEN, lambda: int(mirror.is_open))


def webhooks_of(
    config: Config,
    pools: PostgresPools,
    *,
    clock: Clock,
    jitter: Iterator[float],
    chance: Callable[[int], bytes],
    secret: bytes,
) -> WebhookServices:
    """Return the outgoing webhooks of a running meterd; run their publisher as a service.

    `secret` seals what endpoints' signatures are made with.
    """
    is_private_allowed = config.webhooks_private_allowed
    store = PostgresWebhooks(pools, Sealer.of(secret))
    sender = HttpsSender(is_private_allowed=is_private_allowed)
    return WebhookServices(
        store=store,
        publisher=Publisher(store, sender, clock=clock, jitter=jitter),
        check_url=functools.partial(checked_url, is_private_allowed=is_private_allowed),
        chance=chance,
    )
