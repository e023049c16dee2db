"""What requests say: one structure per body, with bounds and descriptions (contract §1, §6, §7).

Rule 1: a field's `Meta` has its description for people and, under `extra`, `must`: the words of
the problem when the value is wrong, and `rule`: what a pattern cannot say.
Rule 2: unknown fields are refused everywhere.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from meterd.core.ids import NAME_CHARACTERS_MAX, ORGANIZATION_ID, is_printable_name
from meterd.core.money import is_rate
from meterd.core.plan import (
    AGENT_MINUTES_MAX,
    AGENTS_MAX,
    BASE_PRICE_USD_MAX,
    GRACE_PERCENT_MAX,
    Contract,
    Tier,
)
from meterd.core.task import ELAPSED_MS_MAX, START_ELAPSED_MS_MAX
from meterd.core.units import MINUTE_MS
from meterd.web.codec import METADATA_BYTES_MAX, is_storable_metadata


ADJUSTMENT_MS_MAX = 1_000_000 * MINUTE_MS
"""Agent time one adjustment may add or credit: about 100 ledger rows."""

REASON_CHARACTERS_MAX = 500
"""Longest reason of an administrative write."""

ORGANIZATION_NAME_CHARACTERS_MAX = 200
"""Longest name of an organization; the database has the same check."""

_NAME_MUST = f"must be 1 to {NAME_CHARACTERS_MAX} printable characters"


def is_organization_id(text: str) -> bool:
    """Tell whether text can be an organization's id."""
    return ORGANIZATION_ID.fullmatch(text) is not None


def _is_printable(text: str) -> bool:
    return text.isprintable()


def _is_reason(text: str) -> bool:
    return bool(text.strip()) and text.isprintable()


def _name(description: str) -> Meta:
    return Meta(
        min_length=1,
        max_length=NAME_CHARACTERS_MAX,
        description=description,
        extra={"must": _NAME_MUST, "rule": is_printable_name},
    )


def is_task_id(text: str) -> bool:
    """Tell whether text can be a task's id.

    It is part of paths, where clients and proxies resolve `.` and `..`.
    """
    return is_printable_name(text) and text not in {".", ".."}


TaskId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=NAME_CHARACTERS_MAX,
        description="The task, unique within the organization.",
        extra={
            "must": f'{_NAME_MUST}, and not "." or ".."',
            "rule": is_task_id,
        },
    ),
]
AgentId = Annotated[str, _name("The agent that runs the task.")]
UserId = Annotated[str, _name("The person on whose behalf it runs; can be erased later.")]
ElapsedMs = Annotated[
    int,
    Meta(
        ge=0,
        le=ELAPSED_MS_MAX,
        description="Milliseconds the task has run since it began; cumulative.",
        extra={"must": f"must be an integer from 0 to {ELAPSED_MS_MAX}"},
    ),
]
StartElapsedMs = Annotated[
    int,
    Meta(
        ge=0,
        le=START_ELAPSED_MS_MAX,
        description="Milliseconds already run, when the agent had to start without meterd.",
        extra={"must": f"must be an integer from 0 to {START_ELAPSED_MS_MAX}"},
    ),
]
Metadata = Annotated[
    dict[str, Any],
    Meta(
        description="Anything you want to find again; kept with the task and its ledger rows.",
        extra={
            "must": f"must be an object of at most {METADATA_BYTES_MAX} bytes as JSON, "
            "without NUL or lone surrogates in its text, and integers of at most 64 bits",
            "rule": is_storable_metadata,
        },
    ),
]
Outcome = Annotated[
    Literal["succeeded", "failed", "cancelled"],
    Meta(
        description="How the task ended.",
        extra={"must": "must be one of succeeded, failed, cancelled"},
    ),
]
Reason = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=REASON_CHARACTERS_MAX,
        description="Why; kept in the audit log.",
        extra={
            "must": f"must be 1 to {REASON_CHARACTERS_MAX} printable characters, not only blanks",
            "rule": _is_reason,
        },
    ),
]


