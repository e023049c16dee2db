"""One charge on its way to an invoice: each step durable before the next is asked for.

Rule 1: what is about to be asked of Stripe is durable before it is asked: the attempt, its key,
        its draft. After a crash the same is asked again, under the same key.
Rule 2: whoever asks looks first, also the first time: the database may be a restored one. An
        item with the charge's name in its metadata is the charge's, whatever became of the reply.
Rule 3: an attempt that Stripe refuses for its draft is followed by one without: the item is
        pending and rides the customer's next invoice. Any other refusal parks the charge.
Rule 4: pending items of an organization that no monthly renewal will sweep get an invoice of
        their own; that the item is still pending is what makes it safe to ask for it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import attrs
import structlog

from meterd.actors.charge_policy import ChargePolicy
from meterd.core.overage import (
    IN_FLIGHT_MS,
    KEY_TRIES_MAX,
    Charge,
    ChargeState,
    Move,
    moved,
    must_renew_key,
    parked_finding,
)
from meterd.core.subscription import USD
from meterd.core.supervision import backoff_ms
from meterd.core.units import DAY_MS
from meterd.errors import MeterdError, PaymentsRejectedError, PaymentsUnavailableError
from meterd.ports.billing import KEY_REUSED, Billing, InvoiceItem, NewItem
from meterd.ports.charges import ChargeStore, DueCharge
from meterd.ports.clock import Clock


log = structlog.get_logger(__name__)

CLOCKS_APART_MS = 2 * DAY_MS
"""How far ahead of Stripe's our clock may have been when items are searched by their creation."""

ERROR_CHARACTERS_MAX = 500


