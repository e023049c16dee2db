"""The fake as one object: what tests and the demo hold, and the switches they pull.

    async with open_fake_stripe() as fake:
        client = stripe.StripeClient("sk_test_x", base_addresses={"api": fake.url}, ...)
        fake.add_endpoint("http://127.0.0.1:8080/api/webhooks/stripe", secret="whsec_x")
        await fake.advance(31 * 86_400)

Every time is whole virtual seconds since 1970 UTC unless it says real.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import trio

from meterd.testing.fake_stripe import (
    control,
    discounts,
    hooks,
    hosted,
    invoices,
    subscriptions,
    visitor,
)
from meterd.testing.fake_stripe.api import (
    Answer,
    Api,
    Call,
    Logged,
    api_error,
    rate_limit_error,
)
from meterd.testing.fake_stripe.clock import VirtualClock, wall_time_s
from meterd.testing.fake_stripe.deliveries import Dispatcher
from meterd.testing.fake_stripe.errors import Json
from meterd.testing.fake_stripe.faults import Faults, RequestFault
from meterd.testing.fake_stripe.server import serve
from meterd.testing.fake_stripe.world import Settings, World


TICK_S = 0.25
"""Real seconds between two looks at a ticking clock's timers."""

Step = Callable[[], Awaitable[None]]


class FakeStripe:
    """A running fake. Made by `open_fake_stripe`."""

    def __init__(self, world: World, faults: Faults, chance: random.Random) -> None:
        self.world = world
        """Everything stored; `world.table("invoice")` and the like for assertions."""
        self.faults = faults
        self.dispatcher = Dispatcher(world, faults, chance)
        self.api = Api(world, hooks.events_lister(self.dispatcher.was_delivered))
        self._moving = trio.Lock()
        world.timer_handlers.update(
            finalize=invoices.on_finalize_timer,
            retry_payment=invoices.on_retry_timer,
            period_end=subscriptions.on_period_end,
            trial_will_end=subscriptions.on_trial_will_end,
            cancel_at=subscriptions.on_cancel_at,
            resume_collection=subscriptions.on_resume_collection,
            expire_incomplete=subscriptions.on_expire_incomplete,
            expire_session=hosted.on_session_timer,
        )

    @property
    def url(self) -> str:
        """Where the API listens, without a trailing slash."""
        return self.world.base_url

    @property
    def clock(self) -> VirtualClock:
        """The fake's time; move it with `advance`."""
        return self.world.clock

    @property
    def settings(self) -> Settings:
        """The account's settings, changeable at any time."""
        return self.world.settings

    @property
    def requests(self) -> list[Logged]:
        """Every API request answered so far, oldest first."""
        return self.api.log

    @property
    def events(self) -> list[Json]:
        """Every event so far, oldest first."""
        return list(self.world.table("event").values())

    def objects(self, kind: str) -> list[Json]:
        """Return the stored objects of a kind (`invoice`, `subscription`, …), oldest first."""
        return list(self.world.table(kind).values())

    # Time

    async def advance(self, seconds: int, *, between: Step | None = None) -> None:
        """Let virtual time pass; see `advance_to`."""
        await self.advance_to(self.clock.now_s + seconds, between=between)

    async def advance_to(self, to_s: int, *, between: Step | None = None) -> None:
        """Jump from timer to timer up to a moment.

        After each moment the deliveries due are sent and answered, then `between` is awaited:
        the place for the receiver to finish its own work before time goes on.
        """
        async with self._moving:
            await self.dispatcher.settle()  # what happened before must not be heard of later
            while True:
                due_s = self.world.next_due_s()
                if due_s is None or due_s > to_s:
                    break
                self.clock.jump_to(due_s)
                while self.world.run_due():
                    pass
                self.dispatcher.wake()
                await self.dispatcher.settle()
                if between is not None:
                    await between()
            self.clock.jump_to(to_s)
            self.dispatcher.wake()
            await self.dispatcher.settle()

    async def settle(self) -> None:
        """Wait until every delivery due now has been answered or has failed."""
        await self.dispatcher.settle()

    async def tick(self) -> None:
        """For ticking clocks: ring timers as the wall moves on, for ever."""
        while True:
            await trio.sleep(TICK_S)
            async with self._moving:
                while self.world.run_due():
                    pass
            self.dispatcher.wake()

    # Webhooks

    def add_endpoint(
        self, url: str, *, secret: str | None = None, events: tuple[str, ...] = ("*",)
    ) -> str:
        """Register a webhook endpoint; returns its signing secret."""
        request = {"url": url, "enabled_events": list(events)}
        made = hooks.create_endpoint(self.world, request, secret=secret)
        found: str = made["secret"]
        return found

    async def release(self, *, shuffle_seed: int | None = None, copies: int = 1) -> None:
        """Send held deliveries, optionally in another order and several times, and wait."""
        waiting = self.dispatcher.held(shuffle_seed=shuffle_seed)
        for delivery in list(waiting):
            for _ in range(copies - 1):
                self.dispatcher.send(delivery.event_id, delivery.endpoint_id)
        if copies > 1:
            self.dispatcher.held(shuffle_seed=shuffle_seed)
        self.faults.holds_deliveries = False
        self.dispatcher.wake()
        await self.dispatcher.settle()

    async def resend(self, event_id: str, *, copies: int = 1) -> None:
        """Deliver an event again and wait for the answers."""
        self.dispatcher.resend(event_id, copies=copies)
        await self.dispatcher.settle()

    # People

    def set_payments(self, customer_id: str, outcome: str, *script: str) -> None:
        """Decide what the customer's payments do: the script first, one each, then `outcome`.

        `succeed`, `fail` (declined) or `none` (no payment method at all).
        """
        control.set_payments(self.world, customer_id, outcome, list(script))

    def give_discount(self, customer_id: str, coupon_id: str) -> Json:
        """Put a coupon on a customer, as in the Dashboard; returns the discount."""
        return discounts.give_customer(self.world, customer_id, coupon_id)

    def complete_checkout(self, session_id: str) -> Json:
        """Let the visitor pay; returns the completed session."""
        return hosted.complete_session(self.world, session_id)

    def change_plan_in_portal(self, session_id: str, price_id: str) -> Json:
        """Let the visitor switch plan; returns the subscription."""
        return hosted.change_plan(self.world, session_id, price_id)

    def cancel_in_portal(self, session_id: str) -> Json:
        """Let the visitor cancel; returns the subscription."""
        return hosted.cancel_in_portal(self.world, session_id)

    # HTTP

    async def answer(self, call: Call) -> Answer | None:
        """Do what the server does with a call: control, hosted page, or API with its faults."""
        if call.path.startswith("/_fake/"):
            return await control.answer(self, call)
        if self.faults.away:
            return None
        if call.path.startswith("/pay/"):
            return visitor.answer(self.world, call)
        fault = self.faults.draw(call.method, call.path)
        answer: Answer | None
        if fault in {RequestFault.DROP_BEFORE, RequestFault.TIMEOUT_BEFORE}:
            answer = None
        elif fault is RequestFault.RATE_LIMITED:
            answer = self.api.refusal(rate_limit_error())
        elif fault is RequestFault.ERROR_BEFORE:
            answer = self.api.refusal(api_error())
        else:
            answer = self.api.answer(call, breaks_after=fault is RequestFault.ERROR_AFTER)
        if fault in {RequestFault.TIMEOUT_BEFORE, RequestFault.TIMEOUT_AFTER}:
            await trio.sleep(self.faults.timeout_s)
        if fault in {RequestFault.DROP_AFTER, RequestFault.TIMEOUT_AFTER}:
            return None
        return answer


