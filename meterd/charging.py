"""The composition of charging: which stores and which Stripe stand behind charges and pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import time
from typing import Any

from meterd.actors.billing_desk import BillingDesk
from meterd.actors.charge_policy import ChargePolicy
from meterd.actors.charges import Charges
from meterd.actors.organizations import Organizations
from meterd.actors.reconciliation import StripeReconciliation
from meterd.actors.scheduler import Job, Order
from meterd.actors.stripe import StripeActor
from meterd.adapters.postgres.charges import PostgresCharges
from meterd.adapters.stripe.billing import StripeBilling
from meterd.adapters.stripe.client import StripePayments
from meterd.config import Config
from meterd.core.overage import review_of
from meterd.core.schedule import Daily
from meterd.ports.directory import Directory
from meterd.ports.ids import Ids
from meterd.ports.stripe import StripeStore
from meterd.web.services import BillingServices


def charges_of(
    config: Config,
    store: PostgresCharges,
    payments: StripePayments | None,
    organizations: Organizations,
    *,
    jitter: Iterator[float],
) -> Charges:
    """Return the charges actor; run it as a service named `charges`."""
    review = review_of(config.overage_review)
    assert review is not None, config.overage_review
    return Charges(
        store,
        None if payments is None else StripeBilling(payments),
        organizations,
        clock=organizations.clock,
        jitter=jitter,
        policy=ChargePolicy(review=review, wait_ms=config.overage_wait_ms),
    )


def billing_of(
    store: PostgresCharges,
    charges: Charges,
    payments: StripePayments | None,
    inbox: StripeStore,
    follower: StripeActor,
    organizations: Organizations,
    directory: Directory,
    *,
    ids: Ids,
) -> BillingServices:
    """Return what the web needs: without Stripe the list of charges only."""
    if payments is None:
        return BillingServices(store=store, charges=charges)
    billing = StripeBilling(payments)
    return BillingServices(
        store=store,
        charges=charges,
        desk=BillingDesk(billing, organizations, directory, organizations.rules.catalogue),
        reconciliation=StripeReconciliation(
            store,
            inbox,
            billing,
            charges,
            follower,
            organizations,
            clock=organizations.clock,
            ids=ids,
        ),
    )


def jobs_of(config: Config, billing: BillingServices) -> tuple[Job, ...]:
    """Return the job that holds both sides against each other once a day."""
    reconciliation = billing.reconciliation
    if reconciliation is None:
        return ()
    at = Daily(time.fromisoformat(config.stripe_reconciliation_at))
    return (Job(name="stripe_reconciliation", schedule=at, work=_work(reconciliation)),)


def _work(reconciliation: StripeReconciliation) -> Callable[[Order], Any]:
    async def work(order: Order) -> dict[str, Any]:  # noqa: ARG001  # of now
        found = await reconciliation.run()
        return {
            "subscriptions": found.subscriptions,
            "differences": len(found.differences),
            "repaired": found.repaired,
            "events": found.events,
            "stopped": found.stopped,
        }

    return work
