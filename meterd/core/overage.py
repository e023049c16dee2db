"""What a closed period owes, as charges that each become one invoice item at Stripe.

Rule 1: the charges of a period add up to the exact cost of its rows, rounded half-up to cents
        once. What changes later (a late report, an adjustment) is the next charge, by `seq`; a
        credit is a negative one. Nothing that was charged is ever changed.
Rule 2: every charge counts in that sum whatever became of it: what an operator voids is written
        off, not charged again.
Rule 3: where a charge may go next is a table (`MOVES`); what is not in it does not happen.
How a charge reaches Stripe exactly once is docs/explanation/overage.md.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal

import attrs

from meterd.core.ids import fact_id
from meterd.core.money import amount_cents, total_usd
from meterd.core.organization import Finding
from meterd.core.plan import Resource
from meterd.core.subscription import Alert
from meterd.core.units import HOUR_MS, MINUTE_MS


BOUND_CENTS = 100_000
"""Charges that nothing limits need, over $1,000 a period, a history that explains them."""

BOUND_FACTOR = 5
"""… of periods that cost a fifth of it, on average."""

BOUND_PERIODS = 3
"""How many earlier periods that average is over; a missing one counts as zero."""

KEY_TRUSTED_MS = 20 * HOUR_MS
"""Stripe forgets an idempotency key after 24 h; past 20 h ours no longer counts on it."""

KEY_TRIES_MAX = 3
"""A key whose call failed this often may have a failure stored under it, for ever the same."""

IN_FLIGHT_MS = 2 * MINUTE_MS
"""No call to Stripe is still being worked on so long after it was made."""


class ChargeState(enum.Enum):
    """Where a charge is on its way to an invoice."""

    NEW = "new"
    """Will be pushed."""
    REVIEW = "review"
    """Waits for a person, as `overage_review` says."""
    MANUAL = "manual"
    """The organization has no customer at Stripe: billed by other means."""
    PARKED = "parked"
    """Doubtful or refused: waits for a person."""
    PUSHING = "pushing"
    """A call was or is about to be made: its outcome is not known yet."""
    PUSHED = "pushed"
    """It is an invoice item, pending or on a draft."""
    INVOICED = "invoiced"
    """Its item is on an invoice that was finalized."""
    VOID = "void"
    """Written off by an operator."""


class Move(enum.Enum):
    """What can happen to a charge."""

    RELEASE = "release"
    """An operator lets it go to Stripe."""
    WRITE_OFF = "void"
    """An operator decides that it is never charged."""
    ATTEMPT = "attempt"
    """A call with a new key is about to be made."""
    LAND = "land"
    """Its invoice item exists."""
    REFUSE = "refuse"
    """Stripe understood and refused."""
    UNLINK = "unlink"
    """There is no customer to charge."""
    SETTLE = "settle"
    """The invoice with its item was finalized."""
    MISS = "miss"
    """Its item is gone from Stripe, though no invoice has it."""


_HELD = {Move.RELEASE: ChargeState.NEW, Move.WRITE_OFF: ChargeState.VOID}

MOVES: Mapping[ChargeState, Mapping[Move, ChargeState]] = {
    ChargeState.NEW: {
        Move.ATTEMPT: ChargeState.PUSHING,
        Move.UNLINK: ChargeState.MANUAL,
        Move.LAND: ChargeState.PUSHED,
        Move.WRITE_OFF: ChargeState.VOID,
    },
    ChargeState.REVIEW: _HELD,
    ChargeState.MANUAL: _HELD,
    ChargeState.PARKED: _HELD,
    ChargeState.PUSHING: {
        Move.ATTEMPT: ChargeState.PUSHING,
        Move.LAND: ChargeState.PUSHED,
        Move.REFUSE: ChargeState.PARKED,
    },
    ChargeState.PUSHED: {Move.SETTLE: ChargeState.INVOICED, Move.MISS: ChargeState.NEW},
    ChargeState.INVOICED: {},
    ChargeState.VOID: {},
}
"""State and move to the next state."""

AT_STRIPE = frozenset({ChargeState.PUSHING, ChargeState.PUSHED, ChargeState.INVOICED})
"""States in which an invoice item may exist."""

ON_ITS_WAY = frozenset({ChargeState.NEW, ChargeState.PUSHING})
"""States of charges that should be at Stripe soon."""

FINAL = frozenset({ChargeState.INVOICED, ChargeState.VOID})
"""States that nothing leads out of."""

OPEN = frozenset({ChargeState.NEW, ChargeState.PUSHING, ChargeState.PUSHED})
"""States in which the charge is meterd's to move on."""


