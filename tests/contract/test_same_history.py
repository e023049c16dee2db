"""One random history, told to the twin in memory and to PostgreSQL: every answer is the same.

The other tests here ask what somebody thought of. This one asks what chance thinks of: facts,
events, notices of Stripe and charges, in any order and again, and compares everything that can be
read. What the simulated world proves on the twin is worth as much as this test is.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest

from meterd.adapters.asyncio_thread import open_asyncio_thread
from meterd.adapters.memory.charges import MemoryCharges
from meterd.adapters.memory.store import Database, MemoryStore
from meterd.adapters.memory.stripe import MemoryStripe
from meterd.adapters.postgres.charges import PostgresCharges
from meterd.adapters.postgres.pool import open_postgres_pools
from meterd.adapters.postgres.store import PostgresStore
from meterd.adapters.postgres.stripe import PostgresStripe
from meterd.core.commands import RecordEvents, VoidEvent
from meterd.core.event import UsageEvent
from meterd.core.journal import coalesce
from meterd.core.organization import Facts, OrganizationState
from meterd.core.overage import Move, Review, moved, new_charges
from meterd.core.plan import Contract, Resource, Tier
from meterd.core.units import DAY_MS, MINUTE_MS
from meterd.ports.stripe import Settlement
from tests.contract.conftest import take_ownership
from tests.contract.test_stripe_store import make_event, seen_invoice, seen_subscription
from tests.journeys import live, make_newborn
from tests.make import FixedClock
from tests.organizations import NOON_MS, drive, make_adjust, make_state


pytestmark = pytest.mark.slow

STEPS = 120
SEEDS = (1, 2, 3)
IDS = ("org_1", "org_2")

IN_ANY_ORDER = {"recall_events"}
"""Reads that promise no order."""


@attrs.define
class Twins:
    """The same ports twice; whatever is asked is asked of both, and the answers are compared."""

    pairs: dict[str, tuple[Any, Any]]
    asked: int = 0

    async def ask(self, port: str, name: str, *arguments: Any, **named: Any) -> Any:
        """Return what both answer. Errors: AssertionError when they differ."""
        answers = []
        for store in self.pairs[port]:
            try:
                answers.append(await getattr(store, name)(*arguments, **named))
            except Exception as error:  # noqa: BLE001  # refusals must be the same, too
                answers.append(type(error))
        memory, postgres = answers
        self.asked += 1
        if name in IN_ANY_ORDER and isinstance(memory, list):
            memory, postgres = sorted(memory, key=repr), sorted(postgres, key=repr)
        assert _plain(memory) == _plain(postgres), (port, name, arguments, named)
        return memory


def _plain(answer: Any) -> Any:
    return list(answer) if isinstance(answer, list | tuple) else answer


@pytest.fixture
async def twins(database_url: str) -> AsyncIterator[Twins]:
    """Give every port on both stores, each under an owner of its own."""
    clock, database = FixedClock(NOON_MS), Database()
    memory = MemoryStore(database, epoch=database.take(), clock=clock)

    def owner(customer_id: str | None, named: str | None) -> str | None:
        for key, record in database.organizations.items():
            if customer_id is not None and record.profile.stripe_customer_id == customer_id:
                return key
        return named if named in database.organizations else None

    async with open_asyncio_thread() as portal, open_postgres_pools(portal, database_url) as pools:
        postgres = PostgresStore(pools, epoch=0, clock=clock)
        postgres.epoch = await take_ownership(postgres)
        yield Twins(
            {
                "ledger": (memory, postgres),
                "stripe": (MemoryStripe(owner), PostgresStripe(pools, epoch=postgres.epoch)),
                "charges": (
                    MemoryCharges(database, memory.epoch),
                    PostgresCharges(pools, postgres.epoch),
                ),
            }
        )


def lived(organization_id: str, seed: int) -> tuple[OrganizationState, list[Facts], int]:
    """Return an organization that has worked for three months, and the facts of it."""
    state = attrs.evolve(
        make_state(Tier.STARTER, Contract(agent_minutes=30, grace_percent=2_000)),
        organization_id=organization_id,
    )
    newborn = attrs.evolve(state)
    facts, now_ms = live(state, seed)
    chance = random.Random(seed)
    for number in range(12):
        now_ms += MINUTE_MS
        event = UsageEvent(
            source=chance.choice(["s", "t"]),
            id=f"e{chance.randrange(6)}",
            resource=chance.choice([Resource.API_CALL, Resource.WEBSOCKET_MINUTE]),
            amount=chance.randrange(1, 200_000),
            at_ms=now_ms - chance.choice([0, 30 * DAY_MS]),
        )
        command: Any = RecordEvents(events=[event], recalled=())
        if number % 4 == 3:
            command = VoidEvent(event_id=event.id, source=event.source, reason="x", recalled=())
        if number % 5 == 4:
            label = state.closed_periods[0].label if state.closed_periods else None
            command = make_adjust(chance.choice([-30_000, 90_000]), label=label)
        decision = drive(state, command, now_ms)
        if decision.facts is not None:
            facts.append(decision.facts)
    return newborn, facts, now_ms


@pytest.mark.parametrize("seed", SEEDS)
async def test_both_stores_answer_a_random_history_alike(twins: Twins, seed: int) -> None:
    """Every read after every write, refusals included; the seed names the history."""
    chance = random.Random(seed)
    facts: dict[str, list[Facts]] = {}
    for number, organization_id in enumerate(IDS):
        newborn, told, now_ms = lived(organization_id, 10 * seed + number)
        facts[organization_id] = told
        await twins.ask("ledger", "create_organization", make_newborn(newborn))
    for _ in range(STEPS):
        await _write(twins, chance, facts, now_ms)
        await _read(twins, chance, now_ms)
    for organization_id in IDS:
        await twins.ask("ledger", "flush", [coalesce(organization_id, facts[organization_id])])
    await twins.ask("ledger", "load", list(IDS))
    while bills := await twins.ask("charges", "bills", ended_since_ms=0, limit=9):
        for bill in bills:
            made = new_charges(bill, Review(), now_ms=now_ms)
            await twins.ask("charges", "book", bill, made, [], at_ms=now_ms)
    await _read(twins, chance, now_ms)
    charged = await twins.ask(
        "charges", "charges", state=None, organization_id=None, after=None, limit=500
    )
    assert charged, "a history in which nothing is charged says little"
    assert twins.asked > 5 * STEPS


async def _write(
    twins: Twins, chance: random.Random, facts: dict[str, list[Facts]], now_ms: int
) -> None:
    organization_id = chance.choice(IDS)
    event_id = f"evt_{chance.randrange(9)}"
    match chance.randrange(9):
        case 0 | 1 | 2:
            told = facts[organization_id]
            begin = chance.randrange(0, max(1, len(told) // 4))
            if begin:  # from the start on, so that nothing is missing; and often again
                await twins.ask("ledger", "flush", [coalesce(organization_id, told[:begin])])
                facts[organization_id] = told[max(0, begin - 3) :]
        case 3:
            event = make_event(event_id, f"sub_{chance.randrange(3)}")
            await twins.ask("stripe", "keep_event", event, at_ms=now_ms)
        case 4:
            later_ms = now_ms + chance.randrange(-99, 99)
            await twins.ask(
                "stripe", "postpone", [event_id], error="x", next_attempt_at_ms=later_ms
            )
        case 5:
            call = chance.choice(["give_up", "retry_event"])
            if call == "give_up":
                await twins.ask("stripe", "give_up", [event_id], error="x")
            else:
                await twins.ask("stripe", "retry_event", event_id, at_ms=now_ms)
        case 6:
            await _settle(twins, chance, organization_id, event_id, now_ms)
        case 7:
            for bill in await twins.ask("charges", "bills", ended_since_ms=0, limit=2):
                made = new_charges(bill, Review(), now_ms=now_ms)
                await twins.ask("charges", "book", bill, made, [], at_ms=now_ms)
        case _:
            await _move(twins, chance, now_ms)


async def _settle(
    twins: Twins, chance: random.Random, organization_id: str, event_id: str, now_ms: int
) -> None:
    failed_at_ms = chance.choice([None, now_ms, now_ms - 5_000])
    status = chance.choice(["draft", "open", "paid"])
    known = await twins.ask("stripe", "keep_event", make_event(event_id), at_ms=now_ms)
    del known
    await twins.ask(
        "stripe",
        "settle",
        Settlement(
            organization_id=organization_id,
            subscriptions=(seen_subscription(chance.choice(["active", "canceled"])),),
            invoices=(seen_invoice(status, failed_at_ms=failed_at_ms),),
            done={event_id: "applied"},
            at_ms=now_ms,
        ),
    )


async def _move(twins: Twins, chance: random.Random, now_ms: int) -> None:
    found = await twins.ask(
        "charges", "charges", state=None, organization_id=None, after=None, limit=50
    )
    if not found:
        return
    charge = chance.choice(found)
    after = moved(charge, chance.choice(list(Move)))
    if after is None:
        return
    after = attrs.evolve(
        after,
        attempt=after.attempt + 1,
        key_at_ms=now_ms,
        first_at_ms=now_ms,
        next_attempt_at_ms=now_ms + chance.randrange(-99, 99),
        last_error=chance.choice([None, "busy"]),
    )
    before = chance.choice([charge, charge, attrs.evolve(charge, attempt=charge.attempt + 7)])
    await twins.ask("charges", "move_charge", before, after, at_ms=now_ms)


async def _read(twins: Twins, chance: random.Random, now_ms: int) -> None:
    organization_id = chance.choice(IDS)
    keys = [(source, f"e{number}") for source in ("s", "t") for number in range(6)]
    await twins.ask("ledger", "load", [organization_id, "org_missing"])
    events = await twins.ask("ledger", "recall_events", organization_id, sorted(keys))
    del events
    await twins.ask("ledger", "recall_events_named", organization_id, f"e{chance.randrange(6)}")
    await twins.ask("ledger", "recall_task", organization_id, f"task_{chance.randrange(150)}")
    await twins.ask("ledger", "recall_period", organization_id, "2026-02")
    await twins.ask("ledger", "organizations_at_work")
    busy = chance.choice([(), ("sub_1",)])
    await twins.ask("stripe", "due_events", now_ms=now_ms, busy=busy, subjects_max=2)
    await twins.ask("stripe", "seen", organization_id)
    await twins.ask("stripe", "unsettled_invoices", "sub_1")
    await twins.ask("stripe", "organization_of", None, organization_id)
    await twins.ask("charges", "periods_overdue", now_ms=now_ms + 40 * DAY_MS, limit=9)
    await twins.ask("charges", "due_charges", now_ms=now_ms, limit=9)
    await twins.ask("charges", "charges_ended_since", now_ms - 90 * DAY_MS)
    await twins.ask("charges", "reviewed_organizations", limit=9)
    await twins.ask("charges", "followed_subscriptions")