class Pusher:
    """Moves charges on, one step at a time."""

    def __init__(
        self,
        store: ChargeStore,
        billing: Billing,
        *,
        clock: Clock,
        jitter: Iterator[float],
        policy: ChargePolicy,
        on_error: Callable[[Exception], str],
        on_next: Callable[[], None],
    ) -> None:
        """`on_error` is told of what postpones a charge, and gives it as text.

        `on_next` is called when a charge that has landed has a next step at once.
        """
        self._store = store
        self._billing = billing
        self._clock = clock
        self._jitter = jitter
        self._policy = policy
        self._on_error = on_error
        self._on_next = on_next
        self.failures_in_a_row = 0
        """Charges whose last call Stripe did not answer, since one was answered."""

    async def advance(self, due: DueCharge) -> bool:
        """Bring a charge one step on; False when Stripe did not answer and it is postponed.

        Errors: PaymentsUnavailableError, PaymentsRejectedError while looking; the store's.
        """
        match due.charge.state:
            case ChargeState.NEW:
                is_answered = await self._begin(due)
            case ChargeState.PUSHING:
                is_answered = await self._resume(due)
            case ChargeState.PUSHED:
                is_answered = await self._look(due)
            case state:
                raise AssertionError(state)
        if is_answered:
            self.failures_in_a_row = 0
        return is_answered

    async def _begin(self, due: DueCharge) -> bool:
        """Push a charge for the first time, or again after a person has released it."""
        charge = due.charge
        if due.customer_id is None:
            held = attrs.evolve(_after(charge, Move.UNLINK), reason="no Stripe customer")
            await self._put(charge, held)
            return True
        whom = attrs.evolve(charge, customer_id=due.customer_id)
        if await self._found(due, whom):
            return True
        is_moved = charge.customer_id not in {None, due.customer_id}
        if is_moved and await self._found(due, charge):
            return True
        return await self._attempt(due, whom, await self._draft(due))

    async def _resume(self, due: DueCharge) -> bool:
        """Push again what may or may not have been pushed: look, then ask under the same key."""
        charge = due.charge
        if await self._found(due, charge):
            return True
        if not must_renew_key(charge, self._clock.now_ms()):
            return await self._ask(due, charge)
        draft_id = await self._draft(due)
        return await self._attempt(due, charge, draft_id)

    async def _draft(self, due: DueCharge) -> str | None:
        if due.cycle_subscription_id is None:
            return None
        return await self._billing.open_draft(due.cycle_subscription_id)

    async def _found(self, due: DueCharge, charge: Charge) -> bool:
        """Look for the item: a reply may be lost, or a database that knew it, if this is a copy."""
        customer_id = charge.customer_id
        assert customer_id is not None, charge
        since_ms = charge.period_end_ms - CLOCKS_APART_MS
        for item in await self._billing.items_of(customer_id, since_ms=since_ms):
            if item.charge_id == charge.id:
                await self._land(due, charge, item)
                return True
        return False

    async def _attempt(self, due: DueCharge, charge: Charge, draft_id: str | None) -> bool:
        """Make a new attempt durable, then ask. Its key names parameters that never change."""
        now_ms = self._clock.now_ms()
        begun = attrs.evolve(
            _after(charge, Move.ATTEMPT),
            attempt=charge.attempt + 1,
            key_at_ms=now_ms,
            first_at_ms=now_ms if charge.first_at_ms is None else charge.first_at_ms,
            tries=0,
            next_attempt_at_ms=now_ms + self._policy.retry_min_ms,
            last_error=None,
            invoice_id=draft_id,
            reason=None,
        )
        return not await self._put(charge, begun) or await self._ask(due, begun)

    async def _ask(self, due: DueCharge, charge: Charge) -> bool:
        """Create the item of an attempt that is durable."""
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
            item = await self._billing.add_item(new)
        except PaymentsUnavailableError as error:
            await self.postpone(charge, error)
            return False
        except PaymentsRejectedError as error:
            # No draft any more, or a full one; or another version of meterd has used the key, and
            # what came of that was looked for just now.
            if charge.invoice_id is not None or error.code == KEY_REUSED:
                return await self._attempt(due, charge, None)
            await self._park(charge, str(error)[:ERROR_CHARACTERS_MAX])
        else:
            await self._land(due, charge, item)
        return True

    async def _park(self, charge: Charge, reason: str) -> None:
        """Leave a charge that Stripe refuses to a person."""
        log.warning("charge_refused", charge=charge.id, error=reason)
        now_ms = self._clock.now_ms()
        refused = attrs.evolve(_after(charge, Move.REFUSE), reason=reason, last_error=reason)
        findings = [parked_finding(refused, now_ms)]
        await self._store.move_charge(charge, refused, at_ms=now_ms, findings=findings)

    async def _land(self, due: DueCharge, charge: Charge, item: InvoiceItem) -> None:
        """Remember the item; where no renewal will sweep it, its invoice is asked for at once."""
        now_ms = self._clock.now_ms()
        is_alone = item.invoice_id is None and due.cycle_months != 1
        landed = attrs.evolve(
            _after(charge, Move.LAND),
            attempt=max(1, charge.attempt),  # the attempt that made it may be one we forgot
            invoice_item_id=item.id,
            invoice_id=item.invoice_id,
            tries=0,
            next_attempt_at_ms=now_ms + (0 if is_alone else self._policy.look_min_ms),
            last_error=None,
            reason=None,
        )
        if await self._put(charge, landed):
            log.info("charge_pushed", charge=charge.id, item=item.id, invoice=item.invoice_id)
            if is_alone:
                self._on_next()

    # --- invoice items become invoices ------------------------------------------------------

    async def _look(self, due: DueCharge) -> bool:
        """Follow a pushed item to its invoice; make one where no renewal will."""
        charge = due.charge
        assert charge.invoice_item_id is not None, charge
        item = await self._billing.item(charge.invoice_item_id)
        if item is None:  # deleted by a person: the reconciliation tells, and repairs
            await self._look_later(charge, error="the invoice item is gone from Stripe")
        elif item.invoice_id is None:
            if due.cycle_months != 1:
                await self._invoice(charge)
            await self._look_later(charge)
        elif await self._billing.invoice_status(item.invoice_id) in {None, "draft"}:
            await self._look_later(attrs.evolve(charge, invoice_id=item.invoice_id))
        else:
            settled = _after(charge, Move.SETTLE)
            await self._put(
                charge, attrs.evolve(settled, invoice_id=item.invoice_id, last_error=None)
            )
        return True

    async def _invoice(self, charge: Charge) -> None:
        """Ask for an invoice of the customer's pending items.

        The same key while the outcome is unknown; another one if it keeps failing.
        """
        assert charge.customer_id is not None, charge
        key = f"meterd:invoice:{charge.id}:{charge.attempt}:{charge.tries // 3}"
        invoice_id = await self._billing.invoice_pending(charge.customer_id, idempotency_key=key)
        log.info("invoice_made", invoice=invoice_id, organization=charge.organization_id)

    async def _look_later(self, charge: Charge, *, error: str | None = None) -> None:
        policy = self._policy
        tries = charge.tries + 1
        wait_ms = backoff_ms(tries, least_ms=policy.look_min_ms, most_ms=policy.look_max_ms)
        now_ms = self._clock.now_ms()
        later = attrs.evolve(
            charge, tries=tries, next_attempt_at_ms=now_ms + wait_ms, last_error=error
        )
        await self._put(charge, later)

    async def postpone(self, charge: Charge, error: Exception) -> None:
        """Try a charge again later, because of an error of its own. Errors: the store's."""
        if isinstance(error, PaymentsUnavailableError):
            self.failures_in_a_row += 1
        text = self._on_error(error)
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

    def _delay_ms(self, tries: int) -> float:
        """Return a delay between half of the back-off and all of it."""
        policy = self._policy
        longest_ms = backoff_ms(tries, least_ms=policy.retry_min_ms, most_ms=policy.retry_max_ms)
        return longest_ms * (0.5 + next(self._jitter) / 2)

    async def _put(self, before: Charge, after: Charge) -> bool:
        return await self._store.move_charge(before, after, at_ms=self._clock.now_ms())


def _after(charge: Charge, what: Move) -> Charge:
    after = moved(charge, what)
    assert after is not None, (charge, what)
    return after


def _metadata(charge: Charge) -> Mapping[str, str]:
    return {
        "meterd_charge": charge.id,
        "organization_id": charge.organization_id,
        "billing_period": charge.billing_period,
        "resource_type": charge.resource.value,
        "quantity": str(charge.quantity),
    }
