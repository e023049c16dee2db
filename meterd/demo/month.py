"""A month of billing: three customers subscribe, renew, pay too late, and the sums agree.

Time leaps, nothing else is pretended: agents report over HTTP, Stripe signs its webhooks, charges
become invoice items, and what the customers owe is added up on both sides at the end.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio
from rich.console import Console
from rich.table import Table

from meterd.adapters.asyncio_thread import open_asyncio_thread
from meterd.adapters.embedded_postgres import attach_embedded_postgres
from meterd.adapters.postgres.audit import AuditResult, audit
from meterd.adapters.postgres.pool import Connection, open_postgres_pools
from meterd.adapters.stripe.billing import StripeBilling
from meterd.demo.billing import Customer, World, open_world, until


START = datetime(2026, 1, 1, 9, tzinfo=UTC)
"""A Thursday morning; the month ends on 1 February, at the same hour."""

RENEWAL = datetime(2026, 2, 1, 9, tzinfo=UTC)

FINALIZED_AFTER = timedelta(hours=1, minutes=1)
"""Stripe keeps a renewal's draft open for an hour, and collects then."""

BEFORE_RENEWAL = timedelta(minutes=31)
"""When tasks begin that run over the renewal."""

PAYMENT_GRACE = timedelta(days=7)

OWED = """
SELECT organization_id, sum(cents)::bigint AS cents FROM (
    SELECT r.organization_id, round(100 * sum(r.total_cost)) AS cents
    FROM usage_records r JOIN subscription_usage u USING (organization_id, billing_period)
    WHERE u.closed GROUP BY r.organization_id, r.billing_period
) periods GROUP BY organization_id HAVING sum(cents) <> 0
"""
"""What the ledger's rows say that closed periods owe: exact, rounded once for each period."""


@attrs.frozen(kw_only=True)
class Books:
    """Both sides at the end of the month, in cents by organization, and what the audit found."""

    owed: Mapping[str, int]
    invoiced: Mapping[str, int]
    items: int
    audited: AuditResult
    differences: int
    """Differences that a reconciliation finds."""

    @property
    def agree(self) -> bool:
        """Tell whether everything is as it should be."""
        return self.owed == self.invoiced and not self.audited.differences and not self.differences


async def run_month(console: Console) -> bool:
    """Tell the story and return whether the sums agree and the audit found nothing.

    Errors: DemoError when something does not happen that must.
    """
    data_dir = Path(tempfile.mkdtemp(prefix="meterd-demo-"))
    try:
        console.print("Starting a fake Stripe, and meterd with its own PostgreSQL ...")
        books: list[Books] = []
        async with open_world(
            data_dir, start=START, say=lambda text: console.print(f"  {text}", style="dim")
        ) as world:
            story = Story(world, console)
            await story.tell()
            books.append(await _books(world, data_dir))
        if not books:  # a signal stopped meterd, and the story with it
            console.print("Stopped.")
            return False
        story.show_invoices()
        return _show(books[0], story.titles, console)
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


