"""Bugs planted in caps: what a customer pays at most, and how many tasks run; see `planted`."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from meterd.actors import cells as cells_module
from meterd.actors.charge_pushing import Pusher
from meterd.core import decide as decide_module, following, heartbeat, metering, quota
from meterd.core.journal import restore
from meterd.core.metering import Draft
from meterd.core.organization import DenialReason
from meterd.core.overage import ChargeState
from meterd.core.plan import resolve
from meterd.errors import PaymentsUnavailableError
from tests.simulation.planted import book_without_assertion, bug


@bug
def the_cap_is_not_a_line(patch: pytest.MonkeyPatch) -> None:
    """Stop at the cap, but bill a report whole that passes it."""
    patch.setattr(metering, "stop_line_ms", _hard_limit_ms)
    patch.setattr(heartbeat, "stop_line_ms", _hard_limit_ms)
    patch.setattr(Draft, "_book", book_without_assertion)


@bug
def nobody_is_stopped_at_the_cap(patch: pytest.MonkeyPatch) -> None:
    """Set timers for the plan's lines only: who reaches the cap hears of it at the next report."""
    next_line_ms = quota.next_line_ms

    def plan_only(state: Any, projected: int) -> int | None:
        with pytest.MonkeyPatch.context() as without:
            without.setattr(quota, "overage_cap_line_ms", lambda *_: None)
            return next_line_ms(state, projected)

    patch.setattr(quota, "next_line_ms", plan_only)


@bug
def a_late_report_passes_the_cap(patch: pytest.MonkeyPatch) -> None:
    """Hold time that ran in an earlier period to its hard limit only."""

    def line_ms(limits: Any, period: Any) -> int | None:
        judge = _hard_limit_ms if period.closed else quota.stop_line_ms
        return judge(limits, period)

    patch.setattr(metering, "stop_line_ms", line_ms)
    patch.setattr(Draft, "_book", book_without_assertion)


@bug
def a_debit_passes_the_cap(patch: pytest.MonkeyPatch) -> None:
    """Let an operator charge what the customer said not to pay."""
    patch.setattr(decide_module, "overage_cap_line_ms", lambda *_: None)
    patch.setattr(Draft, "_book", book_without_assertion)


@bug
def the_cap_is_forgotten_at_a_restart(patch: pytest.MonkeyPatch) -> None:
    """Keep the cap in memory only."""

    def restored(stored: Any, pending: Any, **settings: Any) -> Any:
        return restore(attrs.evolve(stored, terms=_without_cap(stored.terms)), pending, **settings)

    patch.setattr(cells_module, "restore", restored)


@bug
def a_change_of_plan_forgets_the_cap(patch: pytest.MonkeyPatch) -> None:
    """Take limits from the plan and the contract alone."""

    def forgetful(*terms: Any, overage_cap_usd: Any = None, **more: Any) -> Any:
        del overage_cap_usd
        return resolve(*terms, **more)

    patch.setattr(decide_module, "resolve", forgetful)
    patch.setattr(following, "resolve", forgetful)


@bug
def an_agent_runs_any_number_of_tasks(patch: pytest.MonkeyPatch) -> None:
    """Count agents, not their tasks."""
    _allow(patch, DenialReason.AGENT_BUSY)


@bug
def an_organization_runs_any_number_of_tasks(patch: pytest.MonkeyPatch) -> None:
    """Leave the number of tasks to the plan's agents: some plans have no number."""
    _allow(patch, DenialReason.TASK_LIMIT_REACHED)


@bug
def a_push_without_a_reply_is_done(patch: pytest.MonkeyPatch) -> None:
    """Take silence for success: what may have been done is not asked again."""
    postpone = Pusher.postpone

    async def done(self: Pusher, charge: Any, error: Exception) -> None:
        is_silence = isinstance(error, PaymentsUnavailableError)
        if not is_silence or charge.state is not ChargeState.PUSHING:
            await postpone(self, charge, error)
            return
        after = attrs.evolve(charge, state=ChargeState.INVOICED, last_error=None)
        named = attrs.evolve(after, invoice_item_id="ii_unknown", invoice_id="in_unknown")
        await self._put(charge, named)

    patch.setattr(Pusher, "postpone", done)


def _hard_limit_ms(limits: Any, _period: Any) -> int | None:
    limit_ms: int | None = limits.hard_limit_ms
    return limit_ms


def _without_cap(terms: Any) -> Any:
    return attrs.evolve(terms, limits=attrs.evolve(terms.limits, overage_cap_usd=None))


def _allow(patch: pytest.MonkeyPatch, never: DenialReason) -> None:
    slot_denial = quota.slot_denial

    def lenient(state: Any, agent_id: str | None) -> DenialReason | None:
        reason = slot_denial(state, agent_id)
        return None if reason is never else reason

    patch.setattr(quota, "slot_denial", lenient)
    patch.setattr(decide_module, "slot_denial", lenient)
