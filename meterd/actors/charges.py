"""The charges actor: closed periods become charges, charges become invoice items, once each.

Rule 1: what is about to be asked of Stripe is durable before it is asked: the attempt, its key,
        its draft. After a crash the same is asked again, under the same key.
Rule 2: whoever asks looks first, also the first time: the database may be a restored one. An
        item with the charge's name in its metadata is the charge's, whatever became of the reply.
Rule 3: an attempt that Stripe refuses for its draft is followed by one without: the item is
        pending and rides the customer's next invoice. Any other refusal parks the charge.
Rule 4: pending items of an organization that no monthly renewal will sweep get an invoice of
        their own; that the item is still pending is what makes it safe to ask for it again.
Rule 5: one organization's trouble delays nobody's charges but its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs
import structlog
import trio

from meterd.actors.organizations import Organizations
from meterd.actors.supervisor import Crash, attempt_async
from meterd.billing_ports import (
    KEY_REUSED,
    Billing,
    ChargeStore,
    DueCharge,
    InvoiceItem,
    NewItem,
)
from meterd.core.ids import fact_id
from meterd.core.organization import AuditEntry
from meterd.core.overage import (
    IN_FLIGHT_MS,
    KEY_TRIES_MAX,
    Charge,
    ChargeState,
    Move,
    PeriodBill,
    Review,
    charge_json,
    is_ready,
    moved,
    must_renew_key,
    new_charges,
    parked_finding,
)
from meterd.core.subscription import USD
from meterd.core.supervision import backoff_ms
from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from meterd.errors import (
    MeterdError,
    OwnershipLostError,
    PaymentsRejectedError,
    PaymentsUnavailableError,
    PortalClosedError,
    StoreUnavailableError,
)
from meterd.ports import Clock


log = structlog.get_logger(__name__)

BATCH = 200
"""Periods or charges read at once."""

LATE_MS = 62 * DAY_MS
"""Events reach back 35 days: periods that ended before this are looked at once an hour."""

CLOCKS_APART_MS = 2 * DAY_MS
"""How far ahead of Stripe's our clock may have been when items are searched by their creation."""

ERROR_CHARACTERS_MAX = 500

AWAY_AFTER = 3
"""Charges in a row that failed before Stripe counts as away."""


