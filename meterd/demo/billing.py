"""What the story of a month needs: the fake Stripe, a meterd that follows it, and hands for both.

Both run in this process, each behind its own HTTP server, and share one time (`leaps`): a service
in a process of its own would live in the machine's time, in which a month takes a month. But for
its clock this is `meterd serve`: its own PostgreSQL, real sockets, real webhooks, real signatures.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio
from typed_settings import Secret

from meterd.actors.stripe_following import RECONCILED, SIGNALS
from meterd.adapters.catalogue import load_catalogue
from meterd.adapters.stripe.client import StripePayments, open_stripe
from meterd.adapters.stripe.setup import Step, StripeSetup
from meterd.config import Config
from meterd.core.units import HOUR_MS, MINUTE_MS
from meterd.demo.leaps import LeapingClock, SharedTime
from meterd.demo.service import DemoError, Operator
from meterd.setting import Address
from meterd.system import Meterd, run_meterd
from meterd.testing.fake_stripe import FakeStripe, open_fake_stripe


API_KEY = "sk_test_demonstration"

TASK_TIMEOUT_MS = HOUR_MS
"""In leaps of half an hour agents cannot report every few seconds: nobody is lost meanwhile."""

PATIENCE_S = 60
"""Real seconds in which meterd must have done what it was told of."""

LOOK_S = 0.02


@attrs.define(eq=False)
class Customer:
    """An organization as its own application talks to meterd."""

    id: str
    title: str
    http: httpx.AsyncClient

    async def start(self, number: int) -> httpx.Response:
        """Ask to run a task by one of its agents."""
        return await self.http.post("/v1/tasks", json={"agent_id": f"{self.id}-agent-{number}"})

    async def heartbeat(self, task_id: str, elapsed_ms: int) -> Any:
        """Report a task's time and return what it is told."""
        answer = await self.http.post(
            f"/v1/tasks/{task_id}/heartbeat", json={"elapsed_ms": elapsed_ms}
        )
        return _json(answer)

    async def finish(self, task_id: str, elapsed_ms: int) -> None:
        """End a task."""
        body = {"elapsed_ms": elapsed_ms, "outcome": "succeeded"}
        _json(await self.http.post(f"/v1/tasks/{task_id}/finish", json=body))

    async def quota(self) -> Any:
        """Return its quota."""
        return _json(await self.http.get("/v1/quota"))


@attrs.define(eq=False, kw_only=True)
class World:
    """Both sides of the story, and the people who act in it."""

    stripe: FakeStripe
    payments: StripePayments
    """The visitor's and the accountant's way to Stripe's API."""
    operator: Operator
    clients: contextlib.AsyncExitStack
    account: Sequence[Step]
    """What `meterd stripe setup --apply` made of the empty account."""

    @property
    def now(self) -> datetime:
        """Return Stripe's time."""
        return datetime.fromtimestamp(self.stripe.clock.now_s, UTC)

    async def customer(self, organization_id: str, title: str, **fields: Any) -> Customer:
        """Create an organization and return it with a key for its agents and its pages."""
        scopes = ("agent", "read", "manage")
        key = await self.operator.create(organization_id, {"name": title, **fields}, scopes=scopes)
        http = httpx.AsyncClient(
            base_url=self.operator.url, headers={"authorization": f"Bearer {key}"}, timeout=30
        )
        return Customer(organization_id, title, await self.clients.enter_async_context(http))

    # --- time -------------------------------------------------------------------------------

    async def pass_until(self, at: datetime) -> None:
        """Leap from moment to moment of Stripe's; after each meterd does what it was told of."""
        await self.stripe.advance_to(int(at.timestamp()), between=self.caught_up)
        await self.caught_up()

    async def pass_minutes(self, minutes: int) -> None:
        """Let so many minutes of Stripe's pass, in the same way."""
        await self.stripe.advance(minutes * 60, between=self.caught_up)
        await self.caught_up()

    async def caught_up(self) -> None:
        """Return when every event in the inbox is worked off."""

        async def is_empty() -> bool:
            return not await self.operator.list("stripe/events", state="pending")

        await until("meterd did not work its inbox off", is_empty)

    async def charged(self, organization_id: str, *states: str) -> list[Any]:
        """Return an organization's charges when there are some and all are in these states."""
        found: list[Any] = []

        async def is_there() -> bool:
            found[:] = await self.operator.list("charges", organization_id=organization_id)
            return bool(found) and all(each["state"] in states for each in found)

        await until(f"the overage of {organization_id} did not reach Stripe", is_there)
        return found

    # --- people -----------------------------------------------------------------------------

    async def subscribe(self, customer: Customer, plan: str) -> Any:
        """Open a checkout as the customer's application does, and pay on Stripe's page."""
        page = _json(await customer.http.post("/v1/billing/checkout", json={"plan": plan}))
        async with httpx.AsyncClient() as browser:
            paid = await browser.post(page["url"])
        if paid.status_code != httpx.codes.SEE_OTHER:
            raise DemoError(f"Stripe's page answered {paid.status_code}")
        await self.stripe.settle()
        await self.caught_up()
        return await self.operator.get(f"organizations/{customer.id}")

    async def work(self, customer: Customer, *, agents: int, reports: Sequence[int]) -> None:
        """Let agents run one task each, at once, each reporting after so many minutes."""
        tasks = [_json(await customer.start(number))["task_id"] for number in range(agents)]
        minutes = 0
        for at in reports:
            await self.pass_minutes(at - minutes)
            minutes = at
            for task_id in tasks:
                await customer.heartbeat(task_id, minutes * MINUTE_MS)
        for task_id in tasks:
            await customer.finish(task_id, minutes * MINUTE_MS)

    async def pay_open_invoice(self, customer_id: str) -> Any:
        """Let the visitor put another card in and pay what is open."""
        self.stripe.set_payments(customer_id, "succeed")
        (invoice,) = [each for each in self.invoices(customer_id) if each["status"] == "open"]
        await self.payments.client.v1.invoices.pay_async(invoice["id"])
        await self.stripe.settle()
        return invoice

    def invoices(self, customer_id: str) -> list[Any]:
        """Return a customer's invoices at Stripe, oldest first."""
        return [e for e in self.stripe.objects("invoice") if e["customer"] == customer_id]

    def lines(self, invoice: Any) -> list[Any]:
        """Return the lines that the customer reads on an invoice."""
        return self.stripe.world.hidden.lines.get(invoice["id"], [])


