"""The table "Decisions" of docs/reference/stripe.md, row by row, on the real actors.

Every row of the page is a case here and every case is a row of the page: whoever changes one has
to change the other.
"""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from trio.testing import MockClock

from meterd.core.organization import Hold
from meterd.core.plan import Tier
from meterd.core.units import rfc3339
from tests.integration.billing.rig import DAY_S, Rig, open_rig


# The client hands httpx its body in an outdated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")

PAGE = Path(__file__).parents[3] / "docs/reference/stripe.md"
HEADER = "| Stripe says | plan | periods | work | reported as |"

RENEWED = ("2026-02-10", "2026-03-10")
"""The period of the subscription that was renewed two days ago."""

NEW = ("2026-02-12", "2026-03-12")
"""The period of one that begins today."""

MONTH = ("2026-02-01", "2026-03-01")


@attrs.frozen(kw_only=True)
class Outcome:
    """What an organization is in the end."""

    plan: Tier = Tier.STARTER
    is_trialing: bool = False
    period: tuple[str, str] = RENEWED
    follows: str | None = "first"
    """The subscription it follows, by the name the case gives it."""
    is_held: bool = False
    findings: frozenset[str] = frozenset()


@attrs.define
class Account:
    """Stripe on 12 February, and an organization of ours that it knows."""

    rig: Rig
    prices: Mapping[str, str]
    names: dict[str, str] = attrs.Factory(dict)
    """Subscription id to name."""

    def subscribe(self, name: str, tier: str, *, customer: str | None = None) -> Any:
        """Subscribe to a tier, as a new customer unless one is given."""
        made = self.rig.subscribe("org_1", self.prices[tier], customer)
        self.names[made["id"]] = name
        return made

    def find(self, name: str) -> Any:
        """Return Stripe's own record of a subscription."""
        table = self.rig.fake.world.tables["subscription"]
        return next(each for key, each in table.items() if self.names[key] == name)

    async def say(self, name: str = "first", **fields: Any) -> None:
        """Let Stripe have changed a subscription, and tell of it."""
        found = self.find(name)
        found.update(fields)
        self.rig.fake.world.emit("customer.subscription.updated", found)
        await self.rig.hear()

    async def say_of_item(self, **fields: Any) -> None:
        """Let Stripe have changed the first subscription's item, and tell of it."""
        (item,) = self.find("first")["items"]["data"]
        item.update(fields)
        await self.say()

    async def say_of_price(self, **fields: Any) -> None:
        """Let the first subscription have another kind of price, and tell of it."""
        (item,) = self.find("first")["items"]["data"]
        await self.say_of_item(price={**item["price"], **fields})

    async def end(self, name: str) -> None:
        """Cancel a subscription at once."""
        self.rig.call("DELETE", f"/v1/subscriptions/{self.find(name)['id']}")
        await self.rig.hear()

    async def outcome(self) -> Outcome:
        """Return what the organization is now."""
        rig = self.rig
        await rig.organizations.view("org_1")
        cell = rig.organizations.cells.get("org_1")
        assert cell is not None
        assert cell.state is not None
        state = cell.state
        cycle, period = state.profile.cycle, state.period
        return Outcome(
            plan=state.terms.plan,
            is_trialing=state.terms.trialing,
            period=(rfc3339(period.start_ms)[:10], rfc3339(period.end_ms)[:10]),
            follows=None if cycle is None else self.names[cycle.subscription_id],
            is_held=Hold.PAYMENT in state.profile.holds,
            findings=frozenset(each.kind for _, each in rig.database.findings.values()),
        )


async def open_account(rig: Rig) -> Account:
    """Return an account with one subscription to Starter: of 10 January, renewed."""
    tiers = {"starter": 4_900, "pro": 14_900}
    prices = {tier: rig.make_price(tier, cents) for tier, cents in tiers.items()}
    account = Account(rig, prices)
    await rig.create("org_1")
    await rig.advance(9)
    account.subscribe("first", "starter")
    await rig.hear()
    await rig.advance(33)
    assert await account.outcome() == Outcome()
    return account


# --- the cases ----------------------------------------------------------------------------------

Case = Callable[[Account], Awaitable[None]]


def says(**fields: Any) -> Case:
    """Return what changes the subscription."""
    return lambda account: account.say(**fields)


def of_price(**fields: Any) -> Case:
    """Return what changes its price."""
    return lambda account: account.say_of_price(**fields)


def never_began(status: str) -> Case:
    """Return what ends the subscription, lets an operator decide, then tries another in vain."""

    async def change(account: Account) -> None:
        await account.end("first")
        await account.rig.advance(27)
        await account.rig.set_plan("org_1", Tier.ENTERPRISE)
        account.subscribe("second", "pro")
        await account.say("second", status=status)

    return change


async def resume(account: Account) -> None:
    """Suspend it, then say that all is well."""
    await account.say(status="unpaid")
    assert (await account.outcome()).is_held
    await account.say(status="active")


