"""What the body of a task holds: who it is, whether it should stop, what has been counted."""

from __future__ import annotations

from collections.abc import Callable

from meterd.client.errors import MeterdClientError
from meterd.client.policy import Outcome
from meterd.client.quota import Quota
from meterd.client.wire import TaskRequest


class TaskHandle:
    """One running task. The shells add the ways to wait that suit their world."""

    def __init__(self, request: TaskRequest, elapsed_ms: Callable[[], int]) -> None:
        self._request = request
        self._elapsed_ms = elapsed_ms
        self.final_ms: int | None = None
        """Cumulative milliseconds at the end; None while the body runs."""
        self.outcome: Outcome | None = None
        """Set it to report this outcome instead of the one the body's end would mean."""
        self.is_local = False
        """True while meterd does not know of the task yet (`FailOpen`)."""
        self.quota: Quota | None = None
        """The quota as it was when the task started, when meterd said it."""
        self.stop: MeterdClientError | None = None
        """Why the body should end; None while it may go on."""
        self.acked_ms = 0
        """Cumulative milliseconds meterd has made durable."""
        self.metered_ms = 0
        """Milliseconds of them that count against the plan; final once `is_settled`."""
        self.is_clamped = False
        """meterd found a report implausible and did not count its excess."""
        self.is_settled = False
        """The end is durable at meterd."""
        self.settle_error: MeterdClientError | None = None
        """Why the end will never be settled, if so."""

    @property
    def task_id(self) -> str:
        """The id meterd knows the task by."""
        return self._request.task_id

    @property
    def agent_id(self) -> str:
        """The agent that works."""
        return self._request.agent_id

    @property
    def elapsed_ms(self) -> int:
        """Cumulative milliseconds the task has run, as it would be reported now."""
        return self._elapsed_ms() if self.final_ms is None else self.final_ms

    @property
    def stop_requested(self) -> bool:
        """Tell whether meterd asked the task to stop; with `on_stop="finish_step"`, look often."""
        return self.stop is not None

    def checkpoint(self) -> None:
        """Raise the reason to stop, if there is one: a place where the body may end."""
        if self.stop is not None:
            raise self.stop


def outcome_of(error: BaseException | None) -> Outcome:
    """Give the outcome a body's end means: any `Exception` in it is a failure.

    What is left - cancellation in either library, KeyboardInterrupt, SystemExit - is `cancelled`.
    """
    if error is None:
        return "succeeded"
    if isinstance(error, Exception):
        return "failed"
    if isinstance(error, BaseExceptionGroup):
        outcomes = {outcome_of(part) for part in error.exceptions}
        return "failed" if "failed" in outcomes else "cancelled"
    return "cancelled"
