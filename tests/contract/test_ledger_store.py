"""`LedgerStore`: what is flushed is read back, once, in order, by the owner only."""

from __future__ import annotations

import random
from decimal import Decimal

import attrs
import pytest

from meterd.adapters.memory import store as memory_store
from meterd.adapters.postgres import loading
from meterd.adapters.postgres.store import PostgresStore
from meterd.core.cycle import Cycle
from meterd.core.organization import Hold
from meterd.core.plan import Contract, Resource, Tier
from meterd.core.task import TaskOutcome, TaskState
from meterd.core.units import DAY_MS, MINUTE_MS
from meterd.core.usage import Kind, Source
from meterd.errors import OwnershipLostError, StoreError, StoreRejectedError
from meterd.ports.trail import DeadLetter
from meterd.web.codec import canonical_json
from tests.contract.conftest import Store, query, take_ownership, written
from tests.make import (
    NOW_MS,
    FixedClock,
    make_audit,
    make_batch,
    make_finding,
    make_new,
    make_period,
    make_profile,
    make_row,
    make_stored,
    make_task,
    make_terms,
)


async def test_an_organization_is_read_back_as_it_was_created(store: Store) -> None:
    """Activation right after creation sees profile, terms and the empty open period."""
    await store.create_organization(make_new())

    found = await store.load(["org_1", "org_missing"])

    assert found == {"org_1": make_stored()}


