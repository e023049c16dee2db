"""The publisher: delivers notifications to webhook endpoints, for as long as it takes.

Rule 1: what is to be delivered is in the store, written with the facts that caused it. Nothing
        waits for the publisher, and a restart forgets nothing.
Rule 2: one delivery of an endpoint at a time, oldest first; a slow endpoint delays no other.
Rule 3: 2xx is delivered, 410 disables the endpoint, everything else is tried again with growing
        delays for three days, always under the same id: who receives it can tell a repeat.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, Final

import attrs
import structlog
import trio
from standardwebhooks import Webhook

from meterd.core.supervision import backoff_ms
from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, rfc3339, to_datetime
from meterd.errors import PortalClosedError, StoreError
from meterd.ports.clock import Clock
from meterd.ports.webhooks import (
    DELIVERED,
    FAILED,
    DueDelivery,
    WebhookRefusedError,
    WebhookSender,
    WebhookStore,
)


log = structlog.get_logger(__name__)

RETRY_DELAYS_MS: Final = (
    5 * SECOND_MS,
    5 * MINUTE_MS,
    30 * MINUTE_MS,
    2 * HOUR_MS,
    5 * HOUR_MS,
    10 * HOUR_MS,
    14 * HOUR_MS,
    20 * HOUR_MS,
    24 * HOUR_MS,
)
"""Pauses after failed attempts: ten attempts over three days, as Standard Webhooks advises."""

SECRET_BYTES: Final = 32
"""Chance in a signing secret; Standard Webhooks asks for 24 to 64."""

GONE: Final = "the endpoint answered 410 Gone"

UNREADABLE: Final = "the signing secret cannot be read: the key pepper is another one now"


@attrs.frozen(kw_only=True)
class PublisherPolicy:
    """How deliveries are made."""

    poll_ms: int = SECOND_MS
    """A delivery is found this late at most."""
    at_once: int = 32
    """Endpoints asked at the same time."""
    kept_ms: int = 30 * DAY_MS
    """How long notifications and their deliveries are kept."""


def new_secret(chance: Callable[[int], bytes]) -> str:
    """Return a new signing secret."""
    return "whsec_" + b64encode(chance(SECRET_BYTES)).decode()


def signed(due: DueDelivery, now_ms: int) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a delivery as Standard Webhooks describes them.

    Errors: WebhookRefusedError when there is nothing to sign with.
    """
    if not due.endpoint.secret:
        raise WebhookRefusedError(UNREADABLE)
    content = {
        "type": due.delivery.kind,
        "timestamp": rfc3339(due.at_ms),
        "data": json.loads(due.data_json),
    }
    body = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    message_id = due.delivery.notification_id
    signature = Webhook(due.endpoint.secret).sign(message_id, to_datetime(now_ms), body)
    headers = {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(now_ms // SECOND_MS),
        "webhook-signature": signature,
    }
    return headers, body.encode()


class Publisher:
    """Delivers what is due, for ever."""

    def __init__(
        self,
        store: WebhookStore,
        sender: WebhookSender,
        *,
        clock: Clock,
        jitter: Iterator[float],
        policy: PublisherPolicy | None = None,
    ) -> None:
        self._store = store
        self._sender = sender
        self._clock = clock
        self._jitter = jitter
        self._policy = policy or PublisherPolicy()
        self._busy: set[str] = set()
        self._kick = trio.Event()
        self._forgotten_ms = 0
        self.outcomes: Counter[str] = Counter()
        """Attempts since the start, for metrics: delivered, retried, failed."""
        self.last_error: str | None = None
        self.trouble: str | None = None
        """What was wrong with the latest attempt; None when it was delivered."""

    def kick(self) -> None:
        """Look for deliveries now; synchronous, never waits."""
        self._kick.set()

    @property
    def figures(self) -> dict[str, Any]:
        """Return what an operator sees."""
        return {
            "busy_endpoints": len(self._busy),
            **self.outcomes,
            "last_error": self.last_error,
            "trouble": self.trouble,
        }

    async def run(self) -> None:
        """Deliver for ever; while the store is away, wait."""
        self._busy.clear()
        tries = 0
        async with trio.open_nursery() as nursery:
            while True:
                self._kick = trio.Event()
                try:
                    await self._start_due(nursery)
                    await self._forget()
                except (StoreError, PortalClosedError) as error:
                    tries += 1
                    self.last_error = str(error)
                    delay_ms = backoff_ms(tries, least_ms=SECOND_MS, most_ms=MINUTE_MS)
                    await trio.sleep(delay_ms * (0.5 + next(self._jitter)) / SECOND_MS)
                    continue
                tries = 0
                with trio.move_on_after(self._policy.poll_ms / SECOND_MS):
                    await self._kick.wait()

    async def _start_due(self, nursery: trio.Nursery) -> None:
        room = self._policy.at_once - len(self._busy)
        if room <= 0:
            return
        for due in await self._store.due_deliveries(
            now_ms=self._clock.now_ms(), busy=tuple(self._busy), limit=room
        ):
            self._busy.add(due.endpoint.id)
            nursery.start_soon(self._deliver, due)

    async def _deliver(self, due: DueDelivery) -> None:
        """Make one attempt and write what became of it; unwritten, it is made again."""
        try:
            await self._attempt(due)
        except (StoreError, PortalClosedError) as error:
            self.last_error = str(error)
            await trio.sleep(self._policy.poll_ms / SECOND_MS)
        finally:
            self._busy.discard(due.endpoint.id)
        self.kick()

    async def _attempt(self, due: DueDelivery) -> None:
        started_ms, status, error = self._clock.now_ms(), None, None
        try:
            headers, body = signed(due, started_ms)
            status = await self._sender.post(due.endpoint.url, headers, body)
        except WebhookRefusedError as refused:
            error = str(refused)
        else:
            if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
                error = f"answered {status}"
        now_ms = self._clock.now_ms()
        settled = attrs.evolve(
            due.delivery,
            attempts=due.delivery.attempts + 1,
            attempted_at_ms=started_ms,
            status=status,
            error=error,
            duration_ms=now_ms - started_ms,
        )
        is_gone = status == HTTPStatus.GONE
        if error is None:
            settled = attrs.evolve(settled, state=DELIVERED)
        elif is_gone or settled.attempts > len(RETRY_DELAYS_MS):
            settled = attrs.evolve(settled, state=FAILED)
        else:
            delay_ms = RETRY_DELAYS_MS[settled.attempts - 1]
            jitter_ms = int(delay_ms * next(self._jitter)) // 10
            settled = attrs.evolve(settled, next_attempt_at_ms=now_ms + delay_ms + jitter_ms)
        self._count(settled.state if settled.state != "pending" else "retried", due, error)
        await self._store.settle_delivery(settled, disable=GONE if is_gone else None)

    def _count(self, outcome: str, due: DueDelivery, error: str | None) -> None:
        self.outcomes[outcome] += 1
        self.trouble = error
        if error is not None:
            self.last_error = error
            log.info(
                "webhook_not_delivered",
                delivery_id=due.delivery.id,
                endpoint_id=due.endpoint.id,
                attempt=due.delivery.attempts + 1,
                outcome=outcome,
                error=error,
            )

    async def _forget(self) -> None:
        """Drop old notifications, once an hour."""
        now_ms = self._clock.now_ms()
        if now_ms - self._forgotten_ms >= HOUR_MS:
            await self._store.forget_notifications(before_ms=now_ms - self._policy.kept_ms)
            self._forgotten_ms = now_ms
