"""Every refusal meterd's HTTP interface knows, in one table, as RFC 9457 problem documents.

Rule 1: a code has one status, one title and one default sentence; `detail` may be replaced by a
sentence of ours, never by anything a request said.
Rule 2: refusals by the plan carry what the caller needs to act: plan, state, figures, reset.
Rule 3: what is our own trouble (5xx) says when to try again and nothing about the inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
import msgspec
import structlog

from meterd.core.organization import DenialReason, Hold
from meterd.core.quota import QuotaView
from meterd.core.units import SECOND_MS, ceil_div, rfc3339
from meterd.errors import (
    ActorCrashedError,
    CustomerTakenError,
    MeterdError,
    OrganizationUnknownError,
    OverloadedError,
    OwnershipLostError,
    PaymentsError,
    Problem,
    QuarantinedError,
    RequestInvalidError,
    ShuttingDownError,
    StoreUnavailableError,
)
from meterd.web.codec import BadJsonError
from meterd.web.reply import Headers, Reply, rate_limit_headers, seconds_to


log = structlog.get_logger(__name__)

PROBLEM_JSON: Final = "application/problem+json"

QUOTA_EXCEEDED: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"
"""Problem type of draft-ietf-httpapi-ratelimit-headers."""

NO_TYPE: Final = "about:blank"
"""RFC 9457, 4.2.1: the title is the status phrase and `code` says the rest."""

SLOT_RETRY_S: Final = 10
"""Seconds after which an agent may ask for a slot again: a heartbeat interval."""

TRANSIENT_RETRY_S: Final = 1
"""Seconds after which our own trouble is worth another try."""


@attrs.frozen
class Kind:
    """What every problem of one code has in common."""

    status: int
    title: str
    detail: str
    type: str = NO_TYPE


_BAD_REQUEST, _NOT_FOUND, _CONFLICT = "Bad Request", "Not Found", "Conflict"
_UNAVAILABLE, _UNPROCESSABLE = "Service Unavailable", "Unprocessable Content"

KINDS: Final[Mapping[str, Kind]] = {
    # The plan's refusals, in the order in which they are checked.
    "suspended": Kind(402, "Organization suspended", "Organization suspended. Contact support."),
    "plan_limit_reached": Kind(
        429, "Plan limit reached", "Plan limit reached. Upgrade to continue.", QUOTA_EXCEEDED
    ),
    "overage_cap_reached": Kind(
        429,
        "Overage cap reached",
        "The organization's own overage cap is reached. Raise it to continue.",
        QUOTA_EXCEEDED,
    ),
    "agent_busy": Kind(
        429,
        "Agent busy",
        "This agent already runs as many tasks as one agent may.",
        QUOTA_EXCEEDED,
    ),
    "agent_limit_reached": Kind(
        429,
        "Agent limit reached",
        "Agent limit reached. Upgrade to run more agents at once.",
        QUOTA_EXCEEDED,
    ),
    "task_limit_reached": Kind(
        429,
        "Task limit reached",
        "The organization already runs as many tasks as one organization may.",
        QUOTA_EXCEEDED,
    ),
    # The caller's mistakes.
    "bad_request": Kind(400, _BAD_REQUEST, "The request cannot be understood."),
    "bad_json": Kind(400, _BAD_REQUEST, "The body is not valid JSON."),
    "bad_signature": Kind(400, _BAD_REQUEST, "The signature is missing, wrong or not of now."),
    "unauthorized": Kind(
        401, "Unauthorized", "A valid key is required, as `Authorization: Bearer`."
    ),
    "wrong_scope": Kind(403, "Forbidden", "This key may not do this."),
    "not_found": Kind(404, _NOT_FOUND, "There is nothing here."),
    "organization_unknown": Kind(404, _NOT_FOUND, "There is no such organization."),
    "task_unknown": Kind(404, _NOT_FOUND, "There is no such task."),
    "period_unknown": Kind(404, _NOT_FOUND, "There is no such billing period."),
    "key_unknown": Kind(404, _NOT_FOUND, "There is no such key."),
    "endpoint_unknown": Kind(404, _NOT_FOUND, "There is no such webhook endpoint."),
    "delivery_unknown": Kind(404, _NOT_FOUND, "There is no such delivery."),
    "event_unknown": Kind(404, _NOT_FOUND, "There is no such event."),
    "job_unknown": Kind(404, _NOT_FOUND, "There is no such job."),
    "charge_unknown": Kind(404, _NOT_FOUND, "There is no such charge."),
    "report_unknown": Kind(404, _NOT_FOUND, "There are no figures of this day."),
    "actor_unknown": Kind(404, _NOT_FOUND, "There is no such actor in memory."),
    "method_not_allowed": Kind(405, "Method Not Allowed", "This method is not allowed here."),
    "not_acceptable": Kind(406, "Not Acceptable", "There is no such representation."),
    "request_timeout": Kind(408, "Request Timeout", "The request took too long to arrive."),
    "task_conflict": Kind(
        409, _CONFLICT, "A task with this id was started with a different request."
    ),
    "task_closed": Kind(
        409, _CONFLICT, "The task was lost more than 24 hours ago and takes no more reports."
    ),
    "plan_managed_by_stripe": Kind(
        409,
        _CONFLICT,
        "A live Stripe subscription decides the plan. Change it there, or change the contract.",
    ),
    "billing_off": Kind(409, _CONFLICT, "Billing is off: this meterd has no Stripe API key."),
    "already_subscribed": Kind(
        409, _CONFLICT, "A subscription is live. Change it in the billing portal."
    ),
    "plan_not_for_sale": Kind(409, _CONFLICT, "This plan has no price at Stripe."),
    "charge_not_held": Kind(
        409, _CONFLICT, "The charge is not waiting for a decision: it went on, or is final."
    ),
    "actor_busy": Kind(
        409,
        _CONFLICT,
        "The actor cannot leave memory: it is not ready, tasks run, or something waits.",
    ),
    "not_for_this_actor": Kind(409, _CONFLICT, "This can be done to organizations' actors only."),
    "too_many_endpoints": Kind(
        409, _CONFLICT, "The organization has as many webhook endpoints as it may."
    ),
    "too_many_keys": Kind(
        409, _CONFLICT, "The organization has as many keys as it may: revoke some first."
    ),
    "user_active": Kind(409, _CONFLICT, "Tasks of this person run: end them first."),
    "job_running": Kind(409, _CONFLICT, "The job is running already."),
    "idempotency_in_flight": Kind(
        409, _CONFLICT, "A request with this Idempotency-Key is still being answered."
    ),
    "id_conflict": Kind(409, _CONFLICT, "An event with this id and source said something else."),
    "event_ambiguous": Kind(
        409, _CONFLICT, "Events of several sources have this id: name the `source`."
    ),
    "organization_exists": Kind(409, _CONFLICT, "An organization with this id exists already."),
    "customer_taken": Kind(
        409, _CONFLICT, "Another organization is linked to this Stripe customer."
    ),
    "body_too_large": Kind(413, "Content Too Large", "The body is too large."),
    "unsupported_media_type": Kind(
        415, "Unsupported Media Type", "Send JSON, as `Content-Type: application/json`."
    ),
    "upgrade_required": Kind(
        426, "Upgrade Required", "Open a WebSocket here, subprotocol `meterd.v1`."
    ),
    "invalid_request": Kind(422, _UNPROCESSABLE, "The request is not valid; see `errors`."),
    "idempotency_key_reused": Kind(
        422, _UNPROCESSABLE, "This Idempotency-Key was sent with a different request."
    ),
    "idempotency_key_invalid": Kind(
        422, _UNPROCESSABLE, "An Idempotency-Key is 1 to 255 printable ASCII characters."
    ),
    "time_out_of_range": Kind(
        422, _UNPROCESSABLE, "An event may be up to 35 days old and 5 minutes ahead."
    ),
    "cost_too_large": Kind(
        422, _UNPROCESSABLE, "Quantity x unit cost must be under $10,000: split the event."
    ),
    "credit_exceeds_usage": Kind(
        422, _UNPROCESSABLE, "The credit is larger than what the period used."
    ),
    "exceeds_hard_limit": Kind(422, _UNPROCESSABLE, "The debit would pass the hard limit."),
    "exceeds_overage_cap": Kind(
        422, _UNPROCESSABLE, "The debit would pass the organization's own overage cap."
    ),
    # Our own trouble.
    "internal_error": Kind(500, "Internal Server Error", "The request failed."),
    "stripe_refused": Kind(502, "Bad Gateway", "Stripe refused the request."),
    "stripe_unavailable": Kind(503, _UNAVAILABLE, "Stripe is not reachable. Try again soon."),
    "store_unavailable": Kind(
        503, _UNAVAILABLE, "The database is not reachable. Nothing is lost: send it again."
    ),
    "overloaded": Kind(503, _UNAVAILABLE, "Too much is waiting already. Try again soon."),
    "shutting_down": Kind(503, _UNAVAILABLE, "The server is restarting. Try again soon."),
    "organization_quarantined": Kind(
        503, _UNAVAILABLE, "This organization failed too often and is paused. Try again later."
    ),
    "actor_crashed": Kind(503, _UNAVAILABLE, "The request failed and changed nothing. Try again."),
}

PAYMENT_SUSPENDED: Final = (
    "Subscription suspended: payment failed. Update your payment method to continue."
)


class ProblemError(MeterdError):
    """A request ends with the problem of this code."""

    def __init__(
        self,
        code: str,
        *,
        detail: str | None = None,
        errors: Sequence[Problem] = (),
        headers: Headers = (),
    ) -> None:
        assert code in KINDS, code
        super().__init__(code)
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = tuple(headers)


def problem_reply(
    code: str,
    request_id: str,
    *,
    detail: str | None = None,
    headers: Headers = (),
    members: Mapping[str, Any] | None = None,
) -> Reply:
    """Return the problem document of a code; `members` are added at its end."""
    kind = KINDS[code]
    document: dict[str, Any] = {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": detail or kind.detail,
        "instance": f"urn:uuid:{request_id}",
        "code": code,
        "request_id": request_id,
        **(members or {}),
    }
    body = msgspec.json.encode(document)
    return Reply(kind.status, body, (("content-type", PROBLEM_JSON), *headers))


def error_reply(error: MeterdError, request_id: str) -> Reply:
    """Return the answer to a request that ended with one of our exceptions.

    What is nobody's mistake but ours (500) is logged, with the id that the client is told.
    """
    if isinstance(error, ProblemError):
        members = {"errors": list(map(attrs.asdict, error.errors))} if error.errors else None
        return problem_reply(
            error.code, request_id, detail=error.detail, headers=error.headers, members=members
        )
    if isinstance(error, RequestInvalidError):
        members = {"errors": list(map(attrs.asdict, error.problems))}
        return problem_reply("invalid_request", request_id, members=members)
    if isinstance(error, BadJsonError):
        return problem_reply("bad_json", request_id, detail=str(error))
    code = code_of(error)
    if code == "internal_error":
        log.error("request_failed", request_id=request_id, exc_info=error)
    if KINDS[code].status != 503:  # noqa: PLR2004 - Service Unavailable
        return problem_reply(code, request_id)
    after = str(retry_after_s(error))
    return problem_reply(code, request_id, headers=(("retry-after", after),))


def code_of(error: MeterdError) -> str:
    """Return the code under which an exception is known outside."""
    match error:
        case ProblemError():
            return error.code
        case StoreUnavailableError():
            return "store_unavailable"
        case PaymentsError():
            return "stripe_unavailable" if error.transient else "stripe_refused"
        case OverloadedError():
            return "overloaded"
        case ShuttingDownError() | OwnershipLostError():
            return "shutting_down"
        case QuarantinedError():
            return "organization_quarantined"
        case ActorCrashedError():
            return "actor_crashed"
        case OrganizationUnknownError():
            return "organization_unknown"
        case CustomerTakenError():
            return "customer_taken"
        case _:
            return "internal_error"


def retry_after_s(error: MeterdError) -> int:
    """Return after how many seconds a transient error is worth another try."""
    if isinstance(error, OverloadedError | QuarantinedError):
        return max(TRANSIENT_RETRY_S, ceil_div(error.retry_after_ms, SECOND_MS))
    return TRANSIENT_RETRY_S


# --- the plan's refusals --------------------------------------------------------------------------


def denial_message(reason: DenialReason, hold: Hold | None) -> str:
    """Return the sentence that tells a person why work is refused."""
    if reason is DenialReason.SUSPENDED and hold is Hold.PAYMENT:
        return PAYMENT_SUSPENDED
    return KINDS[reason.value].detail


def denial_reply(
    reason: DenialReason, view: QuotaView, request_id: str, *, upgrade_url: str | None
) -> Reply:
    """Return the 402 or 429 of a refusal, with its figures and its rate limit headers."""
    members: dict[str, Any] = {
        "plan": view.plan.value,
        "state": view.state.value,
        "used_minutes": view.used_minutes,
        "limit_minutes": view.included_minutes,
        "hard_limit_minutes": view.hard_limit_minutes,
        "active_agents": view.agents_active,
        "agent_limit": view.agents_limit,
        "resets_at": rfc3339(view.period_end_ms),
    }
    if upgrade_url is not None:
        members["upgrade_url"] = upgrade_url
    headers = rate_limit_headers(view)
    if reason in (DenialReason.PLAN_LIMIT_REACHED, DenialReason.OVERAGE_CAP_REACHED):
        after_s = seconds_to(view.period_end_ms, view.as_of_ms)
        headers = (*headers, ("retry-after", str(max(1, after_s))))
    elif reason is not DenialReason.SUSPENDED:
        headers = (*headers, ("retry-after", str(SLOT_RETRY_S)))
    return problem_reply(
        reason.value,
        request_id,
        detail=denial_message(reason, view.hold),
        headers=headers,
        members=members,
    )
