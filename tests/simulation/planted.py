"""Bugs planted on purpose, each a patch of the real code: the simulation must find every one.

A test that never fails proves nothing. Each function puts one classic mistake into the running
code; `undo` of pytest's MonkeyPatch takes it out again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest

from meterd.actors import cells as cells_module
from meterd.actors.acknowledgements import Acknowledgements
from meterd.actors.cell import Phase
from meterd.actors.cells import Cells
from meterd.actors.ledger import SEQ_MAX
from meterd.actors.recall import Recall
from meterd.adapters.memory.store import MemoryStore, OrganizationRecord
from meterd.client.session import Session
from meterd.core import decide as decide_module, quota
from meterd.core.commands import Beats, Decision, Recalled
from meterd.core.journal import coalesce, restore
from meterd.core.metering import Draft
from meterd.core.organization import DenialReason
from meterd.core.task import Task
from meterd.core.usage import book_agent_time
from meterd.web.agent_session import AgentSession


Plant = Callable[[pytest.MonkeyPatch], None]
BUGS: dict[str, Plant] = {}


def bug(plant: Plant) -> Plant:
    """Register a planted bug under its name."""
    BUGS[plant.__name__] = plant
    return plant


# --- durability -----------------------------------------------------------------------------------


@bug
def acknowledged_before_durable(patch: pytest.MonkeyPatch) -> None:
    """Say yes when it is decided, not when it is committed."""
    patch.setattr(Acknowledgements, "is_durable", lambda *_: True)


@bug
def dropped_facts_are_acknowledged(patch: pytest.MonkeyPatch) -> None:
    """Take what the store rejected for committed, because it waits no longer."""
    on_dropped = Acknowledgements.on_dropped

    def forgetful(
        self: Acknowledgements, organization_id: str, durable_seq: int, error: Exception
    ) -> None:
        self.on_durable(organization_id, SEQ_MAX)
        on_dropped(self, organization_id, durable_seq, error)

    patch.setattr(Acknowledgements, "on_dropped", forgetful)


@bug
def journal_is_not_replayed(patch: pytest.MonkeyPatch) -> None:
    """Read the store after a crash and forget what was not written yet."""

    def stored_only(stored: Any, pending: Any, **settings: Any) -> Any:
        del pending
        return restore(stored, (), **settings)

    patch.setattr(cells_module, "restore", stored_only)


@bug
def unflushed_organizations_leave_the_memory(patch: pytest.MonkeyPatch) -> None:
    """Passivate by idle time alone."""

    async def tidy(self: Cells) -> None:
        for cell in list(self._cells.values()):
            if cell.phase is Phase.READY and cell.mailbox is None:
                self.ledger._journal.pop(cell.organization_id, None)
                del self._cells[cell.organization_id]

    patch.setattr(Cells, "tidy", tidy)


@bug
def a_deposed_process_still_writes(patch: pytest.MonkeyPatch) -> None:
    """Flush without asserting the owner's epoch."""

    async def flush(self: MemoryStore, batches: Sequence[Any]) -> None:
        for batch in batches:
            self._write(batch)

    patch.setattr(MemoryStore, "flush", flush)


# --- counting once --------------------------------------------------------------------------------


@bug
def a_flush_counts_rows_again(patch: pytest.MonkeyPatch) -> None:
    """Retry a lost reply without de-duplication: the same rows under new names."""
    write = MemoryStore._write
    copies = iter(range(10**9))

    def again(self: MemoryStore, batch: Any) -> None:
        record = self.database.organizations[batch.organization_id]
        rows = tuple(
            attrs.evolve(row, id=f"{row.id}-{next(copies)}") if row.id in record.rows else row
            for row in batch.rows
        )
        write(self, attrs.evolve(batch, rows=rows))

    patch.setattr(MemoryStore, "_write", again)


@bug
def totals_are_added_not_replaced(patch: pytest.MonkeyPatch) -> None:
    """Let the totals of an older flush overwrite a newer one's."""

    def put_period(self: OrganizationRecord, seq: int, period: Any) -> None:
        known = self.periods.get(period.start_ms)
        if known is not None and period.used_ms < known[1].used_ms:
            period = known[1]
        self.periods[period.start_ms] = (seq, period)

    patch.setattr(OrganizationRecord, "put_period", put_period)


@bug
def a_resend_is_metered_again(patch: pytest.MonkeyPatch) -> None:
    """Take a repeated or older report for new time."""
    take_report = decide_module._take_report

    def twice(draft: Draft, task: Task, claimed_ms: int) -> bool:
        is_repeat = 0 < claimed_ms <= task.elapsed_ms
        return take_report(draft, task, task.elapsed_ms + claimed_ms if is_repeat else claimed_ms)

    patch.setattr(decide_module, "_take_report", twice)


@bug
def an_ended_task_starts_again(patch: pytest.MonkeyPatch) -> None:
    """Do not ask the store whether a task has existed before."""

    async def never(self: Recall, organization_id: str, task_id: str) -> Recalled:
        del self, organization_id, task_id
        return Recalled(None)

    patch.setattr(Recall, "task", never)


@bug
def what_is_past_a_task_is_dropped(patch: pytest.MonkeyPatch) -> None:
    """Leave the pending time of a task that ends without a row."""
    record = Draft.record

    def lazy(self: Draft, task_id: str) -> None:
        if self.task(task_id).pending_ms >= 1_000:
            record(self, task_id)

    patch.setattr(Draft, "record", lazy)


@bug
def rows_of_a_group_are_coalesced_away(patch: pytest.MonkeyPatch) -> None:
    """Write only the last fact of a group, rows included."""

    def last_only(organization_id: str, facts: Sequence[Any]) -> Any:
        batch = coalesce(organization_id, facts)
        return attrs.evolve(batch, rows=facts[-1].rows)

    patch.setattr("meterd.actors.ledger.coalesce", last_only)


