# ruff: noqa: N818 - these are the words of the service ("plan limit reached"), not "…Error".
"""Every exception the client raises, in one tree.

MeterdClientError
├── Refused                  meterd said no: before the start, or `stopped` while running
│   ├── PlanLimitReached     the plan's minutes are used up: upgrade, or wait for the reset
│   ├── AgentLimitReached    as many agents run as the plan allows
│   ├── AgentBusy            this agent already runs as many tasks as one agent may
│   ├── TaskLimitReached     the organization already runs as many tasks as one may
│   ├── OverageCapReached    the organization's own spending cap is reached
│   └── Suspended            the organization is suspended (payment, or by the operator)
├── KeyRejected              no retry helps until the key changes
│   ├── Unauthorized         the key is missing, wrong or revoked (401, close 4401)
│   └── Forbidden            the key lacks the scope `agent` (403, close 4403)
├── Unreachable              no answer in time; the declared policy says what happens
├── TaskConflict             this task_id already names a task with other contents
├── TaskClosed               the task had ended before, or may no longer report
├── RequestRejected          meterd found the request itself wrong (see `code`)
└── TooManyTasks             the client's own bound on tasks in memory
"""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from meterd.client.quota import Quota


class MeterdClientError(Exception):
    """Base of all; `code` is meterd's machine-readable word, `message` is for people."""

    code = "client_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class Refused(MeterdClientError):
    """The plan or the organization's state says no.

    `quota` is the state at that moment when meterd sent it, `upgrade_url` where to get more,
    `resets_at` the RFC 3339 instant the limit resets. `stopped` tells a task that was running
    and had to end (True) from one that never started (False).
    """

    code = "refused"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        quota: Quota | None = None,
        upgrade_url: str | None = None,
        resets_at: str | None = None,
        stopped: bool = False,
    ) -> None:
        super().__init__(message, code=code)
        self.quota = quota
        self.upgrade_url = upgrade_url
        self.resets_at = resets_at
        self.stopped = stopped


class PlanLimitReached(Refused):
    """The period's agent-minutes are used up."""

    code = "plan_limit_reached"


class AgentLimitReached(Refused):
    """As many distinct agents run as the plan allows at once."""

    code = "agent_limit_reached"


class AgentBusy(Refused):
    """The agent already runs as many tasks as one agent may."""

    code = "agent_busy"


class TaskLimitReached(Refused):
    """The organization already runs as many tasks as one organization may."""

    code = "task_limit_reached"


class OverageCapReached(Refused):
    """The organization's own cap on overage is reached."""

    code = "overage_cap_reached"


class Suspended(Refused):
    """The organization is suspended: a failed payment, or the operator."""

    code = "suspended"


class KeyRejected(MeterdClientError):
    """The key cannot be used here; the client does not try again."""

    code = "key_rejected"


class Unauthorized(KeyRejected):
    """The key is missing, wrong or revoked."""

    code = "unauthorized"


class Forbidden(KeyRejected):
    """The key is valid but lacks the scope."""

    code = "forbidden"


class Unreachable(MeterdClientError):
    """meterd did not answer in time; `code` keeps the last reason it gave, if any."""

    code = "unreachable"


class TaskConflict(MeterdClientError):
    """The `task_id` already names a task of another agent or with other contents."""

    code = "task_conflict"


class TaskClosed(MeterdClientError):
    """The task had ended already, or was lost too long ago to report."""

    code = "task_closed"


class RequestRejected(MeterdClientError):
    """meterd could not accept the request; repeating it unchanged will not help."""

    code = "rejected"


class TooManyTasks(MeterdClientError):
    """More tasks are running or waiting to be settled than `tasks_max` allows."""

    code = "too_many_tasks"


_REFUSALS: dict[str, type[Refused]] = {
    kind.code: kind
    for kind in (
        PlanLimitReached,
        AgentLimitReached,
        AgentBusy,
        TaskLimitReached,
        OverageCapReached,
        Suspended,
    )
}
_OTHERS: dict[str, type[MeterdClientError]] = {
    kind.code: kind for kind in (Unauthorized, Forbidden, TaskConflict, TaskClosed)
}
REFUSAL_CODES = frozenset(_REFUSALS)
"""The codes that mean "the plan or the organization's state says no"."""


def refusal(
    code: str,
    message: str,
    *,
    quota: Quota | None = None,
    upgrade_url: str | None = None,
    resets_at: str | None = None,
    stopped: bool = False,
) -> MeterdClientError:
    """Give the exception for a `denied`, a `stop` or a refusing HTTP answer.

    A code this version does not know is still a `Refused`, with that code.
    """
    if code in _OTHERS:
        return _OTHERS[code](message, code=code)
    return _REFUSALS.get(code, Refused)(
        message,
        code=code,
        quota=quota,
        upgrade_url=upgrade_url,
        resets_at=resets_at,
        stopped=stopped,
    )


def rejection(code: str, message: str) -> MeterdClientError:
    """Give the exception for an `error` frame: a refusal keeps its class, the rest is rejected."""
    if code in _REFUSALS:
        return refusal(code, message)
    return _OTHERS.get(code, RequestRejected)(message, code=code)