async def test_of_very_many_lost_tasks_only_the_latest_are_loaded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents that start and vanish all day must not fill the memory; the rest can be recalled."""
    for module in (loading, memory_store):
        monkeypatch.setattr(module, "LOST_KEPT_MAX", 2)
    await store.create_organization(make_new())
    lost = [
        make_task(f"t{number}", state=TaskState.LOST, ended_at_ms=NOW_MS - number)
        for number in range(4)
    ]
    batch = make_batch(started=(*lost, make_task("t9")), moved=())
    await store.flush([batch])

    found = (await store.load(["org_1"]))["org_1"]

    assert sorted(task.task_id for task in found.tasks) == ["t0", "t1", "t9"]
    assert await store.recall_task("org_1", "t3") == lost[3]


async def test_every_value_of_the_core_survives_flush_and_load(store: Store) -> None:
    """A field that is lost on the way is a bill or a limit that changes at a restart."""
    await store.create_organization(make_new())
    contract = Contract(
        agents=None,
        agent_minutes=5_000,
        grace_percent=0,
        overage_usd_per_minute=Decimal("0.012345"),
        base_price_usd=Decimal("1234.50"),
        new_tasks_in_grace=False,
    )
    terms = make_terms(Tier.PRO, contract, seq=2, trialing=True, reason="upgrade: ü")
    capped = attrs.evolve(terms.limits, overage_cap_usd=Decimal("12.50"))
    terms = attrs.evolve(terms, limits=capped)
    closed = make_period(
        closed=True, used_ms=61_000, recorded_ms=61_000, overage_minutes=-1,
        overage_usd=Decimal("-0.050000"), total_usd=Decimal("0.123456"), api_calls=7,
        websocket_ms=8, notified_percents=frozenset({80, 100}),
    )  # fmt: skip
    period = make_period(
        start_ms=closed.end_ms, end_ms=closed.end_ms + 30 * DAY_MS, label="2026-03", terms_seq=2
    )
    running = make_task(
        "t/1", user_id="u", metadata_json='{"a":[1,2.5,null],"b":{"c":"ü"}}',
        initial_elapsed_ms=5, elapsed_ms=9, metered_ms=8, recorded_ms=7, reported_at_ms=NOW_MS + 1,
        metered_until_ms=NOW_MS + 2, seq=3,
    )  # fmt: skip
    lost = make_task("t2", state=TaskState.LOST, ended_at_ms=NOW_MS, seq=3)
    profile = make_profile(
        name="Änder GmbH", stripe_customer_id="cus_1", hold_reason="asked",
        holds=frozenset({Hold.OPERATOR, Hold.PAYMENT}), past_due_since_ms=NOW_MS + 7,
        threshold_percents=(1, 110),
        billing_alerts=frozenset({"several_live_subscriptions:sub_1,sub_2", "quantity_not_one:2"}),
        cycle=Cycle(
            subscription_id="sub_1", start_ms=NOW_MS, end_ms=NOW_MS + 9, anchor_ms=1, months=12
        ),
    )  # fmt: skip

    batch = make_batch(
        seq=3, profile=profile, terms=(terms,), periods=(closed, period), started=(running, lost)
    )
    await store.flush([batch])

    assert (await store.load(["org_1"]))["org_1"] == make_stored(
        seq=3,
        profile=profile,
        terms=terms,
        earlier_terms=(make_terms(),),
        period=period,
        closed_periods=(closed,),
        tasks=(lost, running),
    )
    assert await store.recall_task("org_1", "t/1") == running
    assert await store.recall_period("org_1", closed.label) == (closed, make_terms())


async def test_a_batch_sent_twice_is_written_once(store: Store) -> None:
    """The reply of a commit can be lost, so the ledger actor sends the batch again."""
    await store.create_organization(make_new())
    batch = make_batch(
        rows=(make_row(0), make_row(1)),
        started=(make_task(),),
        periods=(make_period(used_ms=2 * MINUTE_MS, recorded_ms=2 * MINUTE_MS),),
        terms=(make_terms(Tier.PRO, seq=2),),
        audits=(make_audit(),),
        findings=(make_finding(),),
    )

    await store.flush([batch])
    once = await store.load(["org_1"])
    await store.flush([batch])

    assert await store.load(["org_1"]) == once
    assert [await written(store, table) for table in ("usage_records", "tasks", "findings")] == [
        2,
        1,
        1,
    ]
    assert await written(store, "audit_log") == 2  # with the entry of the creation


async def test_an_older_batch_changes_nothing_a_newer_one_wrote(store: Store) -> None:
    """A flush that was given up may still arrive, after its successor."""
    await store.create_organization(make_new())
    newer = make_batch(
        seq=5,
        started=(make_task(elapsed_ms=50, seq=5),),
        periods=(make_period(used_ms=50),),
        profile=make_profile(name="new"),
    )
    older = make_batch(
        seq=4,
        started=(make_task(elapsed_ms=40, seq=4),),
        periods=(make_period(used_ms=40),),
        profile=make_profile(name="old"),
    )
    await store.flush([newer])
    expected = await store.load(["org_1"])

    await store.flush([older])
    await store.flush([attrs.evolve(older, started=(), moved=older.started)])

    assert await store.load(["org_1"]) == expected
    assert expected["org_1"].seq == 5


async def test_a_task_moves_and_ends(store: Store) -> None:
    """Positions of known tasks are updates; a finished task leaves the live set but is recalled."""
    await store.create_organization(make_new())
    await store.flush([make_batch(started=(make_task(),))])
    ended = make_task(
        state=TaskState.FINISHED, outcome=TaskOutcome.FAILED, elapsed_ms=10, metered_ms=5,
        recorded_ms=5, ended_at_ms=NOW_MS + 10, reported_at_ms=NOW_MS + 9, seq=2,
    )  # fmt: skip

    await store.flush([make_batch(seq=2, moved=(ended,))])

    assert (await store.load(["org_1"]))["org_1"].tasks == ()
    assert await store.recall_task("org_1", "task-1") == ended
    assert await store.recall_task("org_1", "task-2") is None
    assert await store.recall_task("org_2", "task-1") is None


async def test_metadata_read_back_is_the_same_text(store: Store) -> None:
    """A start repeated after its task has left the memory must not look like another body."""
    await store.create_organization(make_new())
    metadata = canonical_json(
        {
            "ü\u2028": "\U0001f600",
            "b": [True, None, {"": '"\\'}],
            "a": {"int": 10**30, "tiny": 1e-7, "big": 1e22, "zero": -0.0, "float": 2.50},
        }
    )
    await store.flush([make_batch(started=(make_task(metadata_json=metadata),))])

    recalled = await store.recall_task("org_1", "task-1")

    assert recalled is not None
    assert recalled.info.metadata_json == metadata


async def test_lost_tasks_are_loaded_for_24_hours(store: Store, clock: FixedClock) -> None:
    """Later than that they take no more reports, and are only looked up."""
    await store.create_organization(make_new())
    lost = make_task(state=TaskState.LOST, ended_at_ms=NOW_MS)
    await store.flush([make_batch(started=(lost,))])

    clock.at_ms = NOW_MS + DAY_MS - 1
    before = (await store.load(["org_1"]))["org_1"].tasks
    clock.at_ms = NOW_MS + DAY_MS
    after = (await store.load(["org_1"]))["org_1"].tasks

    assert (before, after) == ((lost,), ())
    assert await store.recall_task("org_1", "task-1") == lost


async def test_closed_periods_are_loaded_as_far_as_late_reports_reach(store: Store) -> None:
    """36 days before the open period's start; older ones are recalled by their label."""
    await store.create_organization(make_new())
    start_ms = make_period().start_ms
    periods = []
    for number in range(5):
        begin_ms = start_ms + number * 30 * DAY_MS
        periods.append(
            make_period(
                start_ms=begin_ms,
                end_ms=begin_ms + 30 * DAY_MS,
                label=make_period().label if number == 0 else f"p{number}",
                closed=number < 4,
            )
        )
    await store.flush([make_batch(periods=tuple(periods))])

    found = (await store.load(["org_1"]))["org_1"]

    assert found.period == periods[4]
    assert found.closed_periods == (periods[3], periods[2])
    assert await store.recall_period("org_1", "p1") == (periods[1], make_terms())
    assert await store.recall_period("org_1", "p4") is None
    assert await store.recall_period("org_1", "p9") is None