@attrs.frozen(kw_only=True)
class Charge:
    """One row of `overage_charges`."""

    id: str
    organization_id: str
    customer_id: str | None = None
    """Whom the attempt under way charges; a replay must name the same."""
    subscription_id: str | None
    """The subscription that the organization followed when the charge was made."""
    resource: Resource
    billing_period: str
    period_start_ms: int
    period_end_ms: int
    quantity: int
    amount_cents: int
    seq: int
    state: ChargeState
    reason: str | None = None
    """Why it is held."""
    attempt: int = 0
    key_at_ms: int | None = None
    """When the attempt's idempotency key was made."""
    first_at_ms: int | None = None
    """When the first attempt was made."""
    tries: int = 0
    """Calls of this attempt that failed, or looks at the item since it landed."""
    next_attempt_at_ms: int
    last_error: str | None = None
    invoice_item_id: str | None = None
    invoice_id: str | None = None
    """The draft the attempt is for; once pushed, the invoice that has the item."""
    created_at_ms: int

    @property
    def idempotency_key(self) -> str:
        """Return the key under which Stripe does an attempt once."""
        return f"meterd:overage:{self.id}:{self.attempt}"

    @property
    def description(self) -> str:
        """Return the line that the customer reads; the same for every attempt."""
        unit = _UNITS[self.resource]
        about = f"{unit}, period {self.billing_period}"
        if self.amount_cents < 0:
            return f"Correction: {-self.quantity} {about}"
        return f"Usage past the plan: {self.quantity} {about}"


_UNITS = {
    Resource.AGENT_MINUTE: "agent minutes",
    Resource.API_CALL: "API calls",
    Resource.WEBSOCKET_MINUTE: "connected minutes",
}


@attrs.frozen
class Review:
    """Whose charges wait for a person: of the first so many organizations; `None`: of all."""

    first: int | None = 0


def review_of(text: str) -> Review | None:
    """Return the policy that `none`, `all` or `first:N` names, or None when it is none of them."""
    word, colon, count = text.partition(":")
    if not colon:
        return {"none": Review(0), "all": Review(None)}.get(word)
    if word == "first" and count.isascii() and count.isdecimal() and len(count) <= 9:  # noqa: PLR2004 - digits
        return Review(int(count))
    return None


@attrs.frozen(kw_only=True)
class Cost:
    """What the rows of one resource type of a period add up to."""

    resource: Resource
    quantity: int
    """Over the rows that have a cost."""
    cost_usd: Decimal


@attrs.frozen(kw_only=True)
class PeriodBill:
    """A closed period as stored, with all that its charges depend on, read in one snapshot."""

    organization_id: str
    billing_period: str
    start_ms: int
    end_ms: int
    seq: int
    """The last fact in the period: what is charged up to it needs no second look."""
    costs: Sequence[Cost]
    charges: Sequence[Charge] = ()
    """The period's charges so far, whatever became of them."""
    earlier_cents: Sequence[int] = ()
    """The charges of the periods before, summed for each, newest first."""
    is_unlimited: bool = False
    """Some of it was used under terms without a hard limit, whatever the plan was at its end."""
    customer_id: str | None = None
    subscription_id: str | None = None
    billing_alerts: frozenset[str] = frozenset()
    is_reviewed: bool = False
    """A charge of the organization was released, or needed no release, before."""
    reviewed_organizations: int = 0
    """How many organizations that can be said of."""
    unreported_tasks: int = 0
    """Running tasks that began in the period and have not reported past its end."""


def moved(charge: Charge, what: Move) -> Charge | None:
    """Return the charge in its next state, or None when that move is not in the table."""
    state = MOVES[charge.state].get(what)
    return None if state is None else attrs.evolve(charge, state=state)


def is_ready(bill: PeriodBill, *, now_ms: int, wait_ms: int) -> bool:
    """Tell whether a period can be charged: nobody's report is missing, or it waited enough.

    What is reported later is the next charge. A period that has charges does not wait again.
    """
    if now_ms < bill.end_ms:
        return False
    return not bill.unreported_tasks or bool(bill.charges) or now_ms >= bill.end_ms + wait_ms


