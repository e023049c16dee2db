"""Tasks over HTTP: start, heartbeat, finish, look up.

Rule 1: an answer with 2xx is given only when what it says is committed.
Rule 2: each operation is one function that returns a `Reply`; the hot path shares `beat_reply`.
Rule 3: what belongs to another organization does not exist here.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from quart import Blueprint, Response

from meterd.core.commands import (
    Beat,
    Denied,
    Finished,
    FinishTask,
    Heartbeat,
    Outcome,
    Started,
    StartTask,
    TaskClosed,
    TaskConflict,
    TaskUnknown,
)
from meterd.core.ids import is_printable_name
from meterd.core.quota import QuotaView
from meterd.core.task import TaskInfo, TaskOutcome, TaskState
from meterd.web.codec import canonical_json
from meterd.web.idempotency import effect_id
from meterd.web.problems import ProblemError, denial_reply
from meterd.web.quota import quota_view
from meterd.web.raw_paths import raw_path
from meterd.web.reply import Reply, json_reply, rate_limit_headers
from meterd.web.requests import (
    body_as,
    choice_in,
    cursor_in,
    limit_in,
    make_cursor,
    organization,
    query,
    request_id,
    response,
    services,
)
from meterd.web.schema import FinishBody, HeartbeatBody, StartTaskBody
from meterd.web.services import WebServices
from meterd.web.shapes import (
    HeartbeatAnswer,
    Page,
    finished_task,
    quota_object,
    task_object,
)


AGENT_SCOPE: Final = "agent"
TASK_PREFIX: Final = "/v1/tasks/"
STATES: Final = tuple(state.value for state in TaskState)

tasks = Blueprint("tasks", __name__)


def start_command(body: StartTaskBody, task_id: str) -> StartTask:
    """Return the command that a start asks for; started_at is set when it is admitted."""
    return StartTask(
        info=TaskInfo(
            task_id=task_id,
            agent_id=body.agent_id,
            user_id=body.user_id,
            metadata_json=canonical_json(body.metadata) if body.metadata else "{}",
            initial_elapsed_ms=body.elapsed_ms,
            started_at_ms=0,
        )
    )


async def start_reply(
    bundle: WebServices, organization_id: str, body: StartTaskBody, request: str
) -> Reply:
    """Start a task, or answer again for the one that this very request started before.

    Errors: as `Organizations.ask` and `durable`.
    """
    task_id = body.task_id or effect_id(bundle.ids, "task")
    answer = await bundle.organizations.ask(organization_id, start_command(body, task_id))
    view = await quota_view(bundle, organization_id, body.agent_id)
    match answer.outcome:
        case Started(task=task, repeated=repeated):
            await bundle.organizations.durable(organization_id, answer.seq)
            headers = (
                ("location", TASK_PREFIX + quote(task.task_id, safe="")),
                *rate_limit_headers(view),
            )
            return json_reply(200 if repeated else 201, task_object(task), headers)
        case Denied(reason=reason):
            return denial_reply(reason, view, request, upgrade_url=bundle.config.upgrade_url)
        case outcome:
            raise _refusal(outcome)


async def heartbeat_reply(
    bundle: WebServices, organization_id: str, task_id: str, elapsed_ms: int
) -> Reply:
    """Take a report. Errors: ProblemError; as `Organizations.ask` and `durable`."""
    answer = await bundle.organizations.ask(organization_id, Heartbeat(task_id, elapsed_ms))
    if not isinstance(answer.outcome, Beat):
        raise _refusal(answer.outcome)
    view = await quota_view(bundle, organization_id, answer.outcome.task.info.agent_id)
    await bundle.organizations.durable(organization_id, answer.seq)
    return beat_reply(answer.outcome, view)


def beat_reply(beat: Beat, view: QuotaView) -> Reply:
    """Return the answer to a report that is durable."""
    content = HeartbeatAnswer(
        task=task_object(beat.task),
        quota=quota_object(view),
        command="stop" if beat.finished or beat.stop is not None else "continue",
        clamped=beat.clamped,
    )
    return json_reply(200, content, rate_limit_headers(view))


async def finish_reply(
    bundle: WebServices, organization_id: str, task_id: str, body: FinishBody
) -> Reply:
    """End a task. Errors: ProblemError; as `Organizations.ask` and `durable`."""
    command = FinishTask(
        task_id=task_id, elapsed_ms=body.elapsed_ms, outcome=TaskOutcome(body.outcome)
    )
    answer = await bundle.organizations.ask(organization_id, command)
    if not isinstance(answer.outcome, Finished):
        raise _refusal(answer.outcome)
    view = await quota_view(bundle, organization_id)
    await bundle.organizations.durable(organization_id, answer.seq)
    shown = finished_task(answer.outcome.task, clamped=answer.outcome.clamped)
    return json_reply(200, shown, rate_limit_headers(view))


def _refusal(outcome: Outcome) -> ProblemError:
    match outcome:
        case TaskUnknown():
            return ProblemError("task_unknown")
        case TaskConflict():
            return ProblemError("task_conflict")
        case TaskClosed():
            return ProblemError("task_closed")
        case _:
            raise AssertionError(outcome)


async def written(bundle: WebServices, organization_id: str) -> QuotaView:
    """Wait until what the organization has decided so far can be read; return its quota.

    Errors: as `Organizations.ask` and `durable`.
    """
    snapshot = await bundle.organizations.snapshot(organization_id)
    await bundle.organizations.durable(organization_id, snapshot.seq)
    return snapshot.quota


def _task_id(task_id: str, *, operation: str | None = None) -> str:
    """Return the task id of the path; an encoded slash belongs to it, a bare one does not.

    Errors: ProblemError `task_unknown`, `not_found` or `method_not_allowed`.
    """
    segments = raw_path().removeprefix(TASK_PREFIX.encode()).split(b"/")
    if len(segments) != (1 if operation is None else 2):
        if len(segments) == 2 and segments[1] in {b"heartbeat", b"finish"}:  # noqa: PLR2004
            raise ProblemError("method_not_allowed", headers=(("allow", "OPTIONS, POST"),))
        raise ProblemError("not_found")
    if not is_printable_name(task_id):
        raise ProblemError("task_unknown")
    return task_id


@tasks.post("/v1/tasks")
async def start() -> Response:
    """Start a task; safe to repeat with a task_id."""
    organization_id = await organization(AGENT_SCOPE)
    query()
    body = await body_as(StartTaskBody)
    return response(await start_reply(services(), organization_id, body, request_id()))


@tasks.post("/v1/tasks/<path:task_id>/heartbeat")
async def heartbeat(task_id: str) -> Response:
    """Report a running task's cumulative time; safe to repeat."""
    organization_id = await organization(AGENT_SCOPE)
    task_id = _task_id(task_id, operation="heartbeat")
    query()
    body = await body_as(HeartbeatBody)
    return response(await heartbeat_reply(services(), organization_id, task_id, body.elapsed_ms))