async def test_a_process_that_lost_ownership_writes_nothing(store: Store) -> None:
    """The fence: a paused meterd that wakes up must not write over its successor."""
    await store.create_organization(make_new())
    await take_ownership(store)
    everything = make_batch(
        rows=(make_row(),),
        started=(make_task(),),
        moved=(make_task("task-2"),),
        periods=(make_period(used_ms=60_000, recorded_ms=60_000),),
        terms=(make_terms(Tier.PRO, seq=2),),
        profile=make_profile(name="fenced"),
        audits=(make_audit(),),
        findings=(make_finding(),),
    )

    with pytest.raises(OwnershipLostError):
        await store.flush([everything])

    assert await store.load(["org_1"]) == {"org_1": make_stored()}
    for table in ("usage_records", "tasks", "findings"):
        assert await written(store, table) == 0
    assert await written(store, "organization_terms") == 1
    assert await written(store, "audit_log") == 1


POISON = {
    "NUL in an agent's name": make_batch(started=(make_task(agent_id="a\0b"),)),
    "NUL in metadata": make_batch(started=(make_task(metadata_json='{"a":"\\u0000"}'),)),
    "a lone surrogate": make_batch(rows=(make_row(user_id="\ud800"),)),
    "a counter past 64 bits": make_batch(started=(make_task(elapsed_ms=2**63),)),
    "a quantity past 32 bits": make_batch(
        rows=(make_row(quantity=2**31, quantity_ms=2**31 * MINUTE_MS),)
    ),
    "a cost past its column": make_batch(
        rows=(
            make_row(
                quantity=20_000,
                kind=Kind.OVERAGE,
                unit_cost_usd=Decimal("0.5"),
                total_cost_usd=Decimal(10_000),
            ),
        )
    ),
    "a cost that is no product": make_batch(rows=(make_row(total_cost_usd=Decimal(1)),)),
    "unknown terms": make_batch(rows=(make_row(terms_seq=9),)),
    "an unknown period": make_batch(rows=(make_row(billing_period="1999-01"),)),
    "a period under unknown terms": make_batch(periods=(make_period(terms_seq=9),)),
    "more recorded than used": make_batch(periods=(make_period(used_ms=1, recorded_ms=2),)),
    "more billed than reported": make_batch(started=(make_task(metered_ms=1),)),
    "an unknown organization": make_batch("org_none"),
}


