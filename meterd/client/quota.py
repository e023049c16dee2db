"""The quota object as values: minutes are whole, `*_ms` are milliseconds, money is Decimal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from meterd.client.errors import MeterdClientError, refusal


@dataclass(frozen=True, kw_only=True)
class AgentMinutes:
    """The period's agent-minutes; `hard_limit` and `remaining` are None when unlimited."""

    used: int
    limit: int
    hard_limit: int | None
    remaining: int | None
    used_ms: int
    projected_ms: int
    overage: int


@dataclass(frozen=True, kw_only=True)
class Agents:
    """Distinct agents running now, and how many may; None when unlimited."""

    active: int
    limit: int | None


@dataclass(frozen=True, kw_only=True)
class Quota:
    """What the organization may still do, as meterd said it at `as_of`.

    `state` is ok, warning, grace, exceeded, unlimited or suspended. `allowed` answers for a new
    agent; `code` is the reason when it is False.
    """

    organization_id: str
    plan: str
    state: str
    allowed: bool
    code: str | None
    billing_period: str
    period_start: datetime | None
    period_end: datetime | None
    agent_minutes: AgentMinutes
    agents: Agents
    overage_usd: Decimal
    as_of: datetime | None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Quota:
        """Read the JSON object; absent numbers are 0, unknown fields are ignored.

        Errors: ValueError when a field has the wrong kind of value.
        """
        minutes, agents = _mapping(data, "agent_minutes"), _mapping(data, "agents")
        return cls(
            organization_id=str(data.get("organization_id", "")),
            plan=str(data.get("plan", "")),
            state=str(data.get("state", "")),
            allowed=bool(data.get("allowed", True)),
            code=_optional_text(data.get("code")),
            billing_period=str(data.get("billing_period", "")),
            period_start=_instant(data.get("period_start")),
            period_end=_instant(data.get("period_end")),
            agent_minutes=AgentMinutes(
                used=_integer(minutes.get("used")),
                limit=_integer(minutes.get("limit")),
                hard_limit=_optional_integer(minutes.get("hard_limit")),
                remaining=_optional_integer(minutes.get("remaining")),
                used_ms=_integer(minutes.get("used_ms")),
                projected_ms=_integer(minutes.get("projected_ms")),
                overage=_integer(minutes.get("overage")),
            ),
            agents=Agents(
                active=_integer(agents.get("active")),
                limit=_optional_integer(agents.get("limit")),
            ),
            overage_usd=_money(data.get("overage_usd", "0")),
            as_of=_instant(data.get("as_of")),
        )


@dataclass(frozen=True, kw_only=True)
class Check:
    """The answer of a quota check; true in a condition when the work may start.

    `code` is None when meterd allowed it, its reason when it did not, and `unreachable` when
    nobody answered and the policy is `FailOpen`. `retry_after_s` counts whole seconds.
    """

    allowed: bool
    code: str | None = None
    message: str = ""
    quota: Quota | None = None
    upgrade_url: str | None = None
    resets_at: str | None = None
    retry_after_s: int | None = None

    def __bool__(self) -> bool:
        """Tell whether the work may start."""
        return self.allowed

    def error(self) -> MeterdClientError | None:
        """Give the refusal as an exception, or None when allowed."""
        if self.allowed:
            return None
        return refusal(
            self.code or "refused",
            self.message,
            quota=self.quota,
            upgrade_url=self.upgrade_url,
            resets_at=self.resets_at,
        )

    def require(self) -> None:
        """Raise the refusal (`PlanLimitReached`, `Suspended`, …) unless allowed."""
        error = self.error()
        if error is not None:
            raise error


def quota_in(message: Mapping[str, Any]) -> Quota | None:
    """Give the quota a message carries, or None when it carries none that can be read."""
    quota = message.get("quota")
    if not isinstance(quota, Mapping) or "agent_minutes" not in quota:
        return None
    try:
        return Quota.from_json(quota)
    except ValueError:
        return None


def _mapping(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    return value if isinstance(value, Mapping) else {}


def _integer(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected an integer, not {value!r}")  # noqa: TRY004 - bad data
    return value


def _optional_integer(value: object) -> int | None:
    return None if value is None else _integer(value)


def _optional_text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _instant(value: object) -> datetime | None:
    return datetime.fromisoformat(value) if isinstance(value, str) else None


def _money(value: object) -> Decimal:
    try:
        return Decimal(str(value))
    except InvalidOperation as error:
        raise ValueError(f"expected an amount, not {value!r}") from error