class Story:
    """What happens, in order, and a line for each thing."""

    def __init__(self, world: World, console: Console) -> None:
        self._world = world
        self._console = console
        self.titles: dict[str, str] = {}
        self._customer_ids: dict[str, str] = {}

    async def tell(self) -> None:
        """Live through the month."""
        states = Counter(step.state for step in self._world.account)
        self._console.print(
            f"meterd stripe setup --apply: {states['created']} things created "
            "(products, prices, portal, webhook endpoint)"
        )
        self._console.print(
            f"Stripe is {self._world.stripe.url}, meterd is {self._world.operator.url}; "
            "from here on time leaps.\n"
        )
        acme, globex, initech = await self._subscribe()
        await self._work(acme, globex, initech)
        await self._renew(acme, globex, initech)
        await self._pay_late(globex)

    def _say(self, text: str, who: Customer | None = None) -> None:
        title = "" if who is None else who.title
        self._console.print(
            f"[dim]{self._world.now:%d %b %H:%M}[/]  [bold]{title:<8}[/] {text}", soft_wrap=True
        )

    async def _subscribe(self) -> tuple[Customer, Customer, Customer]:
        world = self._world
        acme = await world.customer("acme", "Acme", plan="free")
        globex = await world.customer("globex", "Globex", plan="free")
        contract = {"agent_minutes": 500, "overage_usd_per_minute": "0.04"}
        initech = await world.customer("initech", "Initech", plan="enterprise", contract=contract)
        for customer, plan in ((acme, "starter"), (globex, "pro")):
            found = await world.subscribe(customer, plan)
            self._know(customer, found["stripe_customer_id"])
            (invoice,) = world.invoices(found["stripe_customer_id"])
            self._say(
                f"subscribes on Stripe's page and pays {_usd(invoice['amount_paid'])}: "
                f"plan {found['plan']}",
                customer,
            )
        made = await world.payments.client.v1.customers.create_async({"name": "Initech"})
        body = {"stripe_customer_id": made.id, "reason": "pays by contract"}
        await world.operator.patch("organizations/initech", body)
        self._know(initech, made.id)
        self._say("pays by contract: an operator links its Stripe customer", initech)
        return acme, globex, initech

    def _know(self, customer: Customer, customer_id: str) -> None:
        self.titles[customer.id] = customer.title
        self._customer_ids[customer.id] = customer_id

    async def _work(self, acme: Customer, globex: Customer, initech: Customer) -> None:
        world = self._world
        for day, who, agents, hours in (
            (10, acme, 5, 3),
            (12, globex, 20, 8.5),
            (14, initech, 4, 3),
        ):
            await world.pass_until(START.replace(day=day))
            reports = range(30, int(60 * hours) + 1, 30)
            await world.work(who, agents=agents, reports=reports)
            quota = (await who.quota())["agent_minutes"]
            limit = "" if quota["limit"] is None else f" of {quota['limit']:,}"
            self._say(f"{agents} agents worked: {quota['used']:,} minutes{limit} used", who)

    async def _renew(self, acme: Customer, globex: Customer, initech: Customer) -> None:
        world = self._world
        world.stripe.set_payments(self._customer_ids["globex"], "fail")
        await world.pass_until(RENEWAL - BEFORE_RENEWAL)
        await world.operator.get("organizations/initech")
        (charge,) = await world.charged("initech", "pushed", "invoiced")
        self._say(f"its January is over: {_usage(charge)}, on an invoice of its own", initech)
        await world.work(acme, agents=5, reports=(30, 32, 60))
        self._say("is renewed while five of its agents run: their time is split there", acme)
        for customer in (acme, globex):
            (charge,) = await world.charged(customer.id, "pushed", "invoiced")
            self._say(f"{_usage(charge)}, on the draft of the renewal", customer)
        quota = (await acme.quota())["agent_minutes"]
        self._say(f"February begins from zero, with {quota['used']} minutes of it used", acme)
        await world.pass_until(RENEWAL + FINALIZED_AFTER)
        for customer in (acme, globex):
            invoice = world.invoices(self._customer_ids[customer.id])[-1]
            paid = "paid" if invoice["status"] == "paid" else "the card is declined"
            self._say(f"invoice of {_usd(invoice['amount_due'])}: {paid}", customer)

    async def _pay_late(self, globex: Customer) -> None:
        world = self._world
        for after in (timedelta(hours=2), timedelta(days=4)):
            await world.pass_until(RENEWAL + after)
            (status,) = [
                each["status"]
                for each in world.stripe.objects("subscription")
                if each["customer"] == self._customer_ids["globex"]
            ]
            state = (await globex.quota())["state"]
            self._say(f"Stripe: {status}; meterd: {state}, agents may work (7 days)", globex)
        await world.pass_until(RENEWAL + PAYMENT_GRACE + timedelta(minutes=30))
        task_id = (await globex.start(1)).json()["task_id"]
        self._say("one of its agents starts a task", globex)
        await world.pass_minutes(45)
        told = await globex.heartbeat(task_id, 45 * 60_000)
        refused = await globex.start(2)
        self._say(f"the grace is over: the running task is told to {told['command']}", globex)
        self._say(f"a new one gets {_refusal(refused)}", globex)
        await globex.finish(task_id, 45 * 60_000)
        invoice = await world.pay_open_invoice(self._customer_ids["globex"])
        paid_at = trio.current_time()
        resumed = refused

        async def is_resumed() -> bool:
            nonlocal resumed
            resumed = await globex.start(2)
            return resumed.status_code == httpx.codes.CREATED

        await until("the payment did not resume Globex", is_resumed)
        after_s = trio.current_time() - paid_at
        self._say(
            f"pays {_usd(invoice['amount_paid'])} with another card; {after_s:.2f} s later "
            f"tasks start again: {resumed.status_code}",
            globex,
        )
        await globex.finish(resumed.json()["task_id"], 0)
        for organization_id in self.titles:
            await world.charged(organization_id, "invoiced")

    def show_invoices(self) -> None:
        """Print every invoice with its lines, as the customers got them."""
        table = Table(title="\nInvoices at Stripe", title_justify="left")
        for heading in ("customer", "line", "amount", "invoice", ""):
            is_number = heading in {"amount", "invoice"}
            table.add_column(heading, justify="right" if is_number else "left")
        for organization_id, customer_id in self._customer_ids.items():
            for invoice in self._world.invoices(customer_id):
                for index, line in enumerate(self._world.lines(invoice)):
                    of_all = (_usd(invoice["total"]), invoice["status"])
                    table.add_row(
                        self.titles[organization_id],
                        line["description"],
                        _usd(line["amount"]),
                        *(of_all if index == 0 else ("", "")),
                    )
        self._console.print(table)


