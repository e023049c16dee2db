"""What answers to operators say of jobs, revenue, charges, findings and what Stripe sent.

As in `meterd.web.shapes`; the OpenAPI document is made from these.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from meterd.actors.books import Reconciliation
from meterd.actors.reconciliation import Reconciled
from meterd.actors.reports import Revenue
from meterd.actors.scheduler import JobView
from meterd.core.books import BookFinding
from meterd.core.overage import Charge
from meterd.core.schedule import JobRun
from meterd.core.units import rfc3339
from meterd.observe.log import masked
from meterd.ports.stripe import InboxEntry
from meterd.reporting.figures import Moved
from meterd.web.shapes import Instant


class JobObject(msgspec.Struct, frozen=True, kw_only=True):
    """A job with its last run and the next."""

    name: str
    schedule: str
    next_run_at: Instant
    running: bool
    settled: Annotated[str, Meta(description="The last hour or day that needs no more work.")]
    last_run_at: Instant | None
    last_finished_at: Instant | None
    last_outcome: str | None
    last_error: str | None


def job_object(view: JobView) -> JobObject:
    """Return the shape of a job."""
    record = view.record
    return JobObject(
        name=view.name,
        schedule=view.schedule,
        next_run_at=rfc3339(view.next_at_ms),
        running=view.is_running,
        settled=record.settled.subject,
        last_run_at=_instant(record.last_run_at_ms),
        last_finished_at=_instant(record.last_finished_at_ms),
        last_outcome=None if record.last_outcome is None else record.last_outcome.value,
        last_error=None if record.last_error is None else masked(record.last_error),
    )


class RunObject(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a job."""

    id: str
    job: str
    subject: Annotated[str, Meta(description="The hour or day it is for.")]
    trigger: str
    tries: int
    started_at: Instant
    finished_at: Instant | None
    outcome: str
    detail: dict[str, Any]


def run_object(run: JobRun) -> RunObject:
    """Return the shape of a run."""
    return RunObject(
        id=run.id,
        job=run.job,
        subject=run.subject,
        trigger=run.trigger.value,
        tries=run.tries,
        started_at=rfc3339(run.started_at_ms),
        finished_at=_instant(run.finished_at_ms),
        outcome=run.outcome.value,
        detail=json.loads(run.detail_json),
    )


# --- revenue --------------------------------------------------------------------------------------


class TierRevenue(msgspec.Struct, frozen=True, kw_only=True):
    """What the customers of one plan bring."""

    paying: Annotated[int, Meta(description="Organizations that bring something.")]
    mrr_usd: str


class LiveRevenue(msgspec.Struct, frozen=True, kw_only=True):
    """What customers are worth a month, now."""

    as_of: Instant
    mrr_usd: str
    contract_mrr_usd: Annotated[str, Meta(description="Of it: contracts without a subscription.")]
    by_tier: dict[str, TierRevenue]
    overage_open_usd: str
    past_due: int
    suspended: int
    unknown_prices: Annotated[int, Meta(description="Customers whose price cannot be told.")]


def live_revenue(revenue: Revenue) -> LiveRevenue:
    """Return the shape of the revenue of now."""
    return LiveRevenue(
        as_of=rfc3339(revenue.as_of_ms),
        mrr_usd=str(revenue.mrr_usd),
        contract_mrr_usd=str(revenue.contract_usd),
        by_tier={
            tier.value: TierRevenue(paying=customers, mrr_usd=str(amount))
            for tier, (customers, amount) in revenue.by_tier.items()
        },
        overage_open_usd=str(revenue.overage_open_usd),
        past_due=revenue.past_due,
        suspended=revenue.suspended,
        unknown_prices=revenue.unknown,
    )


class DayTierRevenue(msgspec.Struct, frozen=True, kw_only=True):
    """What the customers of one plan brought."""

    organizations: Annotated[int, Meta(description="On the plan and not suspended.")]
    mrr_usd: str


class DayRevenue(msgspec.Struct, frozen=True, kw_only=True):
    """What customers were worth a month at the end of a day, from its report."""

    date: str
    mrr_usd: str
    contract_usd: Annotated[str, Meta(description="Of it: contracts without a subscription.")]
    other_currencies: dict[str, str]
    unknown: Annotated[int, Meta(description="Customers whose price cannot be told.")]
    since: Annotated[str | None, Meta(description="The day compared with.")]
    before_usd: str | None
    movements: dict[str, Moved]
    by_tier: dict[str, DayTierRevenue]
    overage_open_usd: str
    overage_billed_usd: str


def day_revenue(report: dict[str, Any]) -> dict[str, Any]:
    """Return the revenue in a day's report that has one, as it was made: a `DayRevenue`."""
    overage = report["overage"]
    return {
        "date": report["day"],
        **report["revenue"],
        "by_tier": {
            line["tier"]: {"organizations": line["active"], "mrr_usd": line["mrr_usd"]}
            for line in report["tiers"]
        },
        "overage_open_usd": overage["open_usd"],
        "overage_billed_usd": overage["billed"]["usd"],
    }


# --- what differs ---------------------------------------------------------------------------------


class BookDifferenceObject(msgspec.Struct, frozen=True, kw_only=True):
    """One figure that is not what the ledger says."""

    kind: str
    organization_id: str
    subject: str
    what: str
    expected: str | None
    found: str | None
    amount: Annotated[str | None, Meta(description="found - expected, when both are numbers.")]