def bound_cents(earlier_cents: Sequence[int]) -> int:
    """Return what a period without a limit may cost without a person looking at it."""
    history = sum(earlier_cents[:BOUND_PERIODS])
    return max(BOUND_CENTS, BOUND_FACTOR * history // BOUND_PERIODS)


def targets_cents(costs: Sequence[Cost]) -> Mapping[Resource, int]:
    """Return what each resource type is charged; together the total, rounded half-up once.

    Each gets what the rounded running total grows by, so alone it is its own rounded cost.
    """
    known = {cost.resource: cost.cost_usd for cost in costs}
    found: dict[Resource, int] = {}
    exact: tuple[Decimal, ...] = ()
    before = 0
    for resource in Resource:
        if resource in known:
            exact = (*exact, known[resource])
            after = amount_cents(total_usd(exact))
            found[resource] = after - before
            before = after
    return found


def new_charges(bill: PeriodBill, review: Review, *, now_ms: int) -> tuple[Charge, ...]:
    """Return the charges that are missing from a ready period, none when it is charged."""
    targets = targets_cents(bill.costs)
    quantities = {cost.resource: cost.quantity for cost in bill.costs}
    found = []
    state, reason = _first_state(bill, review, total_cents=sum(targets.values()))
    for resource in Resource:
        known = [charge for charge in bill.charges if charge.resource is resource]
        cents = targets.get(resource, 0) - sum(charge.amount_cents for charge in known)
        if not cents:
            continue
        seq = len(known) + 1
        quantity = quantities.get(resource, 0) - sum(charge.quantity for charge in known)
        identity = (bill.organization_id, bill.start_ms, resource.value, seq)
        found.append(
            Charge(
                id=fact_id("chg", bill.end_ms, *identity),
                organization_id=bill.organization_id,
                subscription_id=bill.subscription_id,
                resource=resource,
                billing_period=bill.billing_period,
                period_start_ms=bill.start_ms,
                period_end_ms=bill.end_ms,
                quantity=quantity,
                amount_cents=cents,
                seq=seq,
                state=state,
                reason=reason,
                next_attempt_at_ms=now_ms,
                created_at_ms=now_ms,
            )
        )
    return tuple(found)


def _first_state(
    bill: PeriodBill, review: Review, *, total_cents: int
) -> tuple[ChargeState, str | None]:
    if bill.customer_id is None:
        return ChargeState.MANUAL, "no Stripe customer"
    prefix = f"{Alert.OTHER_CURRENCY.value}:"
    for alert in sorted(bill.billing_alerts):
        if alert.startswith(prefix):
            return ChargeState.PARKED, f"the subscription is in {alert.removeprefix(prefix)}"
    bound = bound_cents(bill.earlier_cents)
    if _is_unbounded(bill) and total_cents > bound:
        return ChargeState.PARKED, f"over the safety bound of {bound} cents"
    is_first = review.first is None or bill.reviewed_organizations < review.first
    if is_first and (review.first is None or not bill.is_reviewed):
        return ChargeState.REVIEW, "waits for review"
    return ChargeState.NEW, None


def _is_unbounded(bill: PeriodBill) -> bool:
    """Tell whether no limit keeps the cost of a period: of minutes, or of what has a price only."""
    return bill.is_unlimited or any(
        cost.resource is not Resource.AGENT_MINUTE and cost.cost_usd for cost in bill.costs
    )


def must_renew_key(charge: Charge, now_ms: int) -> bool:
    """Tell whether a push under way needs a new key, its item being nowhere at Stripe.

    A young key is safer than a look: what is still being worked on shows in no list. An old one
    is forgotten, and one that failed again and again may have its failure stored for good.
    """
    assert charge.state is ChargeState.PUSHING, charge
    assert charge.key_at_ms is not None, charge
    age_ms = now_ms - charge.key_at_ms
    return age_ms >= KEY_TRUSTED_MS or (charge.tries >= KEY_TRIES_MAX and age_ms >= IN_FLIGHT_MS)


def parked_finding(charge: Charge, now_ms: int) -> Finding:
    """Return the finding that tells an operator of a charge that waits for a person."""
    detail = {
        "charge_id": charge.id,
        "billing_period": charge.billing_period,
        "resource_type": charge.resource.value,
        "amount_cents": charge.amount_cents,
        "reason": charge.reason or "",
    }
    return Finding(
        id=fact_id("fnd", now_ms, charge.id, charge.state.value),
        at_ms=now_ms,
        kind=f"charge_{charge.state.value}",
        detail_json=json.dumps(detail, sort_keys=True),
    )


def charge_json(charge: Charge) -> str:
    """Return a charge as the audit log keeps it."""
    fields = {
        "state": charge.state.value,
        "amount_cents": charge.amount_cents,
        "attempt": charge.attempt,
        "invoice_item_id": charge.invoice_item_id,
    }
    return json.dumps(fields, sort_keys=True)