@pytest.mark.parametrize("name", POISON)
async def test_poison_is_rejected_and_nothing_of_the_flush_is_written(
    store: Store, name: str
) -> None:
    """The ledger actor sets the organization aside; a half-written flush would be a wrong bill."""
    await store.create_organization(make_new())
    await store.create_organization(make_new("org_2"))
    healthy = make_batch("org_2", started=(make_task(),), rows=(make_row(5),))

    with pytest.raises(StoreRejectedError):
        await store.flush([healthy, POISON[name]])

    assert await store.load(["org_1", "org_2"]) == {
        "org_1": make_stored(),
        "org_2": make_stored("org_2"),
    }
    assert await written(store, "usage_records") == 0


async def test_a_customer_of_another_organization_is_rejected(store: Store) -> None:
    """Two organizations with one Stripe customer would pay each other's bills."""
    taken = make_profile(stripe_customer_id="cus_1")
    await store.create_organization(make_new(profile=taken))
    await store.create_organization(make_new("org_2"))

    with pytest.raises(StoreRejectedError):
        await store.flush([make_batch("org_2", profile=taken)])

    assert (await store.load(["org_2"]))["org_2"].profile == make_profile()


async def test_organizations_with_running_tasks_are_at_work(store: Store) -> None:
    """They are activated at a start, so that limits are enforced without waiting for a report."""
    for number in range(4):
        await store.create_organization(make_new(f"org_{number}"))
    lost = make_task("t1", state=TaskState.LOST, ended_at_ms=NOW_MS)
    ended = make_task("t2", state=TaskState.FINISHED, ended_at_ms=NOW_MS)
    await store.flush(
        [
            make_batch("org_3", started=(make_task("a"), make_task("b"))),
            make_batch("org_1", started=(make_task("a"), lost)),
            make_batch("org_0", started=(lost, ended)),
        ]
    )

    assert await store.organizations_at_work() == ["org_1", "org_3"]


async def test_a_dead_letter_is_kept_once(store: Store) -> None:
    """Burying is repeated like a flush."""
    letter = DeadLetter(
        id="dlq_1", at_ms=NOW_MS, address="organization/org_1", kind="facts", error="refused"
    )

    await store.bury([letter])
    await store.bury([letter, attrs.evolve(letter, id="dlq_2", error="again")])
    await store.bury([])

    assert await written(store, "dead_letters") == 2


async def test_many_organizations_in_one_flush_keep_apart(store: Store) -> None:
    """Columns are arrays over all organizations: one slip and a tenant pays for another."""
    chance = random.Random(7)
    names = [f"org_{number}" for number in range(20)]
    for name in names:
        await store.create_organization(make_new(name))
    batches = []
    for number, name in enumerate(names):
        used_ms = chance.randrange(10**9)
        task = make_task(f"task-{name}", agent_id=f"agent-{name}", elapsed_ms=used_ms, seq=number)
        period = make_period(used_ms=used_ms)
        batches.append(make_batch(name, seq=number + 1, started=(task,), periods=(period,)))

    await store.flush(batches)

    assert await store.load(names) == {
        batch.organization_id: make_stored(
            batch.organization_id, seq=batch.seq, period=batch.periods[0], tasks=batch.started
        )
        for batch in batches
    }


async def test_an_empty_flush_writes_nothing(store: Store) -> None:
    """It is not even a question to the database."""
    await take_ownership(store)

    await store.flush([])


