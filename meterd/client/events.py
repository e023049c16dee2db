"""What the session tells its shell; each names one task."""

from __future__ import annotations

from dataclasses import dataclass

from meterd.client.errors import MeterdClientError
from meterd.client.quota import Quota


@dataclass(frozen=True)
class Started:
    """The body may begin; `is_local` when meterd has not been heard (FailOpen)."""

    task_id: str
    quota: Quota | None
    is_local: bool


@dataclass(frozen=True)
class NotStarted:
    """The body must not begin; nothing more comes for this task."""

    task_id: str
    error: MeterdClientError


@dataclass(frozen=True)
class Declared:
    """meterd now knows a task that had started without it."""

    task_id: str


@dataclass(frozen=True)
class Acknowledged:
    """A report is durable: `elapsed_ms` accepted, of which `metered_ms` are counted."""

    task_id: str
    elapsed_ms: int
    metered_ms: int
    is_clamped: bool


@dataclass(frozen=True)
class StopAsked:
    """The body should end; said once per task, with the reason."""

    task_id: str
    error: MeterdClientError


@dataclass(frozen=True)
class Settled:
    """The end is durable; nothing more comes for this task."""

    task_id: str
    metered_ms: int
    is_clamped: bool = False
    """meterd found the last report implausible and did not count its excess."""


@dataclass(frozen=True)
class GaveUp:
    """The end could not be settled and will not be tried again; nothing more comes."""

    task_id: str
    error: MeterdClientError


Event = Started | NotStarted | Declared | Acknowledged | StopAsked | Settled | GaveUp