@tasks.post("/v1/tasks/<path:task_id>/finish")
async def finish(task_id: str) -> Response:
    """End a task; safe to repeat."""
    organization_id = await organization(AGENT_SCOPE)
    task_id = _task_id(task_id, operation="finish")
    query()
    body = await body_as(FinishBody)
    return response(await finish_reply(services(), organization_id, task_id, body))


@tasks.get("/v1/tasks")
async def show_all() -> Response:
    """List tasks, newest start first."""
    organization_id = await organization("read")
    parameters = query("state", "limit", "cursor")
    state = choice_in(parameters, "state", STATES)
    limit = limit_in(parameters)
    after = cursor_in(parameters, (int, str))
    bundle = services()
    view = await written(bundle, organization_id)
    found = await bundle.directory.tasks(
        organization_id,
        state=None if state is None else TaskState(state),
        after=None if after is None else (after[0], after[1]),
        limit=limit + 1,
    )
    page, rest = found[:limit], found[limit:]
    cursor = make_cursor(page[-1].info.started_at_ms, page[-1].task_id) if rest else None
    content = Page(data=[task_object(task) for task in page], next_cursor=cursor)
    return response(json_reply(200, content, rate_limit_headers(view)))


@tasks.get("/v1/tasks/<path:task_id>")
async def show(task_id: str) -> Response:
    """Return one task."""
    organization_id = await organization("read")
    task_id = _task_id(task_id)
    query()
    bundle = services()
    view = await written(bundle, organization_id)
    task = await bundle.directory.recall_task(organization_id, task_id)
    if task is None:
        raise ProblemError("task_unknown")
    return response(json_reply(200, task_object(task), rate_limit_headers(view)))