async def test_the_columns_others_read_follow_from_the_counters(store: Store) -> None:
    """Whole minutes are floored, cents are rounded half-up once, the limit is the terms'."""
    if not isinstance(store, PostgresStore):
        return
    await store.create_organization(make_new())
    period = make_period(
        used_ms=119_999, recorded_ms=60_000, terms_seq=2, total_usd=Decimal("0.125"),
        overage_usd=Decimal("-0.005"), api_calls=3,
    )  # fmt: skip
    await store.flush([make_batch(periods=(period,), terms=(make_terms(Tier.PRO, seq=2),))])

    (found,) = await query(store, "SELECT * FROM subscription_usage")

    assert found["agent_minutes_used"] == 1
    assert found["agent_minutes_limit"] == 10_000
    assert found["plan_tier"] == "pro"
    assert found["api_calls_used"] == 3
    assert found["total_cost_usd"] == Decimal("0.13")
    assert found["overage_charges_usd"] == Decimal("-0.01")
    assert found["billing_period"] == "2026-02"


async def test_a_period_keeps_its_own_plan_when_the_plan_changes_later(store: Store) -> None:
    """The plan of a closed period is the one it was metered under."""
    if not isinstance(store, PostgresStore):
        return
    await store.create_organization(make_new())
    closed = make_period(closed=True)
    after = make_period(start_ms=closed.end_ms, end_ms=closed.end_ms + 1, label="x", terms_seq=2)
    await store.flush([make_batch(periods=(closed, after), terms=(make_terms(Tier.PRO, seq=2),))])

    found = await query(store, "SELECT plan_tier FROM subscription_usage ORDER BY period_start")

    assert [record["plan_tier"] for record in found] == ["starter", "pro"]


async def test_a_row_is_stored_as_it_was_decided(store: Store) -> None:
    """Every column of the ledger, for a credit with all optional fields."""
    await store.create_organization(make_new())
    row = make_row(
        quantity=-3, quantity_ms=-180_000, unit_cost_usd=Decimal("0.05"), kind=Kind.OVERAGE,
        total_cost_usd=Decimal("-0.150000"), source=Source.ADJUSTMENT, recorded_before_ms=999,
        task_id="t", agent_id="a", user_id="u", metadata_json='{"reason":"x"}', seq=4,
    )  # fmt: skip
    await store.flush([make_batch(seq=4, rows=(row,))])

    if isinstance(store, PostgresStore):
        (found,) = await query(store, "SELECT * FROM usage_records")
        assert found["id"] == row.id
        assert found["resource_type"] == Resource.AGENT_MINUTE.value
        assert (found["quantity"], found["quantity_ms"]) == (-3, -180_000)
        assert (found["unit_cost"], found["total_cost"]) == (Decimal("0.05"), Decimal("-0.15"))
        assert (found["kind"], found["source"]) == ("overage", "adjustment")
        assert (found["task_id"], found["agent_id"], found["user_id"]) == ("t", "a", "u")
        assert (found["recorded_before_ms"], found["terms_seq"], found["seq"]) == (999, 1, 4)
        assert found["metadata"] == '{"reason": "x"}'
    else:
        assert store.database.organizations["org_1"].rows == {row.id: row}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE usage_records SET quantity = 0",
        "DELETE FROM usage_records",
        "TRUNCATE usage_records CASCADE",
        "UPDATE organization_terms SET reason = ''",
        "DELETE FROM organization_terms",
        "UPDATE audit_log SET reason = ''",
        "DELETE FROM audit_log",
    ],
)
async def test_the_database_itself_refuses_to_change_the_ledger(
    store: Store, statement: str
) -> None:
    """Append-only holds for people with psql too, and a lesser role does not get that far."""
    if not isinstance(store, PostgresStore):
        return
    await store.create_organization(make_new())
    await store.flush([make_batch(rows=(make_row(),))])

    with pytest.raises(StoreError, match="append-only|permission denied"):
        await query(store, statement)
