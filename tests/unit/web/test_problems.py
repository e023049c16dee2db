"""Problem documents: statuses, sentences, headers, and silence about the inside."""

from __future__ import annotations

import json
from decimal import Decimal

import attrs
import pytest

from meterd.core.organization import DenialReason, Hold, QuotaState
from meterd.core.plan import Tier
from meterd.core.quota import QuotaView
from meterd.errors import (
    ActorCrashedError,
    ConfigError,
    CustomerTakenError,
    MeterdError,
    OrganizationUnknownError,
    OverloadedError,
    Problem,
    QuarantinedError,
    RequestInvalidError,
    ShuttingDownError,
    StoreRejectedError,
    StoreUnavailableError,
)
from meterd.web.problems import KINDS, ProblemError, denial_reply, error_reply
from meterd.web.reply import rate_limit_headers


REQUEST_ID = "019c51b8-ee0b-73f4-9e2f-eb89414c343c"
DAY_MS = 86_400_000
VIEW = QuotaView(
    organization_id="org_1",
    plan=Tier.STARTER,
    state=QuotaState.EXCEEDED,
    denial=DenialReason.PLAN_LIMIT_REACHED,
    hold=None,
    label="2026-02",
    period_start_ms=0,
    period_end_ms=30 * DAY_MS,
    used_ms=1_100 * 60_000 + 59_999,
    projected_ms=1_101 * 60_000,
    included_minutes=1_000,
    hard_limit_ms=1_100 * 60_000,
    overage_minutes=100,
    overage_usd=Decimal(5),
    agents_active=3,
    agents_limit=5,
    as_of_ms=23 * DAY_MS,
)


def test_the_plan_limit_is_answered_exactly_as_promised() -> None:
    """Clients branch on these members and headers; they are the contract's own example."""
    reply = denial_reply(
        DenialReason.PLAN_LIMIT_REACHED, VIEW, REQUEST_ID, upgrade_url="https://example.com/up"
    )

    assert reply.status == 429
    assert dict(reply.headers) == {
        "content-type": "application/problem+json",
        "ratelimit-policy": '"agent-minutes";q=1100;w=2592000',
        "ratelimit": '"agent-minutes";r=0;t=604800',
        "retry-after": "604800",
    }
    assert json.loads(reply.body) == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Plan limit reached",
        "status": 429,
        "detail": "Plan limit reached. Upgrade to continue.",
        "instance": f"urn:uuid:{REQUEST_ID}",
        "code": "plan_limit_reached",
        "request_id": REQUEST_ID,
        "plan": "starter",
        "state": "exceeded",
        "used_minutes": 1_100,
        "limit_minutes": 1_000,
        "hard_limit_minutes": 1_100,
        "active_agents": 3,
        "agent_limit": 5,
        "resets_at": "1970-01-31T00:00:00Z",
        "upgrade_url": "https://example.com/up",
    }


@pytest.mark.parametrize(
    ("hold", "detail"),
    [
        (
            Hold.PAYMENT,
            "Subscription suspended: payment failed. Update your payment method to continue.",
        ),
        (Hold.OPERATOR, "Organization suspended. Contact support."),
    ],
)
def test_a_suspension_says_whose_it_is_and_not_when_to_come_back(hold: Hold, detail: str) -> None:
    """No clock ends a suspension, so there is no Retry-After."""
    view = attrs.evolve(VIEW, state=QuotaState.SUSPENDED, hold=hold)
    reply = denial_reply(DenialReason.SUSPENDED, view, REQUEST_ID, upgrade_url=None)
    body = json.loads(reply.body)

    assert (reply.status, body["code"], body["detail"]) == (402, "suspended", detail)
    assert "retry-after" not in dict(reply.headers)
    assert "upgrade_url" not in body


@pytest.mark.parametrize(
    ("reason", "retry_after"),
    [
        (DenialReason.OVERAGE_CAP_REACHED, "604800"),
        (DenialReason.AGENT_BUSY, "10"),
        (DenialReason.AGENT_LIMIT_REACHED, "10"),
    ],
)
def test_the_other_refusals_are_429_and_say_when(reason: DenialReason, retry_after: str) -> None:
    """A slot may be free in seconds, a cap only in the next period."""
    reply = denial_reply(reason, VIEW, REQUEST_ID, upgrade_url=None)

    assert reply.status == 429
    assert dict(reply.headers)["retry-after"] == retry_after


def test_every_reason_to_deny_has_its_words() -> None:
    """A reason without a row in the table would be a 500 at the worst moment."""
    assert {reason.value for reason in DenialReason} <= KINDS.keys()


def test_an_unlimited_plan_has_no_rate_limit() -> None:
    """There is no honest value for q."""
    assert rate_limit_headers(attrs.evolve(VIEW, hard_limit_ms=None)) == ()


def test_remaining_never_goes_below_zero() -> None:
    """The draft has no negative numbers."""
    view = attrs.evolve(VIEW, used_ms=10**9)

    assert dict(rate_limit_headers(view))["ratelimit"].startswith('"agent-minutes";r=0;')


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (StoreUnavailableError("x"), 503, "store_unavailable", "1"),
        (OverloadedError("x", retry_after_ms=2_500), 503, "overloaded", "3"),
        (ShuttingDownError("x"), 503, "shutting_down", "1"),
        (QuarantinedError("x", retry_after_ms=300_000), 503, "organization_quarantined", "300"),
        (ActorCrashedError("x"), 503, "actor_crashed", "1"),
        (OrganizationUnknownError("x"), 404, "organization_unknown", None),
        (CustomerTakenError("x"), 409, "customer_taken", None),
        (StoreRejectedError("secret"), 500, "internal_error", None),
        (ConfigError("secret"), 500, "internal_error", None),
        (ProblemError("task_closed"), 409, "task_closed", None),
    ],
)
def test_each_exception_has_its_status_and_says_nothing_of_the_inside(
    error: MeterdError, status: int, code: str, retry_after: str | None
) -> None:
    """Transient trouble comes with Retry-After; no message of ours leaves the house."""
    reply = error_reply(error, REQUEST_ID)
    body = json.loads(reply.body)

    assert (reply.status, body["status"], body["code"]) == (status, status, code)
    assert dict(reply.headers).get("retry-after") == retry_after
    assert "secret" not in reply.body.decode()


def test_an_invalid_request_lists_its_problems() -> None:
    """RFC 9457, 3: `errors` with a pointer and a detail each."""
    reply = error_reply(RequestInvalidError([Problem("/a", "is required")]), REQUEST_ID)

    assert reply.status == 422
    assert json.loads(reply.body)["errors"] == [{"pointer": "/a", "detail": "is required"}]
