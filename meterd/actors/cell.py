"""A cell: the passive half of an organization's actor.

A cell is data, not a task: state, phase, and a mailbox that exists only while messages must wait.
`Organizations` decides messages on it, run to completion on the one Trio thread, so increments of
an organization are serialized without a lock.

Life: loading → ready ⇄ (crash) loading; loading → backing off → loading while the store is away;
too many crashes → quarantined → loading, for one probe. A ready cell without work is dropped.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

import attrs
import trio

from meterd.actors.trace import Trace
from meterd.core.commands import Command, Outcome
from meterd.core.organization import OrganizationState


T = TypeVar("T")


class Phase(enum.Enum):
    """What a cell can do with a message now."""

    LOADING = "loading"
    READY = "ready"
    BACKING_OFF = "backing_off"
    QUARANTINED = "quarantined"


class Reply(Generic[T]):
    """A slot for one answer, awaited by at most one task.

    Who gives up waiting abandons it: a later answer is dropped, and `is_abandoned` lets the actor
    skip a message nobody waits for any more.
    """

    __slots__ = ("_error", "_is_done", "_task", "_value", "is_abandoned")

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._value: T | None = None
        self._error: Exception | None = None
        self._is_done = False
        self.is_abandoned = False

    def set(self, value: T) -> None:
        """Answer; the first answer wins."""
        self._settle(value, None)

    def fail(self, error: Exception) -> None:
        """Answer with an exception; the first answer wins."""
        self._settle(None, error)

    def _settle(self, value: T | None, error: Exception | None) -> None:
        if self._is_done or self.is_abandoned:
            return
        self._is_done, self._value, self._error = True, value, error
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None

    async def wait(self) -> T:
        """Return the answer or raise its exception; cancelling abandons the reply."""
        if self._is_done:
            await trio.lowlevel.checkpoint()
        else:
            self._task = trio.lowlevel.current_task()

            def abandon(_: object) -> trio.lowlevel.Abort:
                self._task, self.is_abandoned = None, True
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abandon)
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # set() was given a T


@attrs.frozen
class Answer:
    """What an organization answered; acknowledge it when its facts are durable up to `seq`."""

    outcome: Outcome
    seq: int


@attrs.frozen
class Letter:
    """A message that waits in a mailbox."""

    command: Command
    reply: Reply[Answer]


@attrs.define(slots=True, eq=False)
class Cell:
    """One organization in memory."""

    organization_id: str
    phase: Phase = Phase.LOADING
    state: OrganizationState | None = None
    mailbox: deque[Letter] | None = None
    mailbox_peak: int = 0
    touched_ms: int = 0
    timer_ms: int | None = None
    """The earliest armed timer; entries for other instants are stale."""
    processed: int = 0
    restarts: int = 0
    load_tries: int = 0
    strikes_ms: tuple[int, ...] = ()
    quarantined_until_ms: int = 0
    is_on_probation: bool = False
    """After a quarantine, until one message went well: the next crash is one too many."""
    last_error: str | None = None
    trace: Trace | None = None
    """The last messages and outcomes, when an operator has switched it on."""
    loaded_ms: int = 0
    """When it was last read from the store."""

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing but time would be lost if the cell were dropped now."""
        state = self.state
        return (
            self.phase is Phase.READY
            and self.mailbox is None
            and state is not None
            and not state.running
        )

    def sweep_mailbox(self) -> None:
        """Throw away letters nobody waits for any more, to make room."""
        if self.mailbox is not None:
            self.mailbox = deque(one for one in self.mailbox if not one.reply.is_abandoned)

    def take_mailbox(self) -> Sequence[Letter]:
        """Return the waiting letters and leave no mailbox."""
        letters, self.mailbox = self.mailbox, None
        return letters or ()