@asynccontextmanager
async def open_fake_stripe(
    *,
    seed: int = 0,
    settings: Settings | None = None,
    start_s: int | None = None,
    ticks: bool = False,
    wall_s: Callable[[], int] = wall_time_s,
    host: str = "127.0.0.1",
    port: int = 0,
) -> AsyncIterator[FakeStripe]:
    """Run a fake until the block ends.

    `start_s` is where its clock begins (default: the wall's now); with `ticks` it follows the
    wall between jumps, otherwise it moves only by `advance`. `wall_s` also stamps signatures.
    Port 0 takes a free one.
    """
    began_s = wall_s() if start_s is None else start_s
    clock = VirtualClock(start_s=began_s, ticks=ticks, wall_s=wall_s)
    world = World(clock=clock, seed=seed, settings=settings)
    chance = random.Random(seed + 1)  # noqa: S311 - reproducible on purpose
    fake = FakeStripe(world, Faults(chance=chance), chance)
    async with httpx.AsyncClient(follow_redirects=False) as client, trio.open_nursery() as nursery:

        async def server(task_status: trio.TaskStatus[int]) -> None:
            await serve(fake.answer, host=host, port=port, task_status=task_status)

        bound: int = await nursery.start(server)
        world.base_url = f"http://{host}:{bound}"
        nursery.start_soon(fake.dispatcher.run, client)
        if ticks:
            nursery.start_soon(fake.tick)
        try:
            yield fake
        finally:
            nursery.cancel_scope.cancel()