class BooksReconciled(msgspec.Struct, frozen=True, kw_only=True):
    """The ledger compared with everything that is derived from it."""

    dry_run: bool
    organizations: int
    live: Annotated[int, Meta(description="Of them in memory, compared as their actors are.")]
    differences: list[BookDifferenceObject]


def books_reconciled(found: Reconciliation, *, is_dry: bool) -> BooksReconciled:
    """Return the shape of a reconciliation of the books."""
    return BooksReconciled(
        dry_run=is_dry,
        organizations=found.organizations,
        live=found.live,
        differences=[
            BookDifferenceObject(
                kind=each.kind,
                organization_id=each.organization_id,
                subject=each.subject,
                what=each.what,
                expected=each.expected,
                found=each.found,
                amount=each.amount,
            )
            for each in found.differences
        ],
    )


class StripeDifferenceObject(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that Stripe and we do not agree on."""

    kind: str
    organization_id: str | None
    subject: str
    repair: str
    detail: dict[str, Any]


class StripeReconciled(msgspec.Struct, frozen=True, kw_only=True):
    """What we have, compared with what Stripe has."""

    dry_run: bool
    subscriptions: int
    invoices: int
    items: int
    charged_cents: int
    item_cents: int
    events_received: Annotated[int, Meta(description="Events of Stripe that never had come.")]
    repaired: int
    stopped: Annotated[str | None, Meta(description="Why nothing was repaired.")]
    differences: list[StripeDifferenceObject]


def stripe_reconciled(found: Reconciled) -> StripeReconciled:
    """Return the shape of a reconciliation with Stripe."""
    return StripeReconciled(
        dry_run=found.is_dry,
        subscriptions=found.subscriptions,
        invoices=found.invoices,
        items=found.items,
        charged_cents=found.charged_cents,
        item_cents=found.item_cents,
        events_received=found.events,
        repaired=found.repaired,
        stopped=found.stopped,
        differences=[
            StripeDifferenceObject(
                kind=each.kind,
                organization_id=each.organization_id,
                subject=each.subject,
                repair=each.repair.value,
                detail=dict(each.detail),
            )
            for each in found.differences
        ],
    )


class FindingObject(msgspec.Struct, frozen=True, kw_only=True):
    """Something a person should look at."""

    id: str
    at: Instant
    kind: str
    organization_id: str | None
    detail: dict[str, Any]


def finding_object(finding: BookFinding) -> FindingObject:
    """Return the shape of a finding."""
    return FindingObject(
        id=finding.id,
        at=rfc3339(finding.at_ms),
        kind=finding.kind,
        organization_id=finding.organization_id,
        detail=json.loads(finding.detail_json),
    )


# --- charges and Stripe's events ------------------------------------------------------------------


class ChargeObject(msgspec.Struct, frozen=True, kw_only=True):
    """Overage of a closed period on its way to an invoice."""

    id: str
    organization_id: str
    customer_id: str | None
    subscription_id: str | None
    resource_type: str
    billing_period: str
    period_start: Instant
    period_end: Instant
    quantity: int
    amount_cents: int
    seq: int
    state: str
    reason: Annotated[str | None, Meta(description="Why it is held.")]
    attempt: int
    first_at: Instant | None
    last_error: str | None
    invoice_item_id: str | None
    invoice_id: str | None
    created_at: Instant


def charge_object(charge: Charge) -> ChargeObject:
    """Return the shape of a charge."""
    return ChargeObject(
        id=charge.id,
        organization_id=charge.organization_id,
        customer_id=charge.customer_id,
        subscription_id=charge.subscription_id,
        resource_type=charge.resource.value,
        billing_period=charge.billing_period,
        period_start=rfc3339(charge.period_start_ms),
        period_end=rfc3339(charge.period_end_ms),
        quantity=charge.quantity,
        amount_cents=charge.amount_cents,
        seq=charge.seq,
        state=charge.state.value,
        reason=charge.reason,
        attempt=charge.attempt,
        first_at=_instant(charge.first_at_ms),
        last_error=charge.last_error,
        invoice_item_id=charge.invoice_item_id,
        invoice_id=charge.invoice_id,
        created_at=rfc3339(charge.created_at_ms),
    )


class InboxObject(msgspec.Struct, frozen=True, kw_only=True):
    """An event of Stripe; its payload stays inside."""

    id: str
    type: str
    state: Annotated[str, Meta(description="pending, done or dead")]
    outcome: str | None
    livemode: bool
    subscription_id: str | None
    customer_id: str | None
    invoice_id: str | None
    created_at: Instant
    received_at: Instant
    attempts: int
    next_attempt_at: Instant | None
    last_error: str | None


def inbox_object(entry: InboxEntry) -> InboxObject:
    """Return the shape of an event of Stripe."""
    return InboxObject(
        id=entry.id,
        type=entry.type,
        state=entry.state,
        outcome=entry.outcome,
        livemode=entry.livemode,
        subscription_id=entry.subscription_id,
        customer_id=entry.customer_id,
        invoice_id=entry.invoice_id,
        created_at=rfc3339(entry.created_at_ms),
        received_at=rfc3339(entry.received_at_ms),
        attempts=entry.attempts,
        next_attempt_at=rfc3339(entry.next_attempt_at_ms) if entry.state == "pending" else None,
        last_error=None if entry.last_error is None else masked(entry.last_error),
    )


class Retried(msgspec.Struct, frozen=True, kw_only=True):
    """An event of Stripe that is worked off again."""

    id: str
    state: str


def _instant(at_ms: int | None) -> str | None:
    return None if at_ms is None else rfc3339(at_ms)
