"""`Directory`: what is stored is listed once each, page by page, and customers belong to one."""

from __future__ import annotations

import random

import pytest

from meterd.core.organization import Hold
from meterd.core.plan import Contract, Tier
from meterd.core.task import Task, TaskState
from meterd.errors import CustomerTakenError
from meterd.ports.directory import OrganizationSummary
from tests.contract.conftest import Store, written
from tests.make import (
    NOW_MS,
    make_batch,
    make_new,
    make_profile,
    make_stored,
    make_task,
    make_terms,
)


async def test_an_id_is_taken_once_and_the_creation_is_audited(store: Store) -> None:
    """The second creation changes nothing of the first."""
    assert await store.create_organization(make_new())
    assert not await store.create_organization(make_new(profile=make_profile(name="other")))

    assert await store.load(["org_1"]) == {"org_1": make_stored()}
    assert await written(store, "audit_log") == 1


async def test_an_organization_is_created_with_contract_and_holds(store: Store) -> None:
    """What an operator gives at creation is there at the first activation."""
    profile = make_profile(holds=frozenset({Hold.PAYMENT}), hold_reason="x", name="Ö")
    terms = make_terms(Tier.ENTERPRISE, Contract(agent_minutes=7))

    await store.create_organization(make_new(profile=profile, terms=terms))

    assert await store.load(["org_1"]) == {"org_1": make_stored(profile=profile, terms=terms)}


async def test_a_stripe_customer_belongs_to_one_organization(store: Store) -> None:
    """Else two tenants would pay one bill."""
    mine = make_profile(stripe_customer_id="cus_1")
    await store.create_organization(make_new(profile=mine))

    with pytest.raises(CustomerTakenError):
        await store.create_organization(make_new("org_2", profile=mine))
    await store.create_organization(make_new("org_2"))
    with pytest.raises(CustomerTakenError):
        await store.claim_customer("org_2", "cus_1")
    await store.claim_customer("org_1", "cus_1")
    await store.claim_customer("org_1", None)
    await store.claim_customer("org_2", "cus_1")

    found = await store.load(["org_1", "org_2"])
    assert found["org_1"].profile == make_profile()
    assert found["org_2"].profile == mine


async def test_pages_of_organizations_are_complete_and_in_order(store: Store) -> None:
    """Keyset pages neither skip nor repeat, whatever is added behind the cursor."""
    names = ["-a", "A", "B-1", "B_1", "a", "b", "zz"]
    for name in reversed(names):
        await store.create_organization(make_new(name))
    await store.flush([make_batch("a", terms=(make_terms(Tier.PRO, seq=2),))])

    seen: list[OrganizationSummary] = []
    after = None
    while page := await store.organizations(after=after, limit=2):
        assert len(page) <= 2
        seen += page
        after = page[-1].organization_id
        if len(seen) == 2:
            await store.create_organization(make_new("-"))

    assert [summary.organization_id for summary in seen] == names
    assert {s.organization_id: s.terms.plan for s in seen}["a"] is Tier.PRO
    assert seen[0] == OrganizationSummary(
        organization_id="-a", profile=make_profile(), terms=make_terms()
    )


async def test_pages_of_tasks_are_complete_newest_first(store: Store) -> None:
    """Tasks that start in the same millisecond are told apart by their id."""
    chance = random.Random(3)
    await store.create_organization(make_new())
    await store.create_organization(make_new("org_2"))
    tasks = [
        make_task(
            f"t{number:02}",
            started_at_ms=NOW_MS + chance.randrange(5),
            state=chance.choice([TaskState.RUNNING, TaskState.FINISHED]),
        )
        for number in range(30)
    ]
    await store.flush(
        [make_batch(started=tuple(tasks)), make_batch("org_2", started=(make_task(),))]
    )
    ordered = sorted(tasks, key=lambda task: (-task.info.started_at_ms, task.task_id))

    for state in (None, TaskState.FINISHED, TaskState.LOST):
        found: list[Task] = []
        after = None
        while page := await store.tasks("org_1", state=state, after=after, limit=7):
            found += page
            after = (page[-1].info.started_at_ms, page[-1].task_id)

        assert found == [task for task in ordered if state is None or task.state is state]

    assert await store.tasks("org_none", state=None, after=None, limit=5) == []