async def stay_past_due(account: Account) -> None:
    """Let the renewal's payment have failed today, and pass the seven days of grace."""
    world = account.rig.fake.world
    renewal = max(world.tables["invoice"].values(), key=lambda each: each["created"])
    renewal.update(status="open", attempt_count=1)
    world.emit("invoice.payment_failed", renewal)
    await account.say(status="past_due")
    account.rig.fake.clock.jump_to(world.now_s + 7 * DAY_S - 60)
    assert await account.outcome() == Outcome()
    account.rig.fake.clock.jump_to(world.now_s + 60)


async def end_unpaid(account: Account) -> None:
    """Suspend it, then end it: Free, and free to go on."""
    await account.say(status="unpaid")
    await account.end("first")


async def suspend_twice(account: Account) -> None:
    """Pause it, then let it be unpaid: two statuses in one row."""
    await account.say(status="paused")
    held = await account.outcome()
    await account.say(status="unpaid")
    assert await account.outcome() == held


async def subscribe_twice(account: Account) -> None:
    """Subscribe to Pro beside Starter."""
    account.subscribe("second", "pro", customer=account.find("first")["customer"])
    await account.rig.hear()


async def end_one_of_two(account: Account) -> None:
    """Subscribe to Pro beside Starter, then end Starter."""
    await subscribe_twice(account)
    await account.end("first")


async def subscribe_as_another(account: Account) -> None:
    """Let somebody else pay for Pro once Starter has ended."""
    await account.end("first")
    account.subscribe("second", "pro")
    await account.rig.hear()


def found(*kinds: str) -> frozenset[str]:
    """Return findings."""
    return frozenset(kinds)


FREE = Outcome(plan=Tier.FREE, follows=None)
AS_SET = Outcome(plan=Tier.ENTERPRISE, follows=None, period=("2026-03-10", "2026-04-01"))
SECOND = Outcome(plan=Tier.PRO, period=NEW, follows="second")

CASES: Mapping[str, tuple[Case, Outcome]] = {
    "`incomplete`": (never_began("incomplete"), AS_SET),
    "`trialing`": (says(status="trialing"), Outcome(is_trialing=True)),
    "`active`": (resume, Outcome()),
    "`past_due`": (stay_past_due, Outcome(is_held=True)),
    "`unpaid`, `paused`": (suspend_twice, Outcome(is_held=True)),
    "`canceled`": (end_unpaid, FREE),
    "`incomplete_expired`": (never_began("incomplete_expired"), AS_SET),
    "a status we do not know": (
        says(status="asleep"),
        Outcome(findings=found("unknown_status")),
    ),
    "`pause_collection`": (
        says(pause_collection={"behavior": "void", "resumes_at": None}),
        Outcome(),
    ),
    "`cancel_at_period_end`": (says(cancel_at_period_end=True), Outcome()),
    "quantity other than 1": (
        lambda account: account.say_of_item(quantity=3),
        Outcome(findings=found("quantity_not_one")),
    ),
    "a price nobody knows": (of_price(metadata={}), Outcome(findings=found("unknown_price"))),
    "a weekly or daily price": (
        of_price(
            recurring={"interval": "week", "interval_count": 1, "usage_type": "licensed"},
            metadata={"meterd_tier": "pro"},
        ),
        Outcome(findings=found("unsupported_interval")),
    ),
    "a currency other than USD": (
        says(currency="eur"),
        Outcome(findings=found("other_currency")),
    ),
    "two live subscriptions": (
        subscribe_twice,
        attrs.evolve(SECOND, findings=found("several_live_subscriptions")),
    ),
    "one of two deleted": (
        end_one_of_two,
        attrs.evolve(SECOND, findings=found("several_live_subscriptions")),
    ),
    "another customer's subscription names the organization": (
        subscribe_as_another,
        attrs.evolve(SECOND, findings=found("other_customer")),
    ),
}


def rows() -> list[str]:
    """Return what the page's table says that Stripe says."""
    lines = iter(PAGE.read_text().splitlines())
    next(line for line in lines if line == HEADER)
    next(lines)
    names = []
    for line in lines:
        if not line.startswith("|"):
            break
        names.append(line.split("|")[1].strip())
    return names


def test_every_row_is_a_case_and_every_case_a_row() -> None:
    """A row that nothing checks is a wish; a case that nobody can read is a secret."""
    assert rows() == list(CASES)


@pytest.mark.parametrize("row", CASES)
async def test_row_is_true(autojump_clock: MockClock, row: str) -> None:
    """What the page says of plan, periods, work and findings is what happens."""
    change, wanted = CASES[row]
    async with open_rig() as rig:
        account = await open_account(rig)
        await change(account)

        assert await account.outcome() == wanted
        for name in account.names.values():
            await account.say(name)
        assert await account.outcome() == wanted, "the same news again changes nothing"
