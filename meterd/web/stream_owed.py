"""What one agent stream owes: answers that leave when the facts behind them are durable.

Rule 1: answers leave in the order of the facts, whenever they were added.
Rule 2: reports without a `ref` share acknowledgements: of those that become durable together only
a task's last is sent, and of many that wait only its first and its last are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from typing import Final

import attrs
import msgspec
from msgspec import UNSET

from meterd.core.task import Task
from meterd.web.stream_messages import AnyRef, Finished, Started


OWED_MAX: Final = 4_096
"""Answers that wait before reports without a `ref` are merged."""


class OwedAck(msgspec.Struct, frozen=True, eq=False):
    """A report that is acknowledged when it is durable; positional: one is made per report."""

    seq: int
    task: Task
    elapsed_ms: int
    clamped: bool
    ref: AnyRef

    @property
    def is_plain(self) -> bool:
        """Whether a later acknowledgement of the task says it all."""
        return self.ref is UNSET


@attrs.frozen
class OwedEvent:
    """A `started` or `finished` that leaves when it is durable."""

    seq: int
    message: Started | Finished

    @property
    def ref(self) -> AnyRef:
        """The `ref` of the message that is answered."""
        return self.message.ref


Owed = OwedAck | OwedEvent


class OwedAnswers:
    """The answers of one stream that wait for the store, in the order of their facts."""

    def __init__(self) -> None:
        self._waiting: deque[Owed] = deque()
        self._merge_at = OWED_MAX

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, one: Owed) -> None:
        """Keep an answer until `due` is called with its fact or a later one."""
        waiting = self._waiting
        later: list[Owed] = []
        while waiting and waiting[-1].seq > one.seq:  # answers that had to wait come late
            later.append(waiting.pop())
        waiting.append(one)
        waiting.extend(reversed(later))
        self._merge()

    def _merge(self) -> None:
        if len(self._waiting) >= self._merge_at:
            self._waiting = deque(_first_and_last(self._waiting))
            self._merge_at = max(OWED_MAX, 2 * len(self._waiting))

    def add_all(self, seq: int, ones: Collection[Owed]) -> None:
        """Keep answers that all wait for one fact."""
        waiting = self._waiting
        if waiting and waiting[-1].seq > seq:
            for one in ones:
                self.add(one)
            return
        waiting.extend(ones)
        self._merge()

    def due(self, seq: int) -> list[Owed]:
        """Remove and return what may be sent when facts up to `seq` are durable."""
        waiting = self._waiting
        ready = []
        while waiting and waiting[0].seq <= seq:
            ready.append(waiting.popleft())
        last = _last_plain(ready)
        return [
            one
            for one in ready
            if isinstance(one, OwedEvent) or not one.is_plain or last[one.task.info.task_id] is one
        ]

    def clear(self) -> list[Owed]:
        """Remove and return everything."""
        waiting, self._waiting = self._waiting, deque()
        return list(waiting)


def _last_plain(owed: Iterable[Owed]) -> dict[str, OwedAck]:
    return {one.task.info.task_id: one for one in owed if isinstance(one, OwedAck) and one.is_plain}


def _first_and_last(owed: deque[Owed]) -> Iterable[Owed]:
    """Yield answers without the plain reports between a task's first and its last.

    The first keeps its place: a stream of reports must not put off its acknowledgement for ever.
    """
    last = _last_plain(owed)
    seen: set[str] = set()
    for one in owed:
        if isinstance(one, OwedAck) and one.is_plain:
            task_id = one.task.info.task_id
            if task_id in seen and last[task_id] is not one:
                continue
            seen.add(task_id)
        yield one
