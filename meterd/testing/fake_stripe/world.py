"""The fake account: its objects, its timers, its events. One thread, no awaiting.

Rule 1: everything here and in the billing modules runs to completion between two awaits, so a
request sees all of a change or none of it.
Rule 2: objects are stored exactly as they travel; what Stripe keeps to itself is in `Hidden`.
Rule 3: chance comes from one seeded source, time from one virtual clock.
"""

from __future__ import annotations

import copy
import heapq
import random
import string
from collections import deque
from collections.abc import Callable, Iterator

import attrs

from meterd.testing.fake_stripe.clock import DAY_S, HOUR_S, VirtualClock
from meterd.testing.fake_stripe.errors import Json, StripeRefusedError, missing_object


API_VERSION = "2026-10-28.endive"
"""The version whose shapes the fake speaks: that of the pinned `stripe` package."""

_ID_CHARACTERS = string.ascii_letters + string.digits
_ID_LENGTH = 16

TABLE_OF_PREFIX = {
    "cus": "customer",
    "prod": "product",
    "price": "price",
    "sub": "subscription",
    "in": "invoice",
    "ii": "invoiceitem",
    "cs": "checkout.session",
    "bpc": "billing_portal.configuration",
    "bps": "billing_portal.session",
    "we": "webhook_endpoint",
    "evt": "event",
    "di": "discount",
    "inpay": "invoice_payment",
}
"""What an id names, by its prefix; used to expand references."""


@attrs.define(kw_only=True)
class Settings:
    """What an account owner chooses in Stripe's dashboard, and the fake's own limits."""

    livemode: bool = False
    api_key: str | None = None
    """The only key accepted; None accepts any."""
    account_name: str = "Example"
    draft_window_s: int = HOUR_S
    """From `invoice.created` answered to finalisation of a renewal's draft."""
    draft_delay_s_max: int = 72 * HOUR_S
    """How long unanswered `invoice.created` notices may delay finalisation."""
    retry_delays_s: list[int] = attrs.field(factory=lambda: [3 * DAY_S, 5 * DAY_S, 7 * DAY_S])
    """Waits between payment attempts; after the last one `after_retries` applies."""
    after_retries: str = attrs.field(
        default="unpaid", validator=attrs.validators.in_(("cancel", "unpaid", "past_due", "pause"))
    )
    """`cancel`, `unpaid`, `past_due` (leave as is) or `pause`."""
    incomplete_expires_s: int = 23 * HOUR_S
    items_per_invoice_max: int = 250
    accepts_items_on_ended_subscription: bool = True
    """Whether an invoice item may still name a canceled subscription."""
    default_payment: str = attrs.field(
        default="succeed", validator=attrs.validators.in_(("succeed", "fail", "none"))
    )
    """Outcome of a payment of a customer without an own one: `succeed`, `fail` or `none`."""
    delivery_timeout_s: float = 10.0
    """Real seconds a webhook endpoint has to answer."""
    events_kept_s: int = 30 * DAY_S
    idempotency_kept_s: int = 24 * HOUR_S


@attrs.define
class Hidden:
    """Facts about objects that no API response shows."""

    payments: dict[str, str] = attrs.field(factory=dict)
    """Customer → what payments do from now on: `succeed`, `fail`, `none`."""
    payment_script: dict[str, deque[str]] = attrs.field(factory=dict)
    """Customer → outcomes of its next payments, used up one by one."""
    scheduled_items: dict[str, list[Json]] = attrs.field(factory=dict)
    """Subscription → items its schedule sets at the end of the period."""
    retries: dict[str, int] = attrs.field(factory=dict)
    """Invoice → automatic retries already used."""
    lines: dict[str, list[Json]] = attrs.field(factory=dict)
    """Invoice → all its lines; the object itself carries the first ten."""
    secrets: dict[str, list[tuple[str, int | None]]] = attrs.field(factory=dict)
    """Endpoint → signing secrets, newest first, and when each ends."""
    starting: set[str] = attrs.field(factory=set)
    """Subscriptions being created: their first payment decides the status they start with."""
    session_plans: dict[str, Json] = attrs.field(factory=dict)
    """Checkout session → the request that made it."""
    deleted_coupons: set[str] = attrs.field(factory=set)
    """Coupons that live on in the discounts they have become."""
    applies_to: dict[str, Json] = attrs.field(factory=dict)
    """Coupon → the products that it is for; sent only when it is asked for."""


