"""Turns: what waits for the store at once is still decided in the order it came.

Rule: who waits has only those before it to wait for, and each of them is being asked for already.
"""

from __future__ import annotations

from collections import deque

import trio


class Turns:
    """A line of numbers; the one at its head has its turn."""

    def __init__(self) -> None:
        self._line: deque[int] = deque()
        self._gone: set[int] = set()
        self._waiting: dict[int, trio.Event] = {}
        self._last = 0
        self._is_over = False

    def join(self) -> int:
        """Return a number at the end of the line; it is to `leave`, whatever becomes of it."""
        self._last += 1
        self._line.append(self._last)
        return self._last

    async def wait(self, number: int) -> None:
        """Return when everything that came before this number has left."""
        if self._line[0] != number and not self._is_over:
            self._waiting[number] = trio.Event()
            await self._waiting[number].wait()

    def leave(self, number: int) -> None:
        """Leave the line, from wherever in it."""
        self._gone.add(number)
        while self._line and self._line[0] in self._gone:
            self._gone.remove(self._line.popleft())
        if self._line and (event := self._waiting.pop(self._line[0], None)) is not None:
            event.set()

    def end(self) -> None:
        """Let everybody go: nobody will look at the order any more."""
        self._is_over = True
        for event in self._waiting.values():
            event.set()
