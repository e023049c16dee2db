"""Bugs planted in what the client does while meterd is away; see `planted`."""

from __future__ import annotations

from typing import Any

import pytest

from meterd.client.policy import FailOpen
from meterd.client.session import Session
from meterd.client.wire import TaskRequest
from tests.simulation.planted import bug


@bug
def whoever_gets_no_answer_may_start(patch: pytest.MonkeyPatch) -> None:
    """Let every policy start without meterd."""
    decide = Session._decide_unreachable

    def lenient(self: Session, entry: Any, now_ms: int) -> None:
        settings = self._settings
        object.__setattr__(self, "_settings", _Open(settings))
        try:
            decide(self, entry, now_ms)
        finally:
            self._settings = settings

    patch.setattr(Session, "_decide_unreachable", lenient)


class _Open:
    """Settings whose policy is another one."""

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        self.unreachable = FailOpen()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._settings, name)


@bug
def a_running_task_is_patient_for_ever(patch: pytest.MonkeyPatch) -> None:
    """Stop nobody for silence."""
    patch.setattr(Session, "_patience_at_ms", lambda _self, entry: entry.heard_at_ms + 86_400_000)


@bug
def undeclared_work_is_as_patient_as_declared(patch: pytest.MonkeyPatch) -> None:
    """Forget that what meterd does not know of may be refused, and not be metered."""

    def patience_at_ms(self: Session, entry: Any) -> int:
        minutes = self._settings.unreachable.running_minutes
        return int(entry.heard_at_ms + minutes * 60_000)

    patch.setattr(Session, "_patience_at_ms", patience_at_ms)


@bug
def what_ran_undeclared_is_not_said(patch: pytest.MonkeyPatch) -> None:
    """Declare a task as if it began now."""
    start = TaskRequest.start

    def from_now(self: TaskRequest, *, ref: str, elapsed_ms: int) -> Any:
        del elapsed_ms
        return start(self, ref=ref, elapsed_ms=0)

    patch.setattr(TaskRequest, "start", from_now)
