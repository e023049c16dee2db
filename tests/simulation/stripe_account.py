"""Stripe in a simulated world: an account that lives by itself, and its customers.

The account is the fake that all tests share, on the world's true time. Its history begins a month
before the world does, so that every subscription renews in the storm. What happens in it is told
by notices that come late, twice, out of order or never; people there change plans and do not pay.
"""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import attrs
import trio

from meterd.testing.fake_stripe import hooks
from meterd.testing.fake_stripe.api import Answer, Api, Call
from meterd.testing.fake_stripe.clock import VirtualClock, add_intervals
from meterd.testing.fake_stripe.errors import StripeRefusedError
from meterd.testing.fake_stripe.faults import Faults
from meterd.testing.fake_stripe.handle import FakeStripe
from meterd.testing.fake_stripe.world import Settings, World as StripeWorld
from tests.simulation.determinism import Chance
from tests.simulation.network import Network
from tests.simulation.weather import Weather


Json = Mapping[str, Any]

Inbox = Callable[[str], Awaitable[bool]]
"""Takes a notice; False when it was not kept."""

PRICES_CENTS = {"starter": 4_900, "pro": 14_900}

NOTICE_RETRIES_S = (3, 10, 30, 60)
"""Stripe tries for three days; here it gives up sooner, and reconciliation has to find out."""

NOTICE_ANSWER_S = 10

LOOK_S = 60.0
"""How often the account's timers are looked at when none is known to ring."""


@attrs.define
class Customer:
    """Somebody with a card, for one organization."""

    organization_id: str
    id: str
    subscription_id: str
    is_linked: bool
    """meterd knew whose customer it is before anything happened."""


