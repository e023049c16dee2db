"""Bugs planted on the way between closed periods and Stripe's invoices; see `planted`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from meterd.actors import charge_pushing, period_charges
from meterd.actors.charge_pushing import Pusher
from meterd.actors.reconciliation import StripeReconciliation
from meterd.actors.stripe import StripeActor
from meterd.actors.stripe_following import Follower
from meterd.actors.stripe_news import from_payloads
from meterd.adapters.memory.charges import MemoryCharges
from meterd.core import following, overage
from meterd.core.organization import Hold
from meterd.core.overage import ChargeState
from meterd.ports.stripe import Settlement
from tests.simulation.planted import bug


@bug
def a_push_is_tried_again_under_a_new_key(patch: pytest.MonkeyPatch) -> None:
    """Make a key for each try, and trust nothing to be there already."""
    patch.setattr(charge_pushing, "must_renew_key", lambda _charge, _now_ms: True)

    async def nowhere(*_: Any) -> bool:
        return False

    patch.setattr(Pusher, "_found", nowhere)


@bug
def an_old_key_is_replaced_without_a_look(patch: pytest.MonkeyPatch) -> None:
    """Renew the key when it has failed often; do not ask what became of the earlier tries."""

    async def nowhere(*_: Any) -> bool:
        return False

    patch.setattr(Pusher, "_found", nowhere)


@bug
def stripe_is_asked_before_it_is_written_down(patch: pytest.MonkeyPatch) -> None:
    """Create the invoice item first and remember the attempt afterwards."""
    put = Pusher._put

    async def later(self: Pusher, before: Any, after: Any) -> bool:
        if after.state is ChargeState.PUSHING and before.state is ChargeState.NEW:
            return True
        return await put(self, before, after)

    patch.setattr(Pusher, "_put", later)


@bug
def a_period_is_charged_again_after_a_crash(patch: pytest.MonkeyPatch) -> None:
    """Name a charge by chance and not by what it is for, and look for none that is there."""
    numbers = itertools.count()

    def forgetful(bill: Any, review: Any, *, now_ms: int) -> Any:
        found = overage.new_charges(attrs.evolve(bill, charges=()), review, now_ms=now_ms)
        return tuple(attrs.evolve(each, id=f"{each.id}{next(numbers)}") for each in found)

    patch.setattr(period_charges, "new_charges", forgetful)


@bug
def what_is_reported_late_is_never_charged(patch: pytest.MonkeyPatch) -> None:
    """Charge a period once and never look at it again."""
    bills = MemoryCharges.bills

    async def once(self: MemoryCharges, **chosen: Any) -> Sequence[Any]:
        found = await bills(self, **chosen)
        return [each for each in found if not each.charges]

    patch.setattr(MemoryCharges, "bills", once)


@bug
def every_row_is_rounded_to_cents(patch: pytest.MonkeyPatch) -> None:
    """Cut the fractions of a cent off, as an integer conversion does."""

    def cut(costs: Sequence[Any]) -> Mapping[Any, int]:
        return {cost.resource: int(cost.cost_usd * 100) for cost in costs}

    patch.setattr(overage, "targets_cents", cut)


@bug
def a_notice_is_done_before_it_is_followed(patch: pytest.MonkeyPatch) -> None:
    """Mark events first; what they lead to is lost when Stripe or the store is away."""
    settle = Follower.settle

    async def done_first(self: Follower, events: Sequence[Any]) -> None:
        done = {pending.event.id: "applied" for pending in events}
        await self._finish(Settlement(done=done, at_ms=self._clock.now_ms()))
        await settle(self, events)

    patch.setattr(Follower, "settle", done_first)
    _reconcile_nothing(patch)


@bug
def payloads_are_trusted(patch: pytest.MonkeyPatch) -> None:
    """Apply what a notice says, whatever has happened since."""

    async def as_told(self: Follower, subscription_id: str, signals: Any) -> Any:
        del self, subscription_id
        news = from_payloads(signals)
        for known in (news.subscriptions, news.invoices):
            for key, each in dict[str, Any](known).items():
                known[key] = attrs.evolve(each, version="9")
        return news

    patch.setattr(Follower, "_look", as_told)
    _reconcile_nothing(patch)


@bug
def a_notice_that_failed_is_given_up(patch: pytest.MonkeyPatch) -> None:
    """Let an event be dead at its first failure."""

    async def fail(self: StripeActor, events: Sequence[Any], error: Exception) -> None:
        await self._store.give_up([each.event.id for each in events], error=str(error))

    patch.setattr(StripeActor, "_fail", fail)
    _reconcile_nothing(patch)


@bug
def lost_notices_are_never_missed(patch: pytest.MonkeyPatch) -> None:
    """Reconcile nothing: what Stripe could not tell stays unknown."""
    _reconcile_nothing(patch)


@bug
def a_payment_hold_is_never_lifted(patch: pytest.MonkeyPatch) -> None:
    """Suspend who does not pay, and stay with it."""
    with_hold = following.with_payment_hold

    def keep(profile: Any, *, is_placed: bool) -> Any:
        return with_hold(profile, is_placed=is_placed or Hold.PAYMENT in profile.holds)

    patch.setattr(following, "with_payment_hold", keep)


@bug
def a_renewal_zeroes_the_counter(patch: pytest.MonkeyPatch) -> None:
    """Reset the open period's counter when an invoice was paid, as rivals do."""
    follow = following.follow

    def zeroing(state: Any, command: Any, now_ms: int) -> Any:
        if any(each.status == "paid" for each in command.invoices):
            state.period = attrs.evolve(state.period, used_ms=state.period.recorded_ms)
        return follow(state, command, now_ms)

    patch.setattr("meterd.core.decide.follow", zeroing)


def _reconcile_nothing(patch: pytest.MonkeyPatch) -> None:
    """Let nobody hold both sides against each other: that would heal what is looked for."""

    async def nothing(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(differences=())

    patch.setattr(StripeReconciliation, "run", nothing)