class World:
    """One Stripe account, in memory."""

    def __init__(
        self, *, clock: VirtualClock, seed: int = 0, settings: Settings | None = None
    ) -> None:
        self.clock = clock
        self.settings = settings or Settings()
        self.chance = random.Random(seed)  # noqa: S311 - reproducible on purpose
        self.tables: dict[str, dict[str, Json]] = {}
        self._of_customer: dict[tuple[str, str], dict[str, Json]] = {}
        self.hidden = Hidden()
        self.request_id: str | None = None
        """Id of the API request being served; None while a timer runs."""
        self.idempotency_key: str | None = None
        self.base_url = "http://127.0.0.1"
        self.on_event: list[Callable[[Json], None]] = []
        self.timer_handlers: dict[str, Callable[[World, str, int], None]] = {}
        self.may_finalize: Callable[[str], bool | int] = lambda _invoice_id: True
        self._timers: list[tuple[int, int, str, str]] = []
        self._sequence = 0

    @property
    def now_s(self) -> int:
        """Seconds since 1970 UTC in this world."""
        return self.clock.now_s

    # Objects

    def new_id(self, prefix: str) -> str:
        """Return an id nobody has, in Stripe's manner, the same again for the same seed."""
        tail = "".join(self.chance.choices(_ID_CHARACTERS, k=_ID_LENGTH))
        return f"{prefix}_1Fake{tail}"

    def table(self, kind: str) -> dict[str, Json]:
        """All objects of a kind, oldest first."""
        return self.tables.setdefault(kind, {})

    def add(self, record: Json) -> Json:
        """Store an object under its own kind and id."""
        self.table(record["object"])[record["id"]] = record
        if isinstance(record.get("customer"), str):
            owner = (record["object"], record["customer"])
            self._of_customer.setdefault(owner, {})[record["id"]] = record
        return record

    def remove(self, record: Json) -> None:
        """Forget an object."""
        del self.table(record["object"])[record["id"]]
        self._of_customer[record["object"], record["customer"]].pop(record["id"], None)

    def of_customer(self, kind: str, customer_id: str) -> list[Json]:
        """Return a customer's objects of a kind, oldest first."""
        return list(self._of_customer.get((kind, customer_id), {}).values())

    def get(self, kind: str, object_id: str, *, param: str = "id") -> Json:
        """Return the stored object itself; changes to it are changes to the account."""
        found = self.table(kind).get(object_id)
        if kind == "coupon" and object_id in self.hidden.deleted_coupons:
            found = None
        if found is None or (found.get("deleted") and param != "id"):
            raise missing_object(kind.rpartition(".")[2], object_id, param=param)
        return found

    def find(self, object_id: str) -> Json | None:
        """Whatever the id names, or None."""
        prefix = object_id.partition("_")[0]
        kind = TABLE_OF_PREFIX.get(prefix, "coupon")
        return self.table(kind).get(object_id)

    # Events

    def emit(self, event_type: str, record: Json, *, previous: Json | None = None) -> Json:
        """Record that something happened to an object, as a snapshot of it now."""
        data: Json = {"object": copy.deepcopy(record)}
        if previous is not None:
            data["previous_attributes"] = previous
        event = self.add(
            {
                "id": self.new_id("evt"),
                "object": "event",
                "api_version": API_VERSION,
                "created": self.now_s,
                "data": data,
                "livemode": self.settings.livemode,
                "pending_webhooks": 0,
                "request": {"id": self.request_id, "idempotency_key": self.idempotency_key},
                "type": event_type,
            }
        )
        for listener in self.on_event:
            listener(event)
        return event

    def changed(self, event_type: str, record: Json, before: Json) -> None:
        """Emit an `…updated` event when the object differs from its copy of before."""
        previous = previous_attributes(before, record)
        if previous:
            self.emit(event_type, record, previous=previous)

    # Timers

    def schedule(self, kind: str, object_id: str, at_s: int) -> None:
        """Have a handler look at an object at a moment; handlers ignore what no longer holds."""
        self._sequence += 1
        heapq.heappush(self._timers, (at_s, self._sequence, kind, object_id))

    def next_due_s(self) -> int | None:
        """When the next timer rings, or None."""
        return self._timers[0][0] if self._timers else None

    def run_due(self) -> bool:
        """Ring the one next timer that is due; False when none is."""
        if not self._timers or self._timers[0][0] > self.now_s:
            return False
        at_s, _, kind, object_id = heapq.heappop(self._timers)
        self.request_id = self.idempotency_key = None
        self.timer_handlers[kind](self, object_id, at_s)
        return True

    # Payments

    def payment_outcome(self, customer_id: str) -> str:
        """Return what the next payment of the customer does: `succeed`, `fail` or `none`."""
        script = self.hidden.payment_script.get(customer_id)
        if script:
            return script.popleft()
        return self.hidden.payments.get(customer_id, self.settings.default_payment)

    def peek_payment(self, customer_id: str) -> str:
        """Return what the next payment would do, without making it."""
        script = self.hidden.payment_script.get(customer_id)
        if script:
            return script[0]
        return self.hidden.payments.get(customer_id, self.settings.default_payment)

    def has_payment_method(self, customer_id: str) -> bool:
        """Whether there is anything to charge at all."""
        outcome = self.hidden.payments.get(customer_id, self.settings.default_payment)
        return outcome != "none"

    def newest_first(self, kind: str) -> Iterator[Json]:
        """Objects of a kind in the order lists show them."""
        return reversed(list(self.table(kind).values()))


def previous_attributes(before: Json, after: Json) -> Json:
    """Return what changed, with the values of before, nested as Stripe nests it."""
    previous: Json = {}
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict) and name not in {"items", "lines"}:
            previous[name] = previous_attributes(old, new)
        else:
            previous[name] = copy.deepcopy(old)
    return previous


def merge_metadata(record: Json, given: Json | str) -> None:
    """Apply a `metadata` parameter: an empty value unsets a key, an empty string all of them.

    Source: https://docs.stripe.com/api/metadata (50 keys, names of 40, values of 500 characters).
    """
    if isinstance(given, str):
        record["metadata"] = {}
        return
    merged = dict(record.get("metadata") or {})
    for key, value in given.items():
        if len(key) > 40 or len(value) > 500:  # noqa: PLR2004 - Stripe's documented limits
            raise StripeRefusedError(
                f"Metadata keys have up to 40 and values up to 500 characters: {key}",
                param=f"metadata[{key}]",
            )
        if value == "":
            merged.pop(key, None)
        else:
            merged[key] = value
    if len(merged) > 50:  # noqa: PLR2004
        raise StripeRefusedError("Metadata can have up to 50 keys", param="metadata")
    record["metadata"] = merged