class StripeAccount:
    """Everything at Stripe, and the weather between there and meterd."""

    def __init__(
        self,
        seed: int,
        *,
        network: Network,
        weather: Callable[[], Weather],
        true_ms: Callable[[], int],
        note: Callable[..., None],
    ) -> None:
        self.under_way: set[str] = set()
        """Idempotency keys of requests that are being worked on."""
        self.customers: list[Customer] = []
        self.is_away = False
        self._is_mute = False
        self._network = network
        self._weather = weather
        self._chance = Chance(seed, "stripe")
        self._note = note
        self._undelivered: dict[str, None] = {}
        self._to_tell: list[tuple[str, str]] = []
        self._kick = trio.Event()
        self._told = trio.Event()
        start_s = true_ms() // 1_000 - 32 * 86_400
        clock = VirtualClock(start_s=start_s, wall_s=lambda: true_ms() // 1_000)
        settings = Settings(
            draft_window_s=weather().stripe_draft_s,
            retry_delays_s=[self._chance.whole(10, 60) for _ in range(2)],
            after_retries=self._chance.pick("unpaid", "past_due", "cancel"),
        )
        chance = self._chance.random
        world = StripeWorld(clock=clock, seed=seed, settings=settings)
        self.fake = FakeStripe(world, Faults(chance=chance), random.Random(seed))
        self.fake.api = Api(world, hooks.events_lister(lambda key: key not in self._undelivered))
        world.on_event.append(self._heard)
        self._prices = {tier: self._make_price(tier, cents) for tier, cents in PRICES_CENTS.items()}

    @property
    def now_s(self) -> int:
        """Return Stripe's time."""
        return self.fake.clock.now_s

    @property
    def has_lost_notices(self) -> bool:
        """Tell whether something happened that Stripe has told nobody of."""
        return bool(self._undelivered)

    def objects(self, kind: str) -> list[Json]:
        """Return the stored objects of a kind, oldest first."""
        return list(self.fake.objects(kind))

    # --- requests ------------------------------------------------------------------------------

    def post(self, deliver: Callable[[], None], *, after_s: float = 0.0) -> None:
        """Let something travel between meterd and Stripe."""
        self._network.post(after_s + self._chance.soon(0.05), deliver)

    def answer(self, call: Call, *, breaks_after: bool = False) -> Answer:
        """Do what a request asks for."""
        answer = self.fake.api.answer(call, breaks_after=breaks_after)
        self._note("stripe", call.method, call.path, answer.status)
        self._kick.set()
        return answer

    def refusal(self, refused: StripeRefusedError) -> Answer:
        """Refuse a request without any work."""
        return self.fake.api.refusal(refused)

    def call(self, method: str, path: str, **params: object) -> Json:
        """Make a request as somebody else does, past all bad weather; `a__b` is `a[b]`."""
        form = {}
        for name, value in params.items():
            first, *rest = name.split("__")
            form[first + "".join(f"[{part}]" for part in rest)] = value
        answer = self.answer(
            Call(
                method=method,
                path=path,
                query="",
                headers={"authorization": "Bearer sk_test_x"},
                body=urlencode(form).encode(),
            )
        )
        found: Json = json.loads(answer.body)
        return found

    # --- history -------------------------------------------------------------------------------

    def _make_price(self, tier: str, cents: int) -> str:
        product = self.call("POST", "/v1/products", name=f"meterd {tier}")["id"]
        price = self.call(
            "POST",
            "/v1/prices",
            product=product,
            currency="usd",
            unit_amount=cents,
            recurring__interval="month",
            metadata__meterd_tier=tier,
        )
        return str(price["id"])

    def remember(self, organization_ids: list[str], *, begins_s: int, storm_s: float) -> None:
        """Let these have subscribed a month ago, each to renew at an instant of the storm."""
        chance = self._chance
        renewals = sorted(
            (begins_s + chance.whole(int(storm_s) // 5, int(storm_s) * 2 // 3), organization_id)
            for organization_id in organization_ids
        )
        for renews_s, organization_id in renewals:
            self._pass_to(add_intervals(renews_s, "month", -1))
            customer_id = str(self.call("POST", "/v1/customers", email="a@example.com")["id"])
            tier = chance.pick(*self._prices)
            subscription = self._subscribe(organization_id, customer_id, tier)
            self.customers.append(
                Customer(organization_id, customer_id, subscription, chance.happens(0.5))
            )
        self._pass_to(begins_s)
        self.fake.clock.ticks = True
        for customer in self.customers:
            if chance.happens(self._weather().cards_fail):
                self.fake.set_payments(customer.id, "fail")

    def _subscribe(self, organization_id: str, customer_id: str, tier: str) -> str:
        made = self.call(
            "POST",
            "/v1/subscriptions",
            customer=customer_id,
            items__0__price=self._prices[tier],
            metadata__organization_id=organization_id,
        )
        return str(made["id"])

    def _pass_to(self, to_s: int) -> None:
        world = self.fake.world
        while (due_s := world.next_due_s()) is not None and due_s <= to_s:
            world.clock.jump_to(due_s)
            while world.run_due():
                pass
        world.clock.jump_to(to_s)

    # --- life ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Let renewals, payments and retries happen when it is time."""
        world = self.fake.world
        while True:
            self._kick = trio.Event()
            while world.run_due():
                pass
            due_s = world.next_due_s()
            wait_s = LOOK_S if due_s is None else min(LOOK_S, max(due_s - self.now_s, 0.2))
            with trio.move_on_after(wait_s):
                await self._kick.wait()

    async def be_used(self) -> None:
        """Let customers change their minds, and cards fail, every now and then."""
        chance, every_s = self._chance, self._weather().stripe_orders_every_s
        while every_s and self.customers:
            await trio.sleep(chance.soon(every_s))
            customer = chance.pick(*self.customers)
            self._change(customer)

    async def be_away(self) -> None:
        """Let Stripe be unreachable for a while, now and then."""
        chance = self._chance
        while self._weather().stripe_away_every_s:
            await trio.sleep(chance.soon(self._weather().stripe_away_every_s))
            self.is_away = True
            await trio.sleep(chance.between(5, 60))
            self.is_away = False

    async def be_mute(self) -> None:
        """Tell nobody of anything for a while, nor later; some days until the storm is over."""
        every_s = self._weather().notices_away_every_s
        while every_s:
            await trio.sleep(self._chance.soon(every_s))
            self._is_mute = True
            await trio.sleep(self._chance.pick(30, 30, 3_600))
            self._is_mute = False

    def _change(self, customer: Customer) -> None:
        chance = self._chance
        subscription = self.fake.world.get("subscription", customer.subscription_id)
        path = f"/v1/subscriptions/{customer.subscription_id}"
        if subscription["status"] in {"canceled", "incomplete_expired"}:
            tier = chance.pick(*self._prices)
            customer.subscription_id = self._subscribe(customer.organization_id, customer.id, tier)
            return
        item = subscription["items"]["data"][0]["id"]
        price = self._prices[chance.pick(*self._prices)]
        match chance.whole(0, 7):
            case 0 | 1:  # a new period, at full price
                self.call(
                    "POST",
                    path,
                    items__0__id=item,
                    items__0__price=price,
                    billing_cycle_anchor__type="now",
                    proration_behavior="always_invoice",
                )
            case 2:
                self.call("POST", path, items__0__id=item, items__0__price=price)
            case 3:
                self.call("DELETE", path)
            case 4:
                self.call("POST", path, cancel_at_period_end="true")
            case 5:
                self.call("POST", path, cancel_at_period_end="false")
            case _:
                outcome = chance.pick("succeed", "fail")
                self.fake.set_payments(customer.id, outcome)

    def settle(self) -> None:
        """Let everybody pay what is open: after the storm no card fails."""
        self.is_away = self._is_mute = False
        for customer in self.customers:
            self.fake.set_payments(customer.id, "succeed")
            for invoice in self.fake.world.of_customer("invoice", customer.id):
                if invoice["status"] == "open":
                    self.call("POST", f"/v1/invoices/{invoice['id']}/pay")

    def upgrade_all(self) -> None:
        """Let everybody who has a subscription begin a new period of the other plan."""
        for customer in self.customers:
            subscription = self.fake.world.get("subscription", customer.subscription_id)
            if subscription["status"] != "active":
                continue
            item = subscription["items"]["data"][0]
            tier = item["price"]["metadata"]["meterd_tier"]
            self.call(
                "POST",
                f"/v1/subscriptions/{customer.subscription_id}",
                items__0__id=item["id"],
                items__0__price=self._prices["pro" if tier == "starter" else "starter"],
                billing_cycle_anchor__type="now",
                proration_behavior="always_invoice",
            )

    # --- notices -------------------------------------------------------------------------------

    def _heard(self, event: Json) -> None:
        """Keep what is to be told: payload as of now, whatever becomes of the object."""
        if not self._is_mute:
            self._to_tell.append((str(event["id"]), json.dumps(event)))
            self._told.set()
        self._undelivered[str(event["id"])] = None
        self._kick.set()

    async def tell(self, find_inbox: Callable[[], Inbox | None]) -> None:
        """Send notices, each by itself and for as long as it takes."""
        async with trio.open_nursery() as nursery:
            while True:
                self._told = trio.Event()
                told, self._to_tell = self._to_tell, []
                for event_id, payload in told:
                    nursery.start_soon(self._tell, event_id, payload, find_inbox)
                await self._told.wait()

    async def _tell(
        self, event_id: str, payload: str, find_inbox: Callable[[], Inbox | None]
    ) -> None:
        chance = self._chance
        copies = 2 if chance.happens(self._weather().notice_doubled) else 1
        for _ in range(copies):
            await self._attempt(event_id, payload, find_inbox)

    async def _attempt(
        self, event_id: str, payload: str, find_inbox: Callable[[], Inbox | None]
    ) -> None:
        chance = self._chance
        for pause_s in (0, *NOTICE_RETRIES_S):
            weather = self._weather()
            late_s = chance.between(1, 60) if chance.happens(weather.notice_late) else 0
            await trio.sleep(pause_s + late_s + chance.soon(0.1))
            inbox = find_inbox()
            if inbox is None or chance.happens(self._weather().notice_lost):
                continue
            with trio.move_on_after(NOTICE_ANSWER_S):
                if await inbox(payload):
                    self._undelivered.pop(event_id, None)
                    return
