"""Webhooks going out: signed, in order unless told otherwise, again until answered with 2xx.

A delivery lives: waiting -> succeeded | failed. Attempts are planned in virtual time (Stripe
retries for three days), repetition, delay, reordering and loss come from Faults. The payload is
the event as `GET /v1/events/{id}` shows it; the signature's time is the wall's, because that is
what receivers compare it with.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import random
from collections.abc import Sequence
from fnmatch import fnmatchcase

import attrs
import httpx
import trio

from meterd.testing.fake_stripe.clock import DAY_S, HOUR_S, MINUTE_S
from meterd.testing.fake_stripe.errors import Json
from meterd.testing.fake_stripe.faults import Faults
from meterd.testing.fake_stripe.world import World


RETRY_AFTER_S = (
    MINUTE_S,
    5 * MINUTE_S,
    30 * MINUTE_S,
    2 * HOUR_S,
    5 * HOUR_S,
    10 * HOUR_S,
    12 * HOUR_S,
    12 * HOUR_S,
    12 * HOUR_S,
    12 * HOUR_S,
)
"""Virtual seconds from one attempt to the next: three days in all, as in live mode."""

assert sum(RETRY_AFTER_S) <= 3 * DAY_S


@attrs.define(kw_only=True, eq=False)
class Delivery:
    """One event on its way to one endpoint."""

    event_id: str
    endpoint_id: str
    due_s: int
    state: str = "waiting"
    attempts: int = 0
    is_in_flight: bool = False
    last_status: int | None = None
    """HTTP status of the last attempt; None when there was no answer."""
    answered_at_s: int | None = None
    """Virtual moment of the first 2xx."""

    def facts(self) -> Json:
        """For the dump of the account's state."""
        return attrs.asdict(self)


def signature_header(payload: bytes, secrets: Sequence[str], *, at_s: int) -> str:
    """`Stripe-Signature` over `t.payload`, one v1 per secret in force.

    Source: https://docs.stripe.com/webhooks#verify-manually.
    """
    signed = f"{at_s}.".encode() + payload
    marks = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets]
    return ",".join([f"t={at_s}", *(f"v1={mark}" for mark in marks)])


