"""Both sides held against each other: what Stripe has, what meterd has, and what is done about it.

Rule 1: Stripe is asked for everything it has, not for what meterd believes to be there.
Rule 2: repairs take the ways that everything takes: a subscription that differs is a signal in
        the inbox, an item that is gone makes its charge new again, a lost event is received.
Rule 3: what nobody would believe stops it, all repairs included: very many downgrades, very many
        charges without an item (another account's key has none of them), or the wrong mode.
Rule 4: a dry run tells the same and changes nothing, its findings included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import attrs
import structlog
import trio

from meterd.actors.charges import Charges
from meterd.actors.organizations import Organizations
from meterd.actors.stripe import StripeActor
from meterd.actors.stripe_following import RECONCILED, own_event
from meterd.core.organization import Finding
from meterd.core.overage import Charge, ChargeState
from meterd.core.reconciliation import (
    Difference,
    FoundItem,
    Repair,
    charge_differences,
    invoice_differences,
    is_charged,
    is_downgrade,
    is_too_much,
    subscription_differences,
)
from meterd.core.stripe_objects import StripeEvent, read_invoice, read_subscription
from meterd.core.subscription import Invoice, Subscription, standing
from meterd.core.units import DAY_MS, HOUR_MS
from meterd.errors import OrganizationUnknownError
from meterd.ports.billing import Billing, InvoiceItem
from meterd.ports.charges import ChargeStore, StoredFinding
from meterd.ports.clock import Clock
from meterd.ports.ids import Ids
from meterd.ports.stripe import StripeStore


log = structlog.get_logger(__name__)

INVOICES_MS = 40 * DAY_MS
"""How far back invoices are compared."""

CHARGES_MS = 70 * DAY_MS
"""How far back charges and invoice items are compared: two periods."""

FOLLOWED_S = 30
"""Seconds that a reconciliation waits for what it asked the Stripe actor to do."""


@attrs.frozen(kw_only=True)
class Reconciled:
    """What was compared, and what came of it."""

    is_dry: bool
    subscriptions: int
    invoices: int
    items: int
    charged_cents: int = 0
    """What the charges of `CHARGES_MS` that are at Stripe add up to, by our ledger."""
    item_cents: int = 0
    """What their invoice items add up to, as Stripe has them: the same, or something differs."""
    events: int
    """Events that no endpoint had acknowledged and the inbox did not know."""
    differences: tuple[Difference, ...]
    repaired: int = 0
    stopped: str | None = None
    """Why nothing was repaired although something differs."""


@attrs.define
class _Theirs:
    """What Stripe has of one organization."""

    subscriptions: list[Subscription] = attrs.Factory(list)
    invoices: list[Invoice] = attrs.Factory(list)


@attrs.frozen(kw_only=True)
class _Charging:
    """Charges and invoice items, compared."""

    items: int
    """Items that are for charges of ours."""
    pushed: int
    charged_cents: int
    item_cents: int
    differences: Sequence[Difference]


class StripeReconciliation:
    """Compares and repairs, on demand and once a day."""

    def __init__(
        self,
        store: ChargeStore,
        inbox: StripeStore,
        billing: Billing,
        charges: Charges,
        follower: StripeActor,
        organizations: Organizations,
        *,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._store = store
        self._inbox = inbox
        self._billing = billing
        self._charges = charges
        self._follower = follower
        self._organizations = organizations
        self._clock = clock
        self._ids = ids
        self._turn = trio.Lock()

    async def run(self, *, is_dry: bool = False) -> Reconciled:
        """Compare everything and, unless it is dry, repair what can be repaired.

        Errors: PaymentsUnavailableError, PaymentsRejectedError, StoreUnavailableError.
        """
        async with self._turn:
            return await self._run(is_dry=is_dry)

    async def _run(self, *, is_dry: bool) -> Reconciled:
        now_ms = self._clock.now_ms()
        subscriptions = await self._subscriptions()
        invoices = await self._invoices(now_ms)
        events = list(await self._billing.undelivered_events())
        stopped = self._wrong_mode(subscriptions, events)
        differences: list[Difference] = []
        if stopped is None:
            theirs, owners, orphans = await self._by_organization(subscriptions, invoices)
            differences += orphans
            downgrades = 0
            for organization_id, found in theirs.items():
                told, is_down = await self._compare(organization_id, found)
                differences += told
                downgrades += is_down
            differences += await self._strayed(owners)
            followed = sum(each.status.is_live for each in subscriptions)
            if is_too_much(downgrades, followed):
                stopped = f"{downgrades} downgrades of {followed} subscriptions"
        charging = await self._compare_charges(now_ms)
        differences += charging.differences
        missing = sum(each.repair is Repair.PUSH for each in charging.differences)
        if stopped is None and is_too_much(missing, charging.pushed):
            stopped = f"{missing} of {charging.pushed} charges have no invoice item"
        result = Reconciled(
            is_dry=is_dry,
            subscriptions=len(subscriptions),
            invoices=len(invoices),
            items=charging.items,
            charged_cents=charging.charged_cents,
            item_cents=charging.item_cents,
            events=0,
            differences=tuple(differences),
            stopped=stopped,
        )
        if is_dry:
            return result
        return await self._act(result, events, now_ms)

    # --- comparing --------------------------------------------------------------------------

    async def _subscriptions(self) -> list[Subscription]:
        found = [read_subscription(each) for each in await self._billing.subscriptions()]
        return [each for each in found if each is not None]

    async def _invoices(self, now_ms: int) -> list[Invoice]:
        listed = await self._billing.invoices_since(now_ms - INVOICES_MS)
        found = [read_invoice(each) for each in listed]
        return [each for each in found if each is not None and each.subscription_id is not None]

    def _wrong_mode(
        self, subscriptions: Sequence[Subscription], events: Sequence[StripeEvent]
    ) -> str | None:
        mode = self._billing.livemode
        wrong = sum(each.livemode != mode for each in subscriptions)
        wrong += sum(each.livemode != mode for each in events)
        return f"{wrong} objects are of the wrong livemode" if wrong else None

    async def _by_organization(
        self, subscriptions: Sequence[Subscription], invoices: Sequence[Invoice]
    ) -> tuple[Mapping[str, _Theirs], Mapping[str, str | None], list[Difference]]:
        """Return what each organization has, whose each subscription is, and those of nobody."""
        theirs: dict[str, _Theirs] = {}
        owners: dict[str, str | None] = {}
        orphans = []
        for subscription in subscriptions:
            owner = await self._inbox.organization_of(
                subscription.customer_id, subscription.organization_id
            )
            owners[subscription.id] = owner
            if owner is None:
                if subscription.status.is_live:
                    orphans.append(_orphan(subscription))
                continue
            theirs.setdefault(owner, _Theirs()).subscriptions.append(subscription)
        for invoice in invoices:
            owner = owners.get(invoice.subscription_id or "")
            if owner is not None:
                theirs[owner].invoices.append(invoice)
        return theirs, owners, orphans

    async def _compare(
        self, organization_id: str, theirs: _Theirs
    ) -> tuple[Sequence[Difference], bool]:
        """Return what differs for an organization, and whether repairing it is a downgrade."""
        seen = await self._inbox.seen(organization_id)
        known = {key: each.subscription for key, each in seen.subscriptions.items()}
        unsettled = {key: each.invoice for key, each in seen.invoices.items()}
        found = [
            *subscription_differences(organization_id, theirs.subscriptions, known),
            *invoice_differences(organization_id, theirs.invoices, unsettled),
        ]
        rules = self._organizations.rules
        wanted = standing(rules.catalogue, theirs.subscriptions, theirs.invoices)
        is_live = wanted.subscription_id is not None
        if not found and not is_live:
            return found, False
        try:
            snapshot = await self._organizations.snapshot(organization_id)
        except OrganizationUnknownError:
            return found, False
        plan = snapshot.terms.plan
        if (
            is_live
            and wanted.tier not in (None, plan)
            and not any(each.repair is Repair.FOLLOW for each in found)
        ):
            found.append(
                Difference(
                    kind="plan_differs",
                    organization_id=organization_id,
                    subject=wanted.subscription_id or "",
                    detail={
                        "plan": plan.value,
                        "stripe": None if wanted.tier is None else wanted.tier.value,
                    },
                    repair=Repair.FOLLOW,
                    subscription_id=wanted.subscription_id,
                )
            )
        follows = any(each.repair is Repair.FOLLOW for each in found)
        return found, follows and is_downgrade(plan, wanted.tier)

    async def _strayed(self, owners: Mapping[str, str | None]) -> Sequence[Difference]:
        """Return the subscriptions that are followed although they are not there, or not theirs."""
        followed = await self._store.followed_subscriptions()
        return [
            Difference(
                kind="subscription_of_another"
                if subscription_id in owners
                else "subscription_gone",
                organization_id=organization_id,
                subject=subscription_id,
            )
            for organization_id, subscription_id in followed
            if owners.get(subscription_id) != organization_id
        ]

    async def _compare_charges(self, now_ms: int) -> _Charging:
        """Compare charge by charge, and what both sides add up to."""
        since_ms = now_ms - CHARGES_MS
        # Charges first: an item that is made meanwhile is of a charge that is known.
        charges = {each.id: each for each in await self._store.charges_ended_since(since_ms)}
        listed = await self._billing.items_since(since_ms - HOUR_MS)
        ours = [item for item in listed if item.charge_id is not None]
        items: dict[str, list[FoundItem]] = {}
        known = set()
        for item in ours:
            assert item.charge_id is not None, item
            items.setdefault(item.charge_id, []).append(_found(item))
            is_here = item.charge_id in charges or await self._store.charge(item.charge_id)
            if item.charge_id not in charges and is_here:
                known.add(item.charge_id)
        for found in items.values():
            if len(found) > 1:
                found[:] = [await self._with_status(each, ours) for each in found]
        item_cents = sum(
            item.amount_cents for key in charges.keys() & items.keys() for item in items[key]
        )
        told = []
        for each in charge_differences(charges.values(), items, known):
            charge = charges.get(str(each.detail.get("charge_id", "")))
            if each.kind == "item_missing" and charge is not None:
                older = await self._item_of(charge)
                if older is not None:  # it is there, only older than the list
                    item_cents += older.amount_cents
                    continue
            told.append(each)
        return _Charging(
            items=len(ours),
            pushed=sum(each.state is ChargeState.PUSHED for each in charges.values()),
            charged_cents=sum(
                each.amount_cents for each in charges.values() if is_charged(each, items)
            ),
            item_cents=item_cents,
            differences=told,
        )

    async def _item_of(self, charge: Charge) -> InvoiceItem | None:
        item_id = charge.invoice_item_id
        return None if item_id is None else await self._billing.item(item_id)

    async def _with_status(self, found: FoundItem, items: Sequence[InvoiceItem]) -> FoundItem:
        """Return one of several items of a charge, with whether it can still be deleted."""
        invoice_id = next(item.invoice_id for item in items if item.id == found.id)
        if invoice_id is None:
            return found
        status = await self._billing.invoice_status(invoice_id)
        return attrs.evolve(found, is_final=status not in {None, "draft"})

    # --- repairing --------------------------------------------------------------------------

    async def _act(
        self, result: Reconciled, events: Sequence[StripeEvent], now_ms: int
    ) -> Reconciled:
        """Keep what was found, and repair what may be repaired."""
        findings = [
            StoredFinding(organization_id=each.organization_id, finding=each.finding(now_ms))
            for each in result.differences
        ]
        if result.stopped is not None:
            log.error("stripe_reconciliation_stopped", reason=result.stopped)
            findings.append(StoredFinding(organization_id=None, finding=self._stop(result, now_ms)))
        await self._store.report(findings)
        for each in result.differences[:20]:
            log.warning(
                "stripe_differs",
                kind=each.kind,
                organization=each.organization_id,
                subject=each.subject,
                repair=each.repair.value,
            )
        received = 0
        repaired = 0
        if result.stopped is None:
            for event in events:
                received += await self._inbox.keep_event(event, at_ms=now_ms)
            repaired += await self._follow(result.differences, now_ms)
            repaired += await self._repair_charges(result.differences)
        self._follower.kick()
        self._charges.kick()
        return attrs.evolve(result, events=received, repaired=repaired)

    def _stop(self, result: Reconciled, now_ms: int) -> Finding:
        detail = {"reason": result.stopped, "differences": len(result.differences)}
        return Finding(
            id=self._ids.new("fnd"),
            at_ms=now_ms,
            kind="stripe_reconciliation_stopped",
            detail_json=json.dumps(detail, sort_keys=True),
        )

    async def _follow(self, differences: Sequence[Difference], now_ms: int) -> int:
        """Signal subscriptions to the Stripe actor, and wait a while until it has followed."""
        wanted = {
            each.subscription_id: None
            for each in differences
            if each.repair is Repair.FOLLOW and each.subscription_id is not None
        }
        signals = [self._signal(subscription_id, now_ms) for subscription_id in wanted]
        for signal in signals:
            await self._inbox.keep_event(signal, at_ms=now_ms)
        self._follower.kick()
        waiting = {signal.id for signal in signals}
        with trio.move_on_after(FOLLOWED_S):
            while waiting:
                await trio.sleep(0.05)
                pending = await self._inbox.inbox(state="pending", after=None, limit=1_000)
                waiting &= {entry.id for entry in pending if not entry.attempts}
        return len(signals)

    def _signal(self, subscription_id: str, now_ms: int) -> StripeEvent:
        return own_event(
            self._ids.new("meterd"),
            RECONCILED,
            livemode=self._billing.livemode,
            now_ms=now_ms,
            subscription_id=subscription_id,
        )

    async def _repair_charges(self, differences: Sequence[Difference]) -> int:
        repaired = 0
        for each in differences:
            if each.repair is Repair.DELETE:
                await self._billing.delete_item(each.subject)
                repaired += 1
            elif each.repair is Repair.PUSH:
                charge = await self._store.charge(each.subject)
                if charge is not None and charge.state is ChargeState.PUSHED:
                    repaired += await self._charges.miss(charge)
        return repaired


def _found(item: InvoiceItem) -> FoundItem:
    assert item.charge_id is not None, item
    return FoundItem(
        id=item.id,
        charge_id=item.charge_id,
        amount_cents=item.amount_cents,
        currency=item.currency,
    )


def _orphan(subscription: Subscription) -> Difference:
    return Difference(
        kind="subscription_orphan",
        organization_id=None,
        subject=subscription.id,
        detail={
            "customer_id": subscription.customer_id,
            "status": subscription.status.value,
            "named": subscription.organization_id,
        },
    )