@attrs.frozen(kw_only=True)
class ChargePolicy:
    """How charges are made and pushed."""

    review: Review = attrs.Factory(Review)
    wait_ms: int = 10 * MINUTE_MS
    """How long a closed period waits for tasks that have not reported past its end."""
    poll_ms: int = 5_000
    at_once: int = 8
    """Organizations whose charges are moved at the same time."""
    retry_min_ms: int = 2_000
    retry_max_ms: int = 10 * MINUTE_MS
    look_min_ms: int = 2 * HOUR_MS
    """First look whether a pushed item's invoice was finalized; a draft lives about an hour."""
    look_max_ms: int = DAY_MS
    away_max_ms: int = MINUTE_MS


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
        self._billing = billing
        self._organizations = organizations
        self._clock = clock
        self._jitter = jitter
        self._kick = trio.Event()
        self._swept_at_ms: int | None = None
        self._failures_in_a_row = 0
        self.last_error: str | None = None

    @property
    def is_away(self) -> bool:
        """Tell whether Stripe has not answered lately."""
        return self._failures_in_a_row >= AWAY_AFTER

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
            except (StoreUnavailableError, PortalClosedError) as error:
                failures += 1
                self.last_error = str(error)
                await trio.sleep(self._delay_ms(failures) / SECOND_MS)
                continue
            failures = 0
            if self.is_away:
                tries = self._failures_in_a_row - AWAY_AFTER + 1
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
        await self._turn_periods()
        return await self._charge_periods() + await self._move_charges()

    # --- periods become charges -------------------------------------------------------------

    async def _turn_periods(self) -> None:
        """Let organizations nobody asks for notice that their period is over."""
        now_ms = self._clock.now_ms()
        for organization_id in await self._store.periods_overdue(now_ms=now_ms, limit=BATCH):
            try:
                snapshot = await self._organizations.snapshot(organization_id)
                await self._organizations.durable(organization_id, snapshot.seq)
            except (OwnershipLostError, StoreUnavailableError):
                raise
            except MeterdError as error:  # quarantined, or stopping: the next look
                log.warning("period_not_turned", organization=organization_id, error=str(error))

    async def _charge_periods(self) -> int:
        now_ms = self._clock.now_ms()
        is_sweep = self._swept_at_ms is None or now_ms - self._swept_at_ms >= HOUR_MS
        since_ms = 0 if is_sweep else max(0, now_ms - LATE_MS)
        bills = await self._store.bills(ended_since_ms=since_ms, limit=BATCH)
        if is_sweep and len(bills) < BATCH:
            self._swept_at_ms = now_ms
        reviewed = await self._reviewed() if bills else frozenset()
        made = 0
        for bill in bills:
            if not is_ready(bill, now_ms=now_ms, wait_ms=self.policy.wait_ms):
                continue
            result = await attempt_async(self._charge, bill, reviewed, now_ms)
            if isinstance(result, Crash):
                _pass_on(result.error)
                self._note(bill.organization_id, "period_not_charged", result.error)
            else:
                made += result
        return made

    async def _reviewed(self) -> frozenset[str]:
        first = self.policy.review.first
        if not first:
            return frozenset()
        return frozenset(await self._store.reviewed_organizations(limit=first))

    async def _charge(self, bill: PeriodBill, reviewed: frozenset[str], now_ms: int) -> int:
        known = attrs.evolve(
            bill,
            is_reviewed=bill.organization_id in reviewed,
            reviewed_organizations=len(reviewed),
        )
        charges = new_charges(known, self.policy.review, now_ms=now_ms)
        parked = [charge for charge in charges if charge.state is ChargeState.PARKED]
        findings = [parked_finding(charge, now_ms) for charge in parked]
        await self._store.book(bill, charges, findings, at_ms=now_ms)
        for charge in charges:
            log.info(
                "charge_made",
                charge=charge.id,
                organization=charge.organization_id,
                cents=charge.amount_cents,
                state=charge.state.value,
            )
        return len(charges)

    # --- charges become invoice items -------------------------------------------------------

    async def _move_charges(self) -> int:
        if self._billing is None:
            return 0
        limit = 1 if self.is_away else BATCH
        due = await self._store.due_charges(now_ms=self._clock.now_ms(), limit=limit)
        limiter = trio.CapacityLimiter(self.policy.at_once)
        tally = _Tally()
        async with trio.open_nursery() as nursery:
            for group in _by_organization(due).values():
                nursery.start_soon(self._move_group, self._billing, group, limiter, tally)
        if tally.error is not None:
            raise tally.error
        return tally.moved

    async def _move_group(
        self,
        billing: Billing,
        group: Sequence[DueCharge],
        limiter: trio.CapacityLimiter,
        tally: _Tally,
    ) -> None:
        """Move one organization's charges, one after another."""
        async with limiter:
            for index, due in enumerate(group):
                if tally.error is not None or (index and self.is_away):
                    return
                result = await attempt_async(self._advance, billing, due)
                if not isinstance(result, Crash):
                    tally.moved += 1
                    continue
                result = await attempt_async(self._postpone, due.charge, result.error)
                if isinstance(result, Crash):
                    if _is_everybodys(result.error):
                        tally.error = result.error
                        return
                    self._note(due.charge.organization_id, "charge_not_moved", result.error)

    async def _advance(self, billing: Billing, due: DueCharge) -> None:
        """Bring a charge one step on. Errors: PaymentsUnavailableError, the store's."""
        match due.charge.state:
            case ChargeState.NEW:
                await self._begin(billing, due)
            case ChargeState.PUSHING:
                await self._resume(billing, due)
            case ChargeState.PUSHED:
                await self._look(billing, due)
            case state:
                raise AssertionError(state)
        self._failures_in_a_row = 0

    async def _begin(self, billing: Billing, due: DueCharge) -> None:
        """Push a charge for the first time, or again after a person has released it."""
        charge = due.charge
        if due.customer_id is None:
            held = attrs.evolve(_after(charge, Move.UNLINK), reason="no Stripe customer")
            await self._put(charge, held)
            return
        whom = attrs.evolve(charge, customer_id=due.customer_id)
        if await self._found(billing, due, whom):
            return
        is_moved = charge.customer_id not in {None, due.customer_id}
        if is_moved and await self._found(billing, due, charge):
            return
        await self._attempt(billing, due, whom, await self._draft(billing, due))

    async def _resume(self, billing: Billing, due: DueCharge) -> None:
        """Push again what may or may not have been pushed: look, then ask under the same key."""
        charge = due.charge
        if await self._found(billing, due, charge):
            return
        if must_renew_key(charge, self._clock.now_ms()):
            draft_id = await self._draft(billing, due)
            await self._attempt(billing, due, charge, draft_id)
        else:
            await self._ask(billing, due, charge)

    async def _draft(self, billing: Billing, due: DueCharge) -> str | None:
        if due.cycle_subscription_id is None:
            return None
        return await billing.open_draft(due.cycle_subscription_id)

    async def _found(self, billing: Billing, due: DueCharge, charge: Charge) -> bool:
        """Look for the item: a reply may be lost, or a database that knew it, if this is a copy."""
        customer_id = charge.customer_id
        assert customer_id is not None, charge
        since_ms = charge.period_end_ms - CLOCKS_APART_MS
        for item in await billing.items_of(customer_id, since_ms=since_ms):
            if item.charge_id == charge.id:
                await self._land(due, charge, item)
                return True
        return False

    async def _attempt(
        self, billing: Billing, due: DueCharge, charge: Charge, draft_id: str | None
    ) -> None:
        """Make a new attempt durable, then ask. Its key names parameters that never change."""
        now_ms = self._clock.now_ms()
        begun = attrs.evolve(
            _after(charge, Move.ATTEMPT),
            attempt=charge.attempt + 1,
            key_at_ms=now_ms,
            first_at_ms=now_ms if charge.first_at_ms is None else charge.first_at_ms,
            tries=0,
            next_attempt_at_ms=now_ms + self.policy.retry_min_ms,
            last_error=None,
            invoice_id=draft_id,
            reason=None,
        )
        if await self._put(charge, begun):
            await self._ask(billing, due, begun)

    async def _ask(self, billing: Billing, due: DueCharge, charge: Charge) -> None:
        assert charge.customer_id is not None, charge
        new = NewItem(
            customer_id=charge.customer_id,
            invoice_id=charge.invoice_id,
            currency=USD,
            amount_cents=charge.amount_cents,
            description=charge.description,
            period_start_ms=charge.period_start_ms,
            period_end_ms=charge.period_end_ms,
            metadata=_metadata(charge),
            idempotency_key=charge.idempotency_key,
        )
        try:
            item = await billing.add_item(new)
        except PaymentsUnavailableError as error:
            await self._postpone(charge, error)
        except PaymentsRejectedError as error:
            # No draft any more, or a full one; or another version of meterd has used the key, and
            # what came of that was looked for just now.
            if charge.invoice_id is not None or error.code == KEY_REUSED:
                await self._attempt(billing, due, charge, None)
                return
            log.warning("charge_refused", charge=charge.id, error=str(error))
            now_ms = self._clock.now_ms()
            reason = str(error)[:ERROR_CHARACTERS_MAX]
            refused = attrs.evolve(_after(charge, Move.REFUSE), reason=reason, last_error=reason)
            findings = [parked_finding(refused, now_ms)]
            await self._store.move_charge(charge, refused, at_ms=now_ms, findings=findings)
        else:
            await self._land(due, charge, item)

    async def _land(self, due: DueCharge, charge: Charge, item: InvoiceItem) -> None:
        now_ms = self._clock.now_ms()
        is_alone = item.invoice_id is None and due.cycle_months != 1
        landed = attrs.evolve(
            _after(charge, Move.LAND),
            invoice_item_id=item.id,
            invoice_id=item.invoice_id,
            tries=0,
            next_attempt_at_ms=now_ms + (0 if is_alone else self.policy.look_min_ms),
            last_error=None,
            reason=None,
        )
        if await self._put(charge, landed):
            log.info("charge_pushed", charge=charge.id, item=item.id, invoice=item.invoice_id)
            if is_alone:
                self.kick()

    # --- invoice items become invoices ------------------------------------------------------

    async def _look(self, billing: Billing, due: DueCharge) -> None:
        """Follow a pushed item to its invoice; make one where no renewal will."""
        charge = due.charge
        assert charge.invoice_item_id is not None, charge
        item = await billing.item(charge.invoice_item_id)
        if item is None:  # deleted by a person: the reconciliation tells, and repairs
            await self._look_later(charge, error="the invoice item is gone from Stripe")
            return
        if item.invoice_id is None:
            if due.cycle_months != 1:
                # The same key while the outcome is unknown; another one if it keeps failing.
                key = f"meterd:invoice:{charge.id}:{charge.attempt}:{charge.tries // 3}"
                assert charge.customer_id is not None, charge
                invoice_id = await billing.invoice_pending(charge.customer_id, idempotency_key=key)
                log.info("invoice_made", invoice=invoice_id, organization=charge.organization_id)
            await self._look_later(charge)
            return
        status = await billing.invoice_status(item.invoice_id)
        if status in {None, "draft"}:
            await self._look_later(attrs.evolve(charge, invoice_id=item.invoice_id))
            return
        settled = attrs.evolve(
            _after(charge, Move.SETTLE), invoice_id=item.invoice_id, last_error=None
        )
        await self._put(charge, settled)

    async def _look_later(self, charge: Charge, *, error: str | None = None) -> None:
        policy = self.policy
        tries = charge.tries + 1
        wait_ms = backoff_ms(tries, least_ms=policy.look_min_ms, most_ms=policy.look_max_ms)
        now_ms = self._clock.now_ms()
        later = attrs.evolve(
            charge, tries=tries, next_attempt_at_ms=now_ms + wait_ms, last_error=error
        )
        await self._put(charge, later)

    # --- failures ---------------------------------------------------------------------------

    async def _postpone(self, charge: Charge, error: Exception) -> None:
        """Try a charge again later; errors that are not the charge's own are passed on."""
        _pass_on(error)
        if isinstance(error, PaymentsUnavailableError):
            self._failures_in_a_row += 1
        text = f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS_MAX].replace("\0", "")
        self.last_error = text
        log.warning(
            "charge_postponed",
            charge=charge.id,
            tries=charge.tries + 1,
            error=text,
            exc_info=None if isinstance(error, MeterdError) else error,
        )
        now_ms = self._clock.now_ms()
        delay_ms = int(self._delay_ms(charge.tries + 1))
        if charge.state is ChargeState.PUSHING and charge.tries + 1 >= KEY_TRIES_MAX:
            delay_ms = max(delay_ms, IN_FLIGHT_MS)  # the key is renewed next: see must_renew_key
        later = attrs.evolve(
            charge,
            tries=charge.tries + 1,
            next_attempt_at_ms=now_ms + delay_ms,
            last_error=text,
        )
        await self._put(charge, later)

    def _note(self, organization_id: str, event: str, error: Exception) -> None:
        """Tell of a failure that concerns one organization."""
        self.last_error = f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS_MAX]
        log.error(event, organization=organization_id, exc_info=error)

    def _delay_ms(self, tries: int) -> float:
        """Return a delay between half of the back-off and all of it."""
        policy = self.policy
        longest_ms = backoff_ms(tries, least_ms=policy.retry_min_ms, most_ms=policy.retry_max_ms)
        return longest_ms * (0.5 + next(self._jitter) / 2)

    async def _put(self, before: Charge, after: Charge) -> bool:
        return await self._store.move_charge(before, after, at_ms=self._clock.now_ms())

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
        again = attrs.evolve(
            _after(charge, Move.MISS),
            invoice_item_id=None,
            invoice_id=None,
            next_attempt_at_ms=now_ms,
        )
        done = await self._put(charge, again)
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


def _is_everybodys(error: Exception) -> bool:
    """Tell whether an error has nothing to do with the charge it befell."""
    return isinstance(error, OwnershipLostError | StoreUnavailableError | PortalClosedError)


def _pass_on(error: Exception) -> None:
    if _is_everybodys(error):
        raise error


def _after(charge: Charge, what: Move) -> Charge:
    after = moved(charge, what)
    assert after is not None, (charge, what)
    return after


def _by_organization(due: Iterable[DueCharge]) -> Mapping[str, list[DueCharge]]:
    groups: dict[str, list[DueCharge]] = {}
    for each in due:
        groups.setdefault(each.charge.organization_id, []).append(each)
    return groups


def _metadata(charge: Charge) -> Mapping[str, str]:
    return {
        "meterd_charge": charge.id,
        "organization_id": charge.organization_id,
        "billing_period": charge.billing_period,
        "resource_type": charge.resource.value,
        "quantity": str(charge.quantity),
    }
