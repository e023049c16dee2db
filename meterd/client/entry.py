"""One task as the session keeps it: a few integers, however long it runs or meterd is away.

A task lives: STARTING (no verdict yet) -> RUNNING (the body runs) -> FINISHING (its value is
fixed and must still be acknowledged) -> gone. Beside it goes what meterd knows of the task:
NO -> ASKED (a start is under way) -> YES; a connection lost in between makes it MAYBE, and so
does an answer that never came. MAYBE is resolved by reporting, never by a second, different
start: `task_unknown` proves the first start never arrived.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from meterd.client.errors import MeterdClientError
from meterd.client.policy import Outcome
from meterd.client.wire import TaskRequest


ELAPSED_MS_MAX = 2_678_400_000
"""Largest cumulative report the service takes: 31 days in milliseconds."""


class Phase(Enum):
    """Where the task stands for the application."""

    STARTING = auto()
    RUNNING = auto()
    FINISHING = auto()


class Known(Enum):
    """What meterd knows of the task, as far as this side can tell."""

    NO = auto()
    ASKED = auto()
    MAYBE = auto()
    YES = auto()


@dataclass(slots=True, kw_only=True)
class Entry:
    """The session's mutable record of one task; all instants are monotonic milliseconds."""

    request: TaskRequest
    serial: int
    decide_by_ms: int
    """When the unreachable policy decides, if no verdict came before."""
    interval_ms: int
    phase: Phase = Phase.STARTING
    known: Known = Known.NO
    begun_at_ms: int | None = None
    base_ms: int = 0
    """Time an earlier process already reported for this task_id."""
    final_ms: int = 0
    outcome: Outcome = "succeeded"
    is_local: bool = False
    """Started under FailOpen and not yet declared."""
    is_abandoned: bool = False
    """Its body never began, but meterd may hold a slot for it: finish it at 0 ms."""
    stop: MeterdClientError | None = None
    early_stop: MeterdClientError | None = None
    """A stop that came before the verdict: it ends the body as soon as it has begun."""
    is_over: bool = False
    """meterd will take no more reports of it."""
    claimed_ms: int = 0
    """Largest value ever sent."""
    acked_ms: int = 0
    """Largest value meterd said is durable."""
    metered_ms: int = 0
    heard_at_ms: int = 0
    """When meterd last acknowledged anything of this task."""
    failures: int = 0
    """Errors in a row, for the back-off of this task alone."""
    rejections: int = 0
    """Of them those that will not pass by waiting: only these can end in giving up."""
    last_error_code: str = ""
    sent: int = 0
    """Number of the last message; never reused, so answers can be told apart."""
    starts: int = 0
    start_number: int = 0
    finish_number: int = 0

    def elapsed_ms(self, now_ms: int) -> int:
        """Give the cumulative running time to report now."""
        if self.phase is Phase.FINISHING:
            return self.final_ms
        if self.begun_at_ms is None:
            return 0
        return min(self.base_ms + max(0, now_ms - self.begun_at_ms), ELAPSED_MS_MAX)
