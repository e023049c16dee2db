"""The composition of what customers are told: which store and which sender are behind it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from meterd.actors.live import LiveFeed
from meterd.actors.organizations import Organizations
from meterd.actors.publisher import Publisher
from meterd.actors.sessions import Sessions
from meterd.adapters.key_set import HttpKeySet
from meterd.adapters.postgres.pool import PostgresPools
from meterd.adapters.postgres.webhooks import PostgresWebhooks
from meterd.adapters.webhook_sender import HttpsSender, checked_url
from meterd.config import Config
from meterd.ports import Clock
from meterd.web.services import LiveServices, WebhookServices
from meterd.web.tickets import Tickets
from meterd.web.usage_live import encode_alert, encode_snapshot


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


def webhooks_of(
    config: Config,
    pools: PostgresPools,
    *,
    clock: Clock,
    jitter: Iterator[float],
    chance: Callable[[int], bytes],
) -> WebhookServices:
    """Return the outgoing webhooks of a running meterd; run their publisher as a service."""
    is_private_allowed = config.webhooks_private_allowed
    store = PostgresWebhooks(pools)
    sender = HttpsSender(is_private_allowed=is_private_allowed)
    return WebhookServices(
        store=store,
        publisher=Publisher(store, sender, clock=clock, jitter=jitter),
        check_url=functools.partial(checked_url, is_private_allowed=is_private_allowed),
        chance=chance,
    )