async def _books(world: World, data_dir: Path) -> Books:
    """Add up both sides, audit what is stored, and let meterd compare itself with Stripe."""

    async def owed(connection: Connection) -> dict[str, int]:
        return {each["organization_id"]: each["cents"] for each in await connection.fetch(OWED)}

    async with contextlib.AsyncExitStack() as stack:
        portal = await stack.enter_async_context(open_asyncio_thread())
        server = await stack.enter_async_context(attach_embedded_postgres(portal, data_dir))
        pools = await stack.enter_async_context(open_postgres_pools(portal, server.dsn))
        in_ledger = await pools.read("add up what is owed", owed)
        audited = await audit(pools)
    of_customer = {
        each["stripe_customer_id"]: each["id"]
        for each in await world.operator.list("organizations")
    }
    invoiced: Counter[str] = Counter()
    items = await StripeBilling(world.payments).items_since(0)
    for item in items:
        invoiced[of_customer[item.customer_id]] += item.amount_cents
    found = await world.operator.post("reconcile/stripe", dry_run="true")
    return Books(
        owed=in_ledger,
        invoiced=dict(invoiced),
        items=len(items),
        audited=audited,
        differences=len(found["differences"]),
    )


def _show(books: Books, titles: Mapping[str, str], console: Console) -> bool:
    table = Table(title="Overage: the ledger against Stripe", title_justify="left")
    for heading in ("organization", "in the ledger", "on invoices", ""):
        is_text = heading in {"organization", ""}
        table.add_column(heading, justify="left" if is_text else "right")
    for organization_id, title in titles.items():
        owed = books.owed.get(organization_id, 0)
        invoiced = books.invoiced.get(organization_id, 0)
        same = "same" if owed == invoiced else "DIFFERS"
        table.add_row(title, _usd(owed), _usd(invoiced), same)
    console.print(table)
    owed, invoiced = sum(books.owed.values()), sum(books.invoiced.values())
    sign = "=" if books.owed == books.invoiced else "≠"
    console.print(
        f"Σ invoice items at Stripe {_usd(invoiced)} ({books.items} items) "
        f"{sign} Σ overage in the ledger {_usd(owed)}"
    )
    console.print(
        f"meterd reconcile stripe: {books.differences} differences\n"
        f"meterd audit: {books.audited.organizations} organizations checked, "
        f"{len(books.audited.differences)} differences"
    )
    if not books.agree:
        console.print("The sides do not agree: this is a bug, report it.")
    return books.agree


def _usage(charge: Mapping[str, Any]) -> str:
    return (
        f"{charge['quantity']} minutes past the plan cost {_usd(charge['amount_cents'])} "
        f"and are an invoice item"
    )


def _refusal(answer: httpx.Response) -> str:
    problem = answer.json()
    return f"{answer.status_code} {problem['code']}"


def _usd(cents: int) -> str:
    sign = "-" if cents < 0 else ""
    return f"{sign}${abs(cents) // 100:,}.{abs(cents) % 100:02d}"
