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

    organizations: Annotated[int, Meta(description="On the plan and not suspended.")]
    paying: Annotated[
        int | None,
        Meta(description="Bring something every month; null in a report that did not count them."),
    ]
    mrr_usd: str


class AnyRevenue(msgspec.Struct, frozen=True, kw_only=True):
    """What customers are worth a month."""

    mrr_usd: str
    contract_mrr_usd: Annotated[str, Meta(description="Of it: contracts without a subscription.")]
    other_currencies: Annotated[dict[str, str], Meta(description="Not in it, by currency.")]
    by_tier: dict[str, TierRevenue]
    past_due: int
    suspended: int
    overage_open_usd: str
    unknown_prices: Annotated[
        int, Meta(description="Customers with a price or a discount that cannot be told.")
    ]


class LiveRevenue(AnyRevenue, frozen=True, kw_only=True):
    """What customers are worth a month, now."""

    as_of: Instant


def live_revenue(revenue: Revenue) -> LiveRevenue:
    """Return the shape of the revenue of now."""
    return LiveRevenue(
        as_of=rfc3339(revenue.as_of_ms),
        mrr_usd=str(revenue.mrr_usd),
        contract_mrr_usd=str(revenue.contract_usd),
        other_currencies={name: str(usd) for name, usd in revenue.other_currencies.items()},
        by_tier={
            line.tier.value: TierRevenue(
                organizations=line.active, paying=line.paying, mrr_usd=str(line.mrr_usd)
            )
            for line in revenue.tiers
        },
        past_due=sum(line.past_due for line in revenue.tiers),
        suspended=sum(line.suspended for line in revenue.tiers),
        overage_open_usd=str(revenue.overage_open_usd),
        unknown_prices=revenue.unknown,
    )


class MoverObject(msgspec.Struct, frozen=True, kw_only=True):
    """A customer whose recurring revenue changed."""

    organization_id: str
    name: str
    movement: str
    before_usd: str
    after_usd: str


class DayRevenue(AnyRevenue, frozen=True, kw_only=True):
    """What customers were worth a month at the end of a day, from its report."""

    date: str
    overage_billed_usd: str
    since: Annotated[str | None, Meta(description="The day compared with.")]
    before_usd: str | None
    movements: dict[str, Moved]
    movers: list[MoverObject]


def day_revenue(report: dict[str, Any]) -> dict[str, Any]:
    """Return the revenue in a day's report that has one, as it was made: a `DayRevenue`."""
    revenue, overage, lines = report["revenue"], report["overage"], report["tiers"]
    return {
        "date": report["day"],
        "mrr_usd": revenue["mrr_usd"],
        "contract_mrr_usd": revenue["contract_usd"],
        "other_currencies": revenue["other_currencies"],
        "by_tier": {
            line["tier"]: {
                "organizations": line["active"],
                "paying": line.get("paying"),
                "mrr_usd": line["mrr_usd"],
            }
            for line in lines
        },
        "past_due": sum(line["past_due"] for line in lines),
        "suspended": sum(line["suspended"] for line in lines),
        "overage_open_usd": overage["open_usd"],
        "overage_billed_usd": overage["billed"]["usd"],
        "unknown_prices": revenue["unknown"],
        "since": revenue["since"],
        "before_usd": revenue["before_usd"],
        "movements": revenue["movements"],
        "movers": revenue.get("movers", []),
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
