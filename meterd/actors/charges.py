"""The charges actor: closed periods become charges, charges become invoice items, once each.

Rule 1: periods become charges in `period_charges`, charges invoice items in `charge_pushing`;
        here is who does which of it when, and what operators decide.
Rule 2: an organization's charges are moved one after another; those of several at once.
Rule 3: one organization's trouble delays nobody's charges but its own. While Stripe itself is
        away, one charge at a time asks whether it is back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import structlog
import trio

from meterd.actors.charge_policy import ChargePolicy
from meterd.actors.charge_pushing import Pusher
from meterd.actors.organizations import Organizations
from meterd.actors.period_charges import PeriodCharges, is_everybodys
from meterd.actors.supervisor import Crash, attempt_async
from meterd.core.ids import fact_id
from meterd.core.organization import AuditEntry
from meterd.core.overage import Charge, ChargeState, Move, charge_json, moved
from meterd.core.supervision import backoff_ms
from meterd.core.units import SECOND_MS
from meterd.errors import PortalClosedError, StoreUnavailableError
from meterd.ports.billing import Billing
from meterd.ports.charges import ChargeFigures, ChargeStore, DueCharge
from meterd.ports.clock import Clock


log = structlog.get_logger(__name__)

BATCH = 200
"""Charges read at once."""

ERROR_CHARACTERS_MAX = 500

AWAY_AFTER = 3
"""Charges in a row that failed before Stripe counts as away."""


@attrs.frozen
class MoveRefused:
    """The charge is in a state that an operator cannot take it out of."""

    state: ChargeState


class Charges:
    """Makes charges of closed periods and brings them to Stripe."""

    def __init__(
        self,
        store: ChargeStore,
        billing: Billing | None,
        organizations: Organizations,
        *,
        clock: Clock,
        jitter: Iterator[float],
        policy: ChargePolicy | None = None,
    ) -> None:
        """Without `billing` charges are made and wait for it."""
        self.policy = policy or ChargePolicy()
        self._store = store
        self._clock = clock
        self._jitter = jitter
        self._kick = trio.Event()
        self._standing = ChargeFigures()
        self._counted_at_ms = 0
        self.last_error: str | None = None
        self._periods = PeriodCharges(
            store, organizations, clock=clock, policy=self.policy, on_error=self._note
        )
        self._pusher: Pusher | None = None
        if billing is not None:
            self._pusher = Pusher(
                store,
                billing,
                clock=clock,
                jitter=jitter,
                policy=self.policy,
                on_error=self._note,
                on_next=self.kick,
            )

    @property
    def failures_in_a_row(self) -> int:
        """Return how many charges' last calls Stripe did not answer, one after another."""
        return 0 if self._pusher is None else self._pusher.failures_in_a_row

    @property
    def is_away(self) -> bool:
        """Tell whether Stripe has not answered lately."""
        return self.failures_in_a_row >= AWAY_AFTER

    @property
    def oldest_waiting_ms(self) -> int:
        """Return for how long the oldest charge on its way has waited; 0 when none is."""
        since_ms = self._standing.oldest_at_ms
        return 0 if since_ms is None else max(0, self._clock.now_ms() - since_ms)

    def count(self, state: ChargeState) -> int:
        """Return how many charges were in a state, at most a poll ago."""
        return self._standing.by_state.get(state, 0)

    @property
    def figures(self) -> dict[str, Any]:
        """Return what an operator sees; of the charges as they were at most a poll ago."""
        counted = {state.value: n for state, n in self._standing.by_state.items()}
        return {
            "pushes": self._pusher is not None,
            "away": self.is_away,
            "failures_in_a_row": self.failures_in_a_row,
            "charges": dict(sorted(counted.items())),
            "oldest_waiting_ms": self.oldest_waiting_ms,
            "last_error": self.last_error,
            "trouble": self.last_error if self.is_away else None,
        }

    def kick(self) -> None:
        """Look for work now; synchronous, never waits."""
        self._kick.set()

    async def run(self) -> None:
        """Charge and push for ever. Errors: OwnershipLostError."""
        failures = 0
        while True:
            self._kick = trio.Event()
            try:
                found = await self.work()
                await self._count()
            except (StoreUnavailableError, PortalClosedError) as error:
                failures += 1
                self._note(error)
                await trio.sleep(self._delay_ms(failures) / SECOND_MS)
                continue
            failures = 0
            if self.is_away:
                tries = self.failures_in_a_row - AWAY_AFTER + 1
                longest_ms = self.policy.away_max_ms
                pause_ms = backoff_ms(tries, least_ms=SECOND_MS, most_ms=longest_ms)
                await trio.sleep(pause_ms / SECOND_MS)
            elif not found:
                with trio.move_on_after(self.policy.poll_ms / SECOND_MS):
                    await self._kick.wait()

    async def work(self) -> int:
        """Do what is due now, once; return how many charges were made or moved.

        Errors: StoreUnavailableError, StoreRejectedError, OwnershipLostError.
        """
        await self._periods.turn()
        return await self._periods.charge() + await self._move_charges()

    async def _count(self) -> None:
        """See how the charges stand, once a second at most."""
        now_ms = self._clock.now_ms()
        if abs(now_ms - self._counted_at_ms) >= SECOND_MS:
            self._standing = await self._store.charge_figures()
            self._counted_at_ms = now_ms

    async def _move_charges(self) -> int:
        if self._pusher is None:
            return 0
        limit = 1 if self.is_away else BATCH
        due = await self._store.due_charges(now_ms=self._clock.now_ms(), limit=limit)
        limiter = trio.CapacityLimiter(self.policy.at_once)
        tally = _Tally()
        async with trio.open_nursery() as nursery:
            for group in _by_organization(due).values():
                nursery.start_soon(self._move_group, self._pusher, group, limiter, tally)
        if tally.error is not None:
            raise tally.error
        return tally.moved

    async def _move_group(
        self,
        pusher: Pusher,
        group: Sequence[DueCharge],
        limiter: trio.CapacityLimiter,
        tally: _Tally,
    ) -> None:
        """Move one organization's charges, one after another."""
        async with limiter:
            for index, due in enumerate(group):
                if tally.error is not None or (index and self.is_away):
                    return
                result = await attempt_async(pusher.advance, due)
                if not isinstance(result, Crash):
                    tally.moved += result
                    continue
                failure = await self._put_off(pusher, due, result.error)
                if failure is not None:
                    tally.error = failure
                    return

    async def _put_off(self, pusher: Pusher, due: DueCharge, error: Exception) -> Exception | None:
        """Try a charge again later; return an error that is not its own."""
        if not is_everybodys(error):
            later = await attempt_async(pusher.postpone, due.charge, error)
            if not isinstance(later, Crash):
                return None
            error = later.error
        if is_everybodys(error):
            return error
        self._note(error)
        organization_id = due.charge.organization_id
        log.error("charge_not_moved", organization=organization_id, exc_info=error)
        return None

    def _note(self, error: Exception) -> str:
        """Keep an error for operators; return it as text that any column can hold."""
        text = f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS_MAX].replace("\0", "")
        self.last_error = text
        return text

    def _delay_ms(self, tries: int) -> float:
        """Return a delay between half of the back-off and all of it."""
        policy = self.policy
        longest_ms = backoff_ms(tries, least_ms=policy.retry_min_ms, most_ms=policy.retry_max_ms)
        return longest_ms * (0.5 + next(self._jitter) / 2)

    # --- operators --------------------------------------------------------------------------

    async def release(
        self, charge_id: str, *, actor: str, reason: str
    ) -> Charge | MoveRefused | None:
        """Let a held charge go to Stripe; None when there is no such charge."""
        return await self._order(charge_id, Move.RELEASE, actor=actor, reason=reason)

    async def write_off(
        self, charge_id: str, *, actor: str, reason: str
    ) -> Charge | MoveRefused | None:
        """Decide that a charge is never made; None when there is no such charge."""
        return await self._order(charge_id, Move.WRITE_OFF, actor=actor, reason=reason)

    async def miss(self, charge: Charge) -> bool:
        """Push a charge again whose item is gone; False when it has moved on meanwhile."""
        now_ms = self._clock.now_ms()
        missed = moved(charge, Move.MISS)
        assert missed is not None, charge
        again = attrs.evolve(
            missed, invoice_item_id=None, invoice_id=None, next_attempt_at_ms=now_ms
        )
        done = await self._store.move_charge(charge, again, at_ms=now_ms)
        self.kick()
        return done

    async def _order(
        self, charge_id: str, what: Move, *, actor: str, reason: str
    ) -> Charge | MoveRefused | None:
        while True:
            charge = await self._store.charge(charge_id)
            if charge is None:
                return None
            after = moved(charge, what)
            if after is None:
                return MoveRefused(charge.state)
            now_ms = self._clock.now_ms()
            after = attrs.evolve(after, reason=None, next_attempt_at_ms=now_ms, tries=0)
            audit = AuditEntry(
                id=fact_id("aud", now_ms, charge.id, what.value, charge.state.value),
                at_ms=now_ms,
                actor=actor,
                action=f"charge.{what.value}",
                reason=reason,
                before_json=charge_json(charge),
                after_json=charge_json(after),
            )
            if await self._store.move_charge(charge, after, at_ms=now_ms, audit=audit):
                self.kick()
                return after


@attrs.define
class _Tally:
    """What became of the charges of one look."""

    moved: int = 0
    error: Exception | None = None


def _by_organization(due: Iterable[DueCharge]) -> Mapping[str, list[DueCharge]]:
    groups: dict[str, list[DueCharge]] = {}
    for each in due:
        groups.setdefault(each.charge.organization_id, []).append(each)
    return groups
