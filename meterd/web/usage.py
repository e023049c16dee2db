"""What an organization used: now, by day, by period, row by row, and on its next invoice.

Rule 1: what is live comes from the actor and what is past from the store, and they agree: the
store is read only when it has everything the actor has decided.
Rule 2: nothing here reads the ledger to add it up; sums per day are kept with it.
Rule 3: lists are pages that go on where they stopped; an export is all pages, one at a time.
"""

from __future__ import annotations

from typing import Final

from quart import Blueprint, Response, request

from meterd.actors.organizations import OrganizationSnapshot
from meterd.core.plan import Resource
from meterd.core.units import DAY_MS
from meterd.errors import Problem, RequestInvalidError
from meterd.ports.usage import RowFilter
from meterd.web.codec import is_period_label
from meterd.web.problems import ProblemError
from meterd.web.reply import json_reply, rate_limit_headers
from meterd.web.requests import (
    choice_in,
    cursor_in,
    integer_in,
    limit_in,
    make_cursor,
    name_in,
    organization,
    query,
    response,
    services,
)
from meterd.web.services import WebServices
from meterd.web.shapes import Page, row_object
from meterd.web.usage_export import CSV, csv_stream
from meterd.web.usage_shapes import (
    burn_since_ms,
    closed_usage_object,
    day_objects,
    expected_end,
    invoice_preview,
    period_object,
    usage_object,
)


READ_SCOPE: Final = "read"
DAYS_DEFAULT: Final = 30
DAYS_MAX: Final = 366
RESOURCES: Final = tuple(resource.value for resource in Resource)

usage = Blueprint("usage", __name__)


async def written_snapshot(bundle: WebServices, organization_id: str) -> OrganizationSnapshot:
    """Return the organization as its actor knows it, when all of that can be read from the store.

    Errors: as `Organizations.ask` and `durable`.
    """
    snapshot = await bundle.organizations.snapshot(organization_id)
    await bundle.organizations.durable(organization_id, snapshot.seq)
    return snapshot


def row_filter() -> tuple[RowFilter, int | None, tuple[int, str] | None]:
    """Return the rows that the query asks for, its limit if it has one, and where to go on.

    Errors: RequestInvalidError.
    """
    parameters = query("period", "task_id", "agent_id", "resource_type", "limit", "cursor")
    resource = choice_in(parameters, "resource_type", RESOURCES)
    period = parameters.get("period")
    if period is not None and not is_period_label(period):
        raise _no_period_label()
    after = cursor_in(parameters, (int, str))
    chosen = RowFilter(
        billing_period=period,
        task_id=name_in(parameters, "task_id"),
        agent_id=name_in(parameters, "agent_id"),
        resource=None if resource is None else Resource(resource),
    )
    limit = limit_in(parameters) if "limit" in parameters else None
    return chosen, limit, None if after is None else (after[0], after[1])


def _no_period_label() -> RequestInvalidError:
    return RequestInvalidError([Problem("/period", "must be a billing period such as 2026-02")])


def wants_csv() -> bool:
    """Tell whether the client prefers CSV to JSON."""
    return bool(request.accept_mimetypes.best_match(["application/json", CSV]) == CSV)


@usage.get("/v1/usage")
async def show() -> Response:
    """Return what a period used, costs and will come to; the open one unless another is named."""
    organization_id = await organization(READ_SCOPE)
    label = query("period").get("period")
    if label is not None and not is_period_label(label):
        raise _no_period_label()
    bundle = services()
    snapshot = await written_snapshot(bundle, organization_id)
    view, period, terms = snapshot.quota, snapshot.period, snapshot.terms
    if label in (None, period.label):
        since_ms = burn_since_ms(period, view.as_of_ms)
        days = (
            []
            if since_ms == period.start_ms
            else await bundle.directory.usage_days(organization_id, since_ms=since_ms)
        )
        shown = usage_object(view, period, terms, expected_end(view, period, terms, days))
        return response(json_reply(200, shown, rate_limit_headers(view)))
    assert label is not None
    found = await bundle.directory.recall_period(organization_id, label)
    if found is None:
        raise ProblemError("period_unknown")
    shown = closed_usage_object(organization_id, *found, now_ms=view.as_of_ms)
    return response(json_reply(200, shown))


@usage.get("/v1/usage/daily")
async def show_daily() -> Response:
    """Return the use of the last days, today included, per UTC day and resource."""
    organization_id = await organization(READ_SCOPE)
    days = integer_in(query("days"), "days", default=DAYS_DEFAULT, largest=DAYS_MAX)
    bundle = services()
    snapshot = await written_snapshot(bundle, organization_id)
    now_ms = snapshot.quota.as_of_ms
    # From the start of the period on, to know what of it is not in the ledger yet.
    since_ms = min(now_ms - (days - 1) * DAY_MS, snapshot.period.start_ms)
    sums = await bundle.directory.usage_days(organization_id, since_ms=since_ms)
    shown = day_objects(sums, snapshot.period, days=days, now_ms=now_ms)
    return response(json_reply(200, Page(data=list(shown))))


@usage.get("/v1/usage/records")
async def show_records() -> Response:
    """List ledger rows, newest first; as CSV all of them, unless a limit is given."""
    organization_id = await organization(READ_SCOPE)
    chosen, limit, after = row_filter()
    bundle = services()
    await written_snapshot(bundle, organization_id)
    if wants_csv():
        made = Response(
            csv_stream(bundle.directory, organization_id, chosen, after=after, limit=limit),
            content_type=f"{CSV}; charset=utf-8",
            headers={"content-disposition": 'attachment; filename="usage-records.csv"'},
        )
        made.timeout = None  # an export takes as long as its reader
        return made
    size = limit_in({}) if limit is None else limit
    found = await bundle.directory.usage_rows(organization_id, chosen, after=after, limit=size + 1)
    page, rest = found[:size], found[size:]
    cursor = make_cursor(page[-1].at_ms, page[-1].id) if rest else None
    content = Page(data=[row_object(row) for row in page], next_cursor=cursor)
    return response(json_reply(200, content))


@usage.get("/v1/usage/periods")
async def show_periods() -> Response:
    """List billing periods with their totals, newest first."""
    organization_id = await organization(READ_SCOPE)
    parameters = query("limit", "cursor")
    limit = limit_in(parameters)
    before = cursor_in(parameters, (int,))
    bundle = services()
    await written_snapshot(bundle, organization_id)
    found = await bundle.directory.periods(
        organization_id, before_ms=None if before is None else before[0], limit=limit + 1
    )
    page, rest = found[:limit], found[limit:]
    cursor = make_cursor(page[-1][0].start_ms) if rest else None
    content = Page(data=[period_object(*each) for each in page], next_cursor=cursor)
    return response(json_reply(200, content))


@usage.get("/v1/invoice/preview")
async def show_invoice() -> Response:
    """Return what the open period would be billed if it ended now."""
    organization_id = await organization(READ_SCOPE)
    query()
    bundle = services()
    snapshot = await written_snapshot(bundle, organization_id)
    label = snapshot.period.label
    sums = await bundle.directory.usage_of_period(organization_id, label)
    shown = invoice_preview(snapshot.quota, snapshot.period, snapshot.terms, sums)
    return response(json_reply(200, shown))
