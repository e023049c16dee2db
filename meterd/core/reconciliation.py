"""What differs between Stripe and meterd, and when too much does.

Stripe is the truth for subscriptions and invoices, meterd for usage and what it costs. Everything
here compares values; who repairs reads the one object again first.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Collection, Iterable, Mapping, Sequence

import attrs

from meterd.core.ids import fact_id
from meterd.core.organization import Finding
from meterd.core.overage import AT_STRIPE, ON_ITS_WAY, Charge, ChargeState
from meterd.core.plan import Tier
from meterd.core.subscription import Invoice, Subscription
from meterd.core.units import day_start_ms


BELIEVED_MAX = 20
"""More downgrades, or lost invoice items, at once than this nobody believes."""

BELIEVED_LEAST = 3
"""So many are possible however few there are."""

BELIEVED_PERCENT = 2


class Repair(enum.Enum):
    """What follows from a difference."""

    NONE = "none"
    """Nothing: a person should look at it."""
    FOLLOW = "follow"
    """The subscription is read again and followed."""
    PUSH = "push"
    """The charge is pushed again."""
    DELETE = "delete"
    """The invoice item is deleted: it is on no invoice yet."""


@attrs.frozen(kw_only=True)
class Difference:
    """One thing that the two sides do not agree on."""

    kind: str
    organization_id: str | None
    subject: str
    """The id of what it is about."""
    detail: Mapping[str, object] = attrs.Factory(dict)
    repair: Repair = Repair.NONE
    subscription_id: str | None = None
    """The subscription to follow."""

    def finding(self, now_ms: int) -> Finding:
        """Return the finding that tells of it: one a day, however often it is looked for."""
        day_ms = day_start_ms(now_ms)
        detail = {"subject": self.subject, "repair": self.repair.value, **self.detail}
        return Finding(
            id=fact_id("fnd", day_ms, self.kind, self.organization_id or "", self.subject),
            at_ms=now_ms,
            kind=f"stripe_{self.kind}",
            detail_json=json.dumps(detail, sort_keys=True),
        )


def is_too_much(found: int, of_all: int) -> bool:
    """Tell whether so many downgrades or lost items are more likely a mistake of ours."""
    share = BELIEVED_PERCENT * of_all // 100
    return found > BELIEVED_MAX or found > max(BELIEVED_LEAST, share)


def is_downgrade(before: Tier, after: Tier | None) -> bool:
    """Tell whether a plan would become a lesser one; `None` keeps it."""
    order = list(Tier)
    return after is not None and order.index(after) < order.index(before)


def subscription_differences(
    organization_id: str, theirs: Sequence[Subscription], ours: Mapping[str, Subscription]
) -> Iterable[Difference]:
    """Yield what an organization has not seen of its subscriptions, or not lately."""
    for subscription in theirs:
        known = ours.get(subscription.id)
        if known == subscription:
            continue
        if known is None and subscription.status.is_over:
            continue  # it began and ended before anybody here listened
        detail: dict[str, object] = {"status": subscription.status.value}
        if known is not None:
            detail["seen"] = {
                field.name: str(getattr(known, field.name))
                for field in attrs.fields(Subscription)
                if getattr(known, field.name) != getattr(subscription, field.name)
            }
        yield Difference(
            kind="subscription_unseen" if known is None else "subscription_differs",
            organization_id=organization_id,
            subject=subscription.id,
            detail=detail,
            repair=Repair.FOLLOW,
            subscription_id=subscription.id,
        )
    live = [each.id for each in theirs if each.status.is_live]
    if len(live) > 1:
        yield Difference(
            kind="several_live",
            organization_id=organization_id,
            subject=live[0],
            detail={"subscriptions": live},
        )


def invoice_differences(
    organization_id: str, theirs: Sequence[Invoice], ours: Mapping[str, Invoice]
) -> Iterable[Difference]:
    """Yield the cycle invoices that one side says are unpaid and the other does not."""
    for invoice in theirs:
        if not invoice.is_cycle or invoice.subscription_id is None:
            continue
        known = ours.get(invoice.id)
        is_unpaid = invoice.unpaid_since_ms is not None
        was_unpaid = known is not None and known.unpaid_since_ms is not None
        if is_unpaid != was_unpaid:
            yield Difference(
                kind="invoice_differs",
                organization_id=organization_id,
                subject=invoice.id,
                detail={"status": invoice.status, "seen": None if known is None else known.status},
                repair=Repair.FOLLOW,
                subscription_id=invoice.subscription_id,
            )


@attrs.frozen(kw_only=True)
class FoundItem:
    """An invoice item of ours at Stripe."""

    id: str
    charge_id: str
    amount_cents: int
    currency: str
    is_final: bool = False
    """It is on an invoice that is no draft."""


def charge_differences(
    charges: Iterable[Charge], items: Mapping[str, Sequence[FoundItem]], known: Collection[str]
) -> Iterable[Difference]:
    """Yield the charges without an item, the items without a charge, and doubles.

    `items` by charge; `known` are ids of charges that exist although they are not among these.
    """
    kept = {charge.id: charge for charge in charges}
    for charge in kept.values():
        found = items.get(charge.id, ())
        is_ours = charge.state in {ChargeState.PUSHED, ChargeState.INVOICED}
        if is_ours and not found:
            is_open = charge.state is ChargeState.PUSHED
            yield _about(charge, "item_missing", Repair.PUSH if is_open else Repair.NONE)
        if len(found) > 1:
            yield from _doubles(charge, found)
        elif found and (found[0].amount_cents, found[0].currency) != (charge.amount_cents, "usd"):
            yield _about(charge, "item_differs", Repair.NONE, item=found[0])
        elif found and charge.state in _HELD:
            yield _about(charge, "item_of_held_charge", Repair.NONE, item=found[0])
    for charge_id in sorted(items.keys() - kept.keys() - set(known)):
        for item in items[charge_id]:
            yield Difference(
                kind="item_orphan",
                organization_id=None,
                subject=item.id,
                detail={"charge_id": charge_id, "amount_cents": item.amount_cents},
            )


def is_charged(charge: Charge, items: Mapping[str, Sequence[FoundItem]]) -> bool:
    """Tell whether a charge counts as charged: by our ledger, or its reply is on the way."""
    if charge.state in ON_ITS_WAY:
        return charge.id in items
    return charge.state in AT_STRIPE


_HELD = frozenset({ChargeState.REVIEW, ChargeState.MANUAL, ChargeState.PARKED, ChargeState.VOID})


def _doubles(charge: Charge, found: Sequence[FoundItem]) -> Iterable[Difference]:
    """Yield all items of a charge but one: the one on an invoice, else the one we know of."""
    ranked = sorted(
        found, key=lambda item: (not item.is_final, item.id != charge.invoice_item_id, item.id)
    )
    for item in ranked[1:]:
        repair = Repair.NONE if item.is_final else Repair.DELETE
        yield _about(charge, "item_twice", repair, item=item)


def _about(
    charge: Charge, kind: str, repair: Repair, *, item: FoundItem | None = None
) -> Difference:
    detail: dict[str, object] = {
        "charge_id": charge.id,
        "billing_period": charge.billing_period,
        "amount_cents": charge.amount_cents,
        "state": charge.state.value,
    }
    if item is not None:
        detail |= {"item_id": item.id, "item_cents": item.amount_cents, "currency": item.currency}
    return Difference(
        kind=kind,
        organization_id=charge.organization_id,
        subject=charge.id if item is None else item.id,
        detail=detail,
        repair=repair,
    )
