from __future__ import annotations

import attrs
import pytest

from meterd.core.journal import StoredOrganization, coalesce, restore
from meterd.core.organization import AuditEntry, Facts, Finding, OrganizationState
from meterd.core.plan import Tier
from meterd.core.quota import projected_ms, silent_at_ms
from meterd.core.task import TaskState
from meterd.core.units import HOUR_MS, MINUTE_MS
from tests.organizations import NOON_MS, make_period, make_rules, make_state, make_task, make_terms


def stored_from(state: OrganizationState, *tasks: object) -> StoredOrganization:
    return StoredOrganization(
        organization_id="org_1",
        seq=7,
        profile=state.profile,
        terms=state.terms,
        earlier_terms=(),
        period=state.period,
        closed_periods=(),
        tasks=tasks,  # type: ignore[arg-type]  # tasks, in any order
    )


def test_only_the_latest_values_are_written_and_every_log_entry() -> None:
    """Positions and totals are absolute; audit entries and findings are not."""
    state = make_state()
    audit = AuditEntry(
        id="a", at_ms=0, actor="k", action="x", reason="r", before_json="{}", after_json="{}"
    )
    finding = Finding(id="f", at_ms=0, kind="k", detail_json="{}")
    facts = [
        Facts(
            seq=1,
            tasks=(make_task("new"), make_task("known", elapsed_ms=1)),
            started=frozenset({"new"}),
            periods=(make_period(used_ms=1),),
            audit=audit,
            profile=state.profile,
        ),
        Facts(
            seq=2,
            tasks=(make_task("new", elapsed_ms=2), make_task("known", elapsed_ms=2)),
            periods=(make_period(used_ms=2),),
            terms=make_terms(Tier.PRO, seq=2),
            findings=(finding,),
        ),
    ]
    batch = coalesce("org_1", facts)

    assert (batch.organization_id, batch.seq, batch.rows) == ("org_1", 2, ())
    assert batch.started == (make_task("new", elapsed_ms=2),)
    assert batch.moved == (make_task("known", elapsed_ms=2),)
    assert batch.periods == (make_period(used_ms=2),)
    assert (batch.profile, batch.audits, batch.findings) == (state.profile, (audit,), (finding,))
    assert [terms.seq for terms in batch.terms] == [2]


def test_nothing_is_no_batch() -> None:
    """An empty transaction would move the durable sequence backwards."""
    with pytest.raises(AssertionError):
        coalesce("org_1", [])


def test_unreported_time_counts_as_use_up_to_the_time_out() -> None:
    """A restart may refuse too much, never grant too much; and never more than the time-out."""
    live = make_state()
    long_silent = make_task("t1", reported_at_ms=NOON_MS - HOUR_MS)
    just_heard = make_task("t2", reported_at_ms=NOON_MS - 1_000)
    lost = make_task("t3", state=TaskState.LOST, ended_at_ms=NOON_MS - HOUR_MS)
    state = restore(
        stored_from(live, just_heard, lost, long_silent),
        [],
        rules=live.rules,
        serving_since_ms=NOON_MS,
        now_ms=NOON_MS,
    )

    assert list(state.running) == ["t1", "t2"]
    assert list(state.lost) == ["t3"]
    assert projected_ms(state, NOON_MS) == MINUTE_MS + 1_000
    assert projected_ms(state, NOON_MS + 30_000) == MINUTE_MS + 31_000
    assert projected_ms(state, NOON_MS + 59_000) == projected_ms(state, NOON_MS + 59_999)


def test_time_before_the_period_and_after_now_never_burns() -> None:
    """A new counter starts from zero; a clock that went back must not refund."""
    live = make_state()
    start_ms = live.period.start_ms
    old = make_task("t1", reported_at_ms=start_ms - 5_000)
    ahead = make_task("t2", reported_at_ms=start_ms + 9_000)
    state = restore(
        stored_from(live, old, ahead),
        [],
        rules=make_rules(),
        serving_since_ms=start_ms + 1_000,
        now_ms=start_ms + 1_000,
    )

    assert state.running["t1"].burning_from_ms == start_ms
    assert state.running["t2"].burning_from_ms == start_ms + 1_000
    assert (state.running["t1"].pace_from_ms, state.running["t1"].pace_elapsed_ms) == (
        start_ms + 1_000,
        0,
    )


def test_facts_that_are_not_stored_yet_come_on_top() -> None:
    """After a crash of the actor nothing that was decided is lost, and no number used twice."""
    live = make_state()
    pending = [
        Facts(seq=8, tasks=(make_task("t1"),)),
        Facts(seq=9, periods=(make_period(used_ms=3),)),
    ]
    stale = Facts(seq=7, periods=(make_period(used_ms=1),))
    state = restore(
        stored_from(live),
        [stale, *pending],
        rules=live.rules,
        serving_since_ms=NOON_MS,
        now_ms=NOON_MS,
        last_seq=12,
    )

    assert (state.seq, state.period.used_ms, list(state.running)) == (12, 3, ["t1"])
    assert state.announced is None
    assert attrs.evolve(state.running["t1"]) == make_task("t1")


def test_a_report_from_a_clock_that_ran_ahead_holds_a_slot_for_one_time_out_only() -> None:
    """The clock was set right by an hour: a silent task is lost after its time-out, not then."""
    state = make_state()
    ahead = make_task("ahead", reported_at_ms=NOON_MS + HOUR_MS)
    restored = restore(
        stored_from(state, ahead),
        (),
        rules=state.rules,
        serving_since_ms=NOON_MS,
        now_ms=NOON_MS,
    )

    assert silent_at_ms(restored) == NOON_MS + state.rules.task_timeout_ms
    assert projected_ms(restored, NOON_MS + 1_000) == 1_000
