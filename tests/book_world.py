"""A seeded month of customers, as plain figures and as what meterd stores of them.

What each customer ran is drawn first, as (day, agent, milliseconds). From that, `stored` makes
batches with the ledger's own core, and a test computes what a report must say with arithmetic of
its own. February 2026, calendar periods, UTC.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from decimal import Decimal

import attrs

from meterd.core.ids import fact_id
from meterd.core.journal import OrganizationBatch
from meterd.core.organization import Hold, Profile
from meterd.core.period import Period, calendar_period
from meterd.core.plan import NO_CONTRACT, Contract, Terms, Tier, resolve
from meterd.core.task import Task, TaskInfo, TaskOutcome, TaskState
from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS
from meterd.core.usage import Origin, Source, UsageRow, book_agent_time
from meterd.ports.directory import NewOrganization
from tests.organizations import CATALOGUE


FEBRUARY_MS = 1_769_904_000_000
"""2026-02-01T00:00:00Z."""


@attrs.frozen(kw_only=True)
class Run:
    """One task: it began at an instant, inside one UTC day, and ran so long."""

    task_id: str
    agent_id: str
    start_ms: int
    ran_ms: int
    outcome: TaskOutcome


@attrs.define(kw_only=True)
class Company:
    """One customer: its plan, what Stripe says of it, and what its agents ran."""

    id: str
    name: str
    tier: Tier
    contract: Contract = NO_CONTRACT
    price_cents: int | None = None
    """A monthly subscription's price; `None`: it has none."""
    status: str = "active"
    runs: list[Run] = attrs.Factory(list)
    held: bool = False
    is_cancelled: bool = False
    """Its subscription ends with February."""

    @property
    def terms(self) -> Terms:
        """Return the terms it has been under since February began."""
        return Terms(
            seq=1,
            effective_at_ms=FEBRUARY_MS,
            plan=self.tier,
            contract=self.contract,
            trialing=False,
            limits=resolve(CATALOGUE, self.tier, self.contract),
            reason="created",
        )

    @property
    def period(self) -> Period:
        """Return its period before anything ran."""
        return calendar_period(FEBRUARY_MS, terms_seq=1)

    def subscription_json(self) -> str | None:
        """Return its subscription as Stripe shows it."""
        if self.price_cents is None:
            return None
        price = {
            "id": f"price_{self.tier.value}",
            "unit_amount": self.price_cents,
            "currency": "usd",
            "recurring": {"interval": "month", "interval_count": 1, "usage_type": "licensed"},
        }
        item = {
            "id": f"si_{self.id}",
            "quantity": 1,
            "price": price,
            "current_period_start": FEBRUARY_MS // 1_000,
            "current_period_end": FEBRUARY_MS // 1_000 + 28 * 86_400,
        }
        return json.dumps(
            {
                "id": f"sub_{self.id}",
                "object": "subscription",
                "customer": f"cus_{self.id}",
                "status": self.status,
                "currency": "usd",
                "items": {"data": [item]},
                "discounts": [],
                "cancel_at_period_end": self.is_cancelled,
                "created": FEBRUARY_MS // 1_000,
            }
        )

    def new(self) -> NewOrganization:
        """Return the organization to create."""
        return NewOrganization(
            organization_id=self.id,
            profile=Profile(
                name=self.name,
                created_at_ms=FEBRUARY_MS,
                holds=frozenset({Hold.OPERATOR} if self.held else ()),
            ),
            terms=self.terms,
            period=self.period,
            created_by="key_admin",
            reason="created",
        )

    def batches(self) -> Iterator[OrganizationBatch]:
        """Yield what meterd would have flushed: each task with its rows, up to the hard limit."""
        period, terms = self.period, self.terms
        for seq, run in enumerate(sorted(self.runs, key=lambda each: each.start_ms), start=1):
            hard_ms = terms.limits.hard_limit_ms
            room_ms = run.ran_ms if hard_ms is None else hard_ms - period.used_ms
            billed_ms = min(run.ran_ms, room_ms)
            rows: tuple[UsageRow, ...] = ()
            if billed_ms:
                origin = Origin(
                    organization_id=self.id,
                    seq=seq,
                    source=Source.TASK,
                    at_ms=run.start_ms + run.ran_ms - 1,
                    task_id=run.task_id,
                    agent_id=run.agent_id,
                )
                used = attrs.evolve(period, used_ms=period.used_ms + billed_ms)
                period, rows = book_agent_time(used, terms, billed_ms, origin, ordinal=0)
            yield OrganizationBatch(
                organization_id=self.id,
                seq=seq,
                rows=rows,
                started=(_task(run, billed_ms, seq),),
                moved=(),
                periods=(period,),
                terms=(),
                profile=None,
                audits=(),
                findings=(),
            )


def _task(run: Run, billed_ms: int, seq: int) -> Task:
    ended_at_ms = run.start_ms + run.ran_ms
    return Task(
        info=TaskInfo(task_id=run.task_id, agent_id=run.agent_id, started_at_ms=run.start_ms),
        state=TaskState.FINISHED,
        outcome=run.outcome,
        elapsed_ms=run.ran_ms,
        metered_ms=billed_ms,
        recorded_ms=billed_ms,
        reported_at_ms=ended_at_ms,
        metered_until_ms=ended_at_ms,
        ended_at_ms=ended_at_ms,
        burning_from_ms=ended_at_ms,
        pace_from_ms=ended_at_ms,
        pace_elapsed_ms=run.ran_ms,
        seq=seq,
    )


def seeded_companies(seed: int, count: int, *, days: int = 28) -> list[Company]:
    """Return customers of all plans, some asleep, some near their limit, some past it."""
    chance = random.Random(seed)
    prices = {Tier.STARTER: 4_900, Tier.PRO: 14_900}
    companies = []
    for number in range(count):
        tier = chance.choice(list(Tier))
        contract = NO_CONTRACT
        if tier is Tier.ENTERPRISE:
            contract = Contract(
                agent_minutes=chance.choice([0, 20_000]),
                base_price_usd=Decimal(chance.choice([900, 2_400])),
            )
        company = Company(
            id=f"org_{number:03}",
            name=f"Company {number}",
            tier=tier,
            contract=contract,
            price_cents=prices.get(tier) if chance.random() < 0.8 else None,
            status=chance.choice(["active", "active", "past_due", "trialing"]),
            held=chance.random() < 0.05,
        )
        appetite = chance.choice([0, 0.02, 0.3, 0.9, 1.3])
        company.runs = list(_runs(chance, company, appetite, days))
        companies.append(company)
    return companies


def _runs(chance: random.Random, company: Company, appetite: float, days: int) -> Iterator[Run]:
    included = max(company.terms.limits.included_minutes, 1_000)
    for day in range(days):
        for number in range(chance.randint(0, 3)):
            most_ms = int(included * MINUTE_MS / 28 * appetite)
            ran_ms = min(23 * HOUR_MS, chance.randint(0, most_ms)) if most_ms else 0
            if not ran_ms:
                continue
            start_ms = FEBRUARY_MS + day * DAY_MS + chance.randint(0, DAY_MS - ran_ms)
            yield Run(
                task_id=fact_id("t", start_ms, company.id, day, number),
                agent_id=f"agent-{chance.randint(1, 3)}",
                start_ms=start_ms,
                ran_ms=ran_ms,
                outcome=chance.choice(list(TaskOutcome)),
            )
