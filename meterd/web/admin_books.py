"""The books for operators: jobs, reports, revenue, reconciliation and findings (contract §11)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from quart import Blueprint, Response, request

from meterd.actors.books import Books
from meterd.actors.reports import day_of
from meterd.actors.scheduler import JobBusyError, JobUnknownError, Scheduler
from meterd.core.units import INSTANT_MS_MAX
from meterd.errors import Problem, RequestInvalidError
from meterd.reporting.figures import StoredReport
from meterd.web.book_shapes import (
    books_reconciled,
    day_revenue,
    finding_object,
    job_object,
    live_revenue,
    run_object,
)
from meterd.web.problems import ProblemError
from meterd.web.reply import Reply, json_reply
from meterd.web.requests import (
    choice_in,
    cursor_in,
    limit_in,
    make_cursor,
    name_in,
    operator,
    page_of,
    query,
    response,
    services,
)
from meterd.web.shapes import Page
from meterd.web.trail import note


MARKDOWN: Final = "text/markdown"

admin_books = Blueprint("admin_books", __name__, url_prefix="/admin/v1")


def _books() -> Books:
    """Return the books. Errors: ProblemError `not_found` where none are kept."""
    books = services().books
    if books is None:
        raise ProblemError("not_found")
    return books


def _scheduler() -> Scheduler:
    """Return the scheduler. Errors: ProblemError `not_found` where there is none."""
    scheduler = services().scheduler
    if scheduler is None:
        raise ProblemError("not_found")
    return scheduler


# --- jobs -----------------------------------------------------------------------------------------


@admin_books.get("/jobs")
async def show_jobs() -> Response:
    """List the jobs with their last run and the next."""
    await operator()
    parameters = query("limit", "cursor")
    numbered = enumerate(await _scheduler().jobs())
    page, cursor = page_of(numbered, parameters, place=lambda one: (one[0], one[1].name))
    content = Page(data=[job_object(view) for _, view in page], next_cursor=cursor)
    return response(json_reply(200, content))


@admin_books.get("/jobs/<name>/runs")
async def show_runs(name: str) -> Response:
    """List the latest runs of a job, newest first."""
    await operator()
    query()
    try:
        runs = await _scheduler().job_runs(name)
    except JobUnknownError:
        raise ProblemError("job_unknown") from None
    return response(json_reply(200, Page(data=[run_object(run) for run in runs])))


@admin_books.post("/jobs/<name>/run")
async def run_job(name: str) -> Response:
    """Start a job now; it goes on in the background and is seen in its runs."""
    actor = await operator()
    query()
    scheduler = _scheduler()
    if name in {view.name for view in await scheduler.jobs()}:
        await note(services(), actor=actor, action="job.run", after={"job": name})
    try:
        run = await scheduler.start(name)
    except JobUnknownError:
        raise ProblemError("job_unknown") from None
    except JobBusyError:
        raise ProblemError("job_running") from None
    return response(json_reply(202, run_object(run)))


# --- reports --------------------------------------------------------------------------------------


@admin_books.get("/reports/<date>")
async def show_report(date: str) -> Response:
    """Return a day's report: JSON, or Markdown when that is what is accepted.

    `refresh=true` makes it anew and writes its file.
    """
    actor = await operator()
    is_anew = _flag(query("refresh"), "refresh")
    if is_anew and day_of(date) is not None:
        await note(services(), actor=actor, action="report.refresh", after={"day": date})
    report = await _report(date, is_anew=is_anew)
    if MARKDOWN in request.headers.get("accept", ""):
        headers = (("content-type", f"{MARKDOWN}; charset=utf-8"),)
        return response(Reply(200, report.markdown.encode(), headers))
    return response(json_reply(200, json.loads(report.content_json)))


@admin_books.get("/revenue")
async def show_revenue() -> Response:
    """Return what customers are worth a month: now, or at the end of a day that was kept."""
    await operator()
    date = query("date").get("date")
    if date is None:
        revenue = await _books().reports.revenue()
        return response(json_reply(200, live_revenue(revenue)))
    if day_of(date) is None:
        raise RequestInvalidError([Problem("/date", "must be a day such as 2026-02-28")])
    content = json.loads((await _report(date, is_anew=False)).content_json)
    if content["revenue"] is None:
        raise ProblemError("report_unknown")
    return response(json_reply(200, day_revenue(content)))


async def _report(date: str, *, is_anew: bool) -> StoredReport:
    day_ms = day_of(date)
    if day_ms is None:
        raise ProblemError("report_unknown")
    books = _books()
    report = await (books.refreshed(day_ms) if is_anew else books.reports.get(day_ms))
    if report is None:
        raise ProblemError("report_unknown")
    return report


# --- reconciliation -------------------------------------------------------------------------------


@admin_books.post("/reconcile/ledger")
async def reconcile_ledger() -> Response:
    """Compare the ledger with counters, tasks, daily metrics and live actors, now."""
    actor = await operator()
    is_dry = _flag(query("dry_run"), "dry_run")
    if not is_dry:
        await note(services(), actor=actor, action="reconcile.ledger")
    found = await _books().reconcile(is_dry=is_dry)
    return response(json_reply(200, books_reconciled(found, is_dry=is_dry)))


@admin_books.get("/findings")
async def show_findings() -> Response:
    """List findings, newest first."""
    await operator()
    parameters = query("kind", "organization_id", "limit", "cursor")
    limit = limit_in(parameters)
    after = cursor_in(parameters, (int, str)) or [INSTANT_MS_MAX, ""]
    found = await _books().findings.findings(
        before=(after[0], after[1]),
        kind=name_in(parameters, "kind"),
        organization_id=name_in(parameters, "organization_id"),
        limit=limit + 1,
    )
    page, rest = found[:limit], found[limit:]
    cursor = make_cursor(page[-1].at_ms, page[-1].id) if rest else None
    return response(
        json_reply(200, Page(data=[finding_object(one) for one in page], next_cursor=cursor))
    )


def _flag(parameters: Mapping[str, str], field: str) -> bool:
    """Return a parameter that is `true` or `false`. Errors: RequestInvalidError."""
    return choice_in(parameters, field, ("true", "false")) == "true"