class Dispatcher:
    """All deliveries of the account, and the task that sends them."""

    def __init__(self, world: World, faults: Faults, chance: random.Random) -> None:
        self._world = world
        self._faults = faults
        self._chance = chance
        self.deliveries: list[Delivery] = []
        self._waiting: list[Delivery] = []
        self._in_flight = 0
        self._changed = trio.Event()
        self._announced: dict[str, str] = {}
        """Invoice → the event that told of it."""
        self._of_event: dict[str, list[Delivery]] = {}
        world.on_event.append(self._enqueue)
        world.may_finalize = self._may_finalize
        world.timer_handlers["redeliver"] = lambda _world, _id, _at_s: None

    def _enqueue(self, event: Json) -> None:
        if event["type"] == "invoice.created":
            self._announced[event["data"]["object"]["id"]] = event["id"]
        told = [event]
        if self._faults.strikes(self._faults.twin_rate):
            told.append(self._world.add({**event, "id": self._world.new_id("evt")}))
        for each in told:
            for endpoint_id in self._wanting(each["type"]):
                self.send(each["id"], endpoint_id)

    def _wanting(self, event_type: str) -> list[str]:
        return [
            endpoint["id"]
            for endpoint in self._world.table("webhook_endpoint").values()
            if endpoint["status"] == "enabled"
            and any(fnmatchcase(event_type, name) for name in endpoint["enabled_events"])
        ]

    def send(self, event_id: str, endpoint_id: str) -> Delivery:
        """Have an event delivered to an endpoint, once more if it already was."""
        delivery = Delivery(event_id=event_id, endpoint_id=endpoint_id, due_s=self._world.now_s)
        self.deliveries.append(delivery)
        self._waiting.append(delivery)
        self._of_event.setdefault(event_id, []).append(delivery)
        self._count_pending(event_id)
        self.wake()
        return delivery

    def resend(self, event_id: str, *, copies: int = 1) -> None:
        """Deliver an event again to every endpoint that wants it, as the dashboard's button."""
        event = self._world.get("event", event_id)
        for endpoint_id in self._wanting(event["type"]):
            for _ in range(copies):
                self.send(event_id, endpoint_id)

    def wake(self) -> None:
        """Look again at what is due: the clock moved, a switch changed."""
        self._changed.set()
        self._changed = trio.Event()

    def was_delivered(self, event_id: str) -> bool:
        """Whether every endpoint that wanted the event has acknowledged it."""
        return not self._open_endpoints(event_id)

    def _open_endpoints(self, event_id: str) -> set[str]:
        deliveries = self._of_event.get(event_id, ())
        acknowledged = {each.endpoint_id for each in deliveries if each.state == "succeeded"}
        return {each.endpoint_id for each in deliveries} - acknowledged

    def _count_pending(self, event_id: str) -> None:
        event = self._world.table("event").get(event_id)
        if event is not None:
            event["pending_webhooks"] = len(self._open_endpoints(event_id))

    def _may_finalize(self, invoice_id: str) -> bool | int:
        """Wait an hour after the last answer to `invoice.created`; at most 72 hours late.

        Source: https://docs.stripe.com/billing/subscriptions/webhooks#understand.
        """
        world = self._world
        created_s = world.get("invoice", invoice_id)["created"]
        latest_s = created_s + world.settings.draft_delay_s_max
        answered_s = created_s
        for delivery in self._of_event.get(self._announced[invoice_id], ()):
            if delivery.answered_at_s is None:
                ahead_s = world.now_s + HOUR_S
                return True if world.now_s >= latest_s else min(ahead_s, latest_s)
            answered_s = max(answered_s, delivery.answered_at_s)
        due_s = min(answered_s + world.settings.draft_window_s, latest_s)
        return True if world.now_s >= due_s else due_s

    # Sending

    def _due(self) -> list[Delivery]:
        if self._faults.holds_deliveries:
            return []
        now_s = self._world.now_s
        return [each for each in self._waiting if not each.is_in_flight and each.due_s <= now_s]

    def held(self, *, shuffle_seed: int | None = None) -> list[Delivery]:
        """Deliveries not sent yet, made due now; with a seed, put in another order."""
        for delivery in self._waiting:
            delivery.due_s = min(delivery.due_s, self._world.now_s)
        if shuffle_seed is not None:
            random.Random(shuffle_seed).shuffle(self._waiting)  # noqa: S311 - reproducible
        return self._waiting

    async def settle(self) -> None:
        """Return when nothing that is due now is unsent or in flight."""
        while self._in_flight or self._due():
            await self._changed.wait()

    async def run(self, client: httpx.AsyncClient) -> None:
        """Send what is due, for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                changed = self._changed
                for endpoint_id, batch in self._batches().items():
                    for delivery in batch:
                        delivery.is_in_flight = True
                    self._in_flight += len(batch)
                    nursery.start_soon(self._send_batch, client, endpoint_id, batch)
                await changed.wait()

    def _batches(self) -> dict[str, list[Delivery]]:
        """Return what is due and whose endpoint is not busy: an endpoint's order is kept."""
        busy = {each.endpoint_id for each in self._waiting if each.is_in_flight}
        batches: dict[str, list[Delivery]] = {}
        for delivery in self._due():
            if delivery.endpoint_id not in busy:
                batches.setdefault(delivery.endpoint_id, []).append(delivery)
        return batches

    async def _send_batch(
        self, client: httpx.AsyncClient, endpoint_id: str, batch: list[Delivery]
    ) -> None:
        if len(batch) > 1 and self._faults.strikes(self._faults.reorder_rate):
            self._chance.shuffle(batch)
        async with trio.open_nursery() as nursery:
            for delivery in batch:
                delay_ms = self._faults.delay_ms()
                if delay_ms:
                    nursery.start_soon(self._send, client, endpoint_id, delivery, delay_ms)
                else:
                    await self._send(client, endpoint_id, delivery, 0)

    async def _send(
        self, client: httpx.AsyncClient, endpoint_id: str, delivery: Delivery, delay_ms: int
    ) -> None:
        await trio.sleep(delay_ms / 1_000)
        endpoint = self._world.table("webhook_endpoint").get(endpoint_id)
        event = self._world.table("event").get(delivery.event_id)
        if endpoint is None or event is None:
            delivery.state = "failed"
        else:
            for _ in range(self._faults.copies()):
                await self._attempt(client, endpoint, event, delivery)
        delivery.is_in_flight = False
        self._in_flight -= 1
        if delivery.state != "waiting":
            self._waiting.remove(delivery)
        self._count_pending(delivery.event_id)
        self.wake()

    async def _attempt(
        self, client: httpx.AsyncClient, endpoint: Json, event: Json, delivery: Delivery
    ) -> None:
        status = None
        if not self._faults.strikes(self._faults.lose_rate):
            status = await self._post(client, endpoint, event)
        if delivery.state == "succeeded":
            return  # a copy of one already acknowledged
        delivery.last_status = status
        if status is not None and httpx.codes.is_success(status):
            delivery.state, delivery.answered_at_s = "succeeded", self._world.now_s
            return
        delivery.attempts += 1
        if delivery.attempts > len(RETRY_AFTER_S):
            delivery.state = "failed"
            return
        delivery.due_s = self._world.now_s + RETRY_AFTER_S[delivery.attempts - 1]
        self._world.schedule("redeliver", delivery.event_id, delivery.due_s)

    async def _post(self, client: httpx.AsyncClient, endpoint: Json, event: Json) -> int | None:
        payload = json.dumps(event, indent=2).encode()
        now_s = self._world.now_s
        secrets = [
            secret
            for secret, until_s in self._world.hidden.secrets[endpoint["id"]]
            if until_s is None or until_s > now_s
        ]
        at_s = self._world.clock.wall_now_s()
        headers = {
            "content-type": "application/json; charset=utf-8",
            "stripe-signature": signature_header(payload, secrets, at_s=at_s),
            "user-agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        }
        timeout_s = self._world.settings.delivery_timeout_s
        try:
            answer = await client.post(
                endpoint["url"], content=payload, headers=headers, timeout=timeout_s
            )
        except httpx.TransportError:
            return None
        return answer.status_code