class Request(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A body of a request."""


class StartTaskBody(Request, frozen=True):
    """Ask to run a task."""

    agent_id: AgentId
    task_id: TaskId | None = None
    user_id: UserId | None = None
    metadata: Metadata | None = None
    elapsed_ms: StartElapsedMs = 0


class HeartbeatBody(Request, frozen=True):
    """Report a running task's time."""

    elapsed_ms: ElapsedMs


class FinishBody(Request, frozen=True):
    """Report a task's last time and how it ended."""

    elapsed_ms: ElapsedMs
    outcome: Outcome


# --- administration -----------------------------------------------------------------------------


def _is_usd_rate(text: str) -> bool:
    return text.isprintable() and is_rate(Decimal(text))


def _is_base_price(text: str) -> bool:
    return text.isprintable() and Decimal(text) <= BASE_PRICE_USD_MAX


PlanName = Annotated[
    Literal["free", "starter", "pro", "enterprise"],
    Meta(description="The plan.", extra={"must": "must be one of free, starter, pro, enterprise"}),
]
OrganizationName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=ORGANIZATION_NAME_CHARACTERS_MAX,
        description="Name of the organization, for people.",
        extra={
            "must": f"must be 1 to {ORGANIZATION_NAME_CHARACTERS_MAX} printable characters",
            "rule": _is_reason,
        },
    ),
]
OrganizationId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=f"^{ORGANIZATION_ID.pattern}$",
        description="Id of the organization; a Clerk organization id fits.",
        extra={
            "must": "must be 1 to 64 characters of A-Z, a-z, 0-9, _ and -",
            "rule": is_organization_id,
        },
    ),
]
CustomerId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9_-]+$",
        description="Stripe customer; one organization each.",
        extra={
            "must": "must be 1 to 128 characters of A-Z, a-z, 0-9, _ and -",
            "rule": _is_printable,
        },
    ),
]
Agents = Annotated[
    int,
    Meta(
        ge=0,
        le=AGENTS_MAX,
        description="Distinct agents at once; null: unlimited.",
        extra={"must": f"must be an integer from 0 to {AGENTS_MAX}"},
    ),
]
AgentMinutes = Annotated[
    int,
    Meta(
        ge=0,
        le=AGENT_MINUTES_MAX,
        description="Included agent-minutes per period.",
        extra={"must": f"must be an integer from 0 to {AGENT_MINUTES_MAX}"},
    ),
]
GracePercent = Annotated[
    int,
    Meta(
        ge=0,
        le=GRACE_PERCENT_MAX,
        description="Grace past the included minutes, in percent of them.",
        extra={"must": f"must be an integer from 0 to {GRACE_PERCENT_MAX}"},
    ),
]
UsdRate = Annotated[
    str,
    Meta(
        pattern=r"^0(\.[0-9]{1,6})?$",
        description="US dollars per agent-minute, as text.",
        extra={
            "must": 'must be text such as "0.050000": at least 0, under 1, at most 6 decimals',
            "rule": _is_usd_rate,
        },
    ),
]
UsdPrice = Annotated[
    str,
    Meta(
        pattern=r"^(0|[1-9][0-9]{0,7})(\.[0-9]{1,2})?$",
        description="US dollars per month, as text.",
        extra={
            "must": f'must be text such as "49.00": from 0 to {BASE_PRICE_USD_MAX}, '
            "at most 2 decimals",
            "rule": _is_base_price,
        },
    ),
]
Flag = Annotated[bool, Meta(extra={"must": "must be true or false"})]


class ContractBody(Request, frozen=True):
    """What was agreed with one organization; each field overlays its plan's."""

    agents: Agents | UnsetType | None = UNSET
    agent_minutes: AgentMinutes | UnsetType = UNSET
    grace_percent: GracePercent | UnsetType = UNSET
    overage_usd_per_minute: UsdRate | UnsetType = UNSET
    base_price_usd: UsdPrice | UnsetType = UNSET
    new_tasks_in_grace: Flag | UnsetType = UNSET


class NewOrganizationBody(Request, frozen=True):
    """Create an organization."""

    id: OrganizationId
    name: OrganizationName
    plan: PlanName
    contract: ContractBody | None = None
    stripe_customer_id: CustomerId | None = None
    reason: Reason | UnsetType = UNSET


class OrganizationPatch(Request, frozen=True):
    """Change what is given; `contract` replaces the whole contract, null removes it."""

    name: OrganizationName | UnsetType = UNSET
    plan: PlanName | UnsetType = UNSET
    contract: ContractBody | UnsetType | None = UNSET
    stripe_customer_id: CustomerId | UnsetType | None = UNSET
    suspended: Flag | UnsetType = UNSET
    reason: Reason | UnsetType = UNSET


Scope = Literal["agent", "read", "manage"]


class NewKeyBody(Request, frozen=True):
    """Create a key of an organization."""

    scopes: Annotated[
        list[Scope],
        Meta(
            min_length=1,
            max_length=3,
            description="What the key may do.",
            extra={
                "must": "must be a list of at least one of agent, read, manage, each once",
                "rule": lambda scopes: len(set(scopes)) == len(scopes),
            },
            extra_json_schema={"uniqueItems": True},
        ),
    ]
    name: Annotated[
        str,
        Meta(
            max_length=NAME_CHARACTERS_MAX,
            description="What the key is for.",
            extra={
                "must": f"must be at most {NAME_CHARACTERS_MAX} printable characters",
                "rule": _is_printable,
            },
        ),
    ] = ""


class AdjustmentBody(Request, frozen=True):
    """Add agent time (positive) or credit it (negative)."""

    agent_ms: Annotated[
        int,
        Meta(
            ge=-ADJUSTMENT_MS_MAX,
            le=ADJUSTMENT_MS_MAX,
            description="Milliseconds of agent time: positive adds usage, negative credits it.",
            extra={
                "must": f"must be an integer from -{ADJUSTMENT_MS_MAX} to {ADJUSTMENT_MS_MAX}, "
                "not 0",
                "rule": bool,
            },
            extra_json_schema={"not": {"const": 0}},
        ),
    ]
    reason: Reason
    period: (
        Annotated[
            str,
            Meta(
                min_length=7,
                max_length=32,
                pattern=r"^[0-9T:.Z-]+$",
                description="A billing period, as in `billing_period`; the current one if absent.",
                extra={"must": "must be a billing period such as 2026-02", "rule": _is_printable},
            ),
        ]
        | None
    ) = None


class ActorBody(Request, frozen=True):
    """Lay hands on an actor."""

    reason: Reason | UnsetType = UNSET


class TraceBody(Request, frozen=True):
    """Write down an actor's messages, or stop."""

    on: Annotated[
        bool,
        Meta(
            description="Whether messages are written down.",
            extra={"must": "must be true or false"},
        ),
    ] = True
    reason: Reason | UnsetType = UNSET


def contract_of(body: ContractBody | None) -> Contract:
    """Return the contract that a body describes; none when there is no body."""
    if body is None:
        return Contract()
    given: dict[str, Any] = {
        name: value
        for name in body.__struct_fields__
        if (value := getattr(body, name)) is not UNSET
    }
    for name in ("overage_usd_per_minute", "base_price_usd"):
        if name in given:
            given[name] = Decimal(given[name])
    return Contract(**given)


def tier_of(name: str) -> Tier:
    """Return the plan of this name."""
    return Tier(name)