# --- limits ---------------------------------------------------------------------------------------


@bug
def a_slot_is_checked_and_taken_in_two_steps(patch: pytest.MonkeyPatch) -> None:
    """Decide on the number of agents that is stored, not on the one that is taken."""

    def stored_slots(state: Any, agent_id: str | None) -> Any:
        settled = {task.info.agent_id for task in state.running.values() if task.elapsed_ms}
        limit = state.terms.limits.agents
        is_new = agent_id not in settled
        is_full = limit is not None and len(settled) >= limit
        return DenialReason.AGENT_LIMIT_REACHED if is_new and is_full else None

    patch.setattr(quota, "slot_denial", stored_slots)


@bug
def lost_tasks_resume_without_a_slot(patch: pytest.MonkeyPatch) -> None:
    """Let every late report bring its task back."""
    patch.setattr(decide_module, "slot_denial", lambda *_: None)


@bug
def burning_time_is_forgotten_at_a_restart(patch: pytest.MonkeyPatch) -> None:
    """Count projected use from the restart on, as if nobody had worked before."""

    def fresh(stored: Any, pending: Any, **settings: Any) -> Any:
        now_ms = settings["now_ms"]
        tasks = tuple(attrs.evolve(task, reported_at_ms=now_ms) for task in stored.tasks)
        return restore(attrs.evolve(stored, tasks=tasks), pending, **settings)

    patch.setattr(cells_module, "restore", fresh)


@bug
def the_hard_limit_is_not_a_line(patch: pytest.MonkeyPatch) -> None:
    """Bill a report whole when the limit was not reached before it."""
    bill = Draft._bill

    def whole(self: Draft, task_id: str, start_ms: int, end_ms: int) -> None:
        limits = self.terms.limits
        hard_ms = limits.hard_limit_ms
        if hard_ms is None or self.period.used_ms >= hard_ms:
            bill(self, task_id, start_ms, end_ms)
            return
        before = self.terms
        self.terms = attrs.evolve(before, limits=attrs.evolve(limits, hard_limit_ms=None))
        bill(self, task_id, start_ms, end_ms)
        self.terms = before

    patch.setattr(Draft, "_bill", whole)
    patch.setattr(Draft, "_book", book_without_assertion)
    _without_the_short_cut(patch)


@bug
def the_included_line_does_not_split(patch: pytest.MonkeyPatch) -> None:
    """Price a whole row by where it begins."""

    def whole(before_ms: int, duration_ms: int, line_ms: int) -> Any:
        yield duration_ms, before_ms >= line_ms

    patch.setattr("meterd.core.usage.pieces", whole)


@bug
def a_counter_is_zeroed_at_the_period_end(patch: pytest.MonkeyPatch) -> None:
    """End a period by an event that sets its counter to nothing."""
    apply_period = OrganizationRecord.put_period

    def zeroing(self: OrganizationRecord, seq: int, period: Any) -> None:
        if period.closed:
            period = attrs.evolve(period, used_ms=0, recorded_ms=0)
        apply_period(self, seq, period)

    patch.setattr(OrganizationRecord, "put_period", zeroing)


@bug
def time_is_taken_as_claimed(patch: pytest.MonkeyPatch) -> None:
    """Believe every report."""
    patch.setattr(decide_module, "accepted_elapsed_ms", lambda _task, claimed_ms, *_: claimed_ms)
    patch.setattr("meterd.core.heartbeat.CLAIM_TOLERANCE_MS", 2_678_400_000)


# --- actors ---------------------------------------------------------------------------------------


@bug
def timers_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Stop nobody until somebody reports."""
    patch.setattr(Cells, "_wake", lambda *_: None)


@bug
def terms_do_not_close_what_is_pending(patch: pytest.MonkeyPatch) -> None:
    """Price time under the terms of the day it is written, not of the day it ran."""
    patch.setattr(Draft, "record_all", lambda _self: None)


@bug
def a_stopped_process_throws_its_last_facts_away(patch: pytest.MonkeyPatch) -> None:
    """Acknowledge, on a stop, whatever is still waiting."""

    def stop(self: Cells) -> None:
        self.is_stopping = True
        for organization_id in list(self.ledger._journal):
            self.acknowledgements.on_durable(organization_id, SEQ_MAX)

    patch.setattr(Cells, "stop", stop)


# --- around ---------------------------------------------------------------------------------------


@bug
def a_session_answers_before_the_store(patch: pytest.MonkeyPatch) -> None:
    """Send what is owed with whatever becomes durable next."""
    on_durable = AgentSession.on_durable
    patch.setattr(AgentSession, "on_durable", lambda self, _seq: on_durable(self, SEQ_MAX))


@bug
def a_client_forgets_an_end_that_was_not_acknowledged(patch: pytest.MonkeyPatch) -> None:
    """Send `finish` once and take it for settled."""
    message = Session._message

    def once(self: Session, entry: Any, now_ms: int) -> Any:
        said = message(self, entry, now_ms)
        if said["type"] == "finish":
            self._urgent.discard(entry.serial)
        return said

    patch.setattr(Session, "_message", once)


def book_without_assertion(
    self: Draft, period: Any, terms: Any, duration_ms: int, origin: Any
) -> Any:
    booked, rows = book_agent_time(period, terms, duration_ms, origin, ordinal=len(self.rows))
    self.rows.extend(rows)
    return booked


def _without_the_short_cut(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decide_module, "decide_at_once", lambda *_: None)
    patch.setattr(decide_module, "decide_together", lambda *_: Decision(Beats(())))