@contextlib.asynccontextmanager
async def open_world(
    directory: Path, *, start: datetime, say: Callable[[str], None], database_url: str | None = None
) -> AsyncIterator[World]:
    """Run Stripe and meterd for the length of the block.

    `directory` holds meterd's own PostgreSQL, unless another is to be used, and its reports. The
    account is made first, as the how-to has it: meterd starts with the secret that the
    webhook endpoint got. Errors: DemoError; those of `run_meterd`.
    """
    time = SharedTime(int(start.timestamp()))
    port = _free_port()
    async with (
        open_fake_stripe(seed=1, start_s=int(start.timestamp()), wall_s=time.now_s) as stripe,
        open_stripe(API_KEY, jitter=_halves(), api_base=stripe.url) as payments,
        contextlib.AsyncExitStack() as clients,
    ):
        time.stripe = stripe.clock
        setup = StripeSetup(
            payments,
            load_catalogue(None),
            sorted(SIGNALS - {RECONCILED}),
            f"http://127.0.0.1:{port}/api/webhooks/stripe",
            applies=True,
        )
        await setup.run()
        assert setup.webhook_secret is not None, setup.steps
        admin_key = secrets.token_urlsafe(32)
        config = Config(
            bind=Address("127.0.0.1", port),
            data_dir=directory if database_url is None else None,
            database_url=None if database_url is None else Secret(database_url),
            admin_key=Secret(admin_key),
            stripe_api_key=Secret(API_KEY),
            stripe_api_base=stripe.url,
            stripe_webhook_secrets=(Secret(setup.webhook_secret),),
            task_timeout_ms=TASK_TIMEOUT_MS,
            reports_dir=directory / "reports",
        )  # given in full: nothing in the environment changes it
        async with _running(config, LeapingClock(time.now_ms), say) as meterd:
            headers = {"authorization": f"Bearer {admin_key}"}
            http = httpx.AsyncClient(base_url=meterd.url, headers=headers, timeout=30)
            yield World(
                stripe=stripe,
                payments=payments,
                operator=Operator(meterd.url, await clients.enter_async_context(http)),
                clients=clients,
                account=setup.steps,
            )


@contextlib.asynccontextmanager
async def _running(
    config: Config, clock: LeapingClock, say: Callable[[str], None]
) -> AsyncIterator[Meterd]:
    """Run the service for the length of the block; a signal ends the block and stops it cleanly."""
    async with trio.open_nursery() as service:

        async def run(task_status: trio.TaskStatus[Meterd]) -> None:
            await run_meterd(config, say=say, clock=clock, task_status=task_status)

        meterd = await service.start(run)
        async with trio.open_nursery() as block:
            await block.start(_end_on_signal, block.cancel_scope)
            yield meterd
            block.cancel_scope.cancel()
        meterd.stop()


async def _end_on_signal(
    scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Take signals from the service, which would stop under the story's feet."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


async def until(trouble: str, holds: Callable[[], Awaitable[bool]]) -> None:
    """Return when something holds. Errors: DemoError with the trouble when it does not in time."""
    with trio.move_on_after(PATIENCE_S):
        while not await holds():  # noqa: ASYNC110  # meterd is asked over HTTP, as a client would
            await trio.sleep(LOOK_S)
        return
    raise DemoError(trouble)


def _json(answer: httpx.Response) -> Any:
    if answer.is_error:
        request = answer.request
        raise DemoError(
            f"meterd answered {answer.status_code} to {request.method} {request.url.path}: "
            f"{answer.text}"
        )
    return answer.json()


def _free_port() -> int:
    """Return a port nobody listens on: Stripe must know meterd's address before it starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _halves() -> Iterator[float]:
    """Yield jitter from a seed."""
    chance = random.Random(1)  # noqa: S311  # a show
    while True:
        yield chance.random()
