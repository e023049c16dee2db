"""The fast lane: connections that ask the same question again and again, answered in one task.

Rule 1: a connection rides while each of its reads is, byte for byte, the request it rode in with.
Anything else - other bytes, half a head, an end, an error - puts it back on its own task with what
was read, so nothing is parsed here and nothing is decided.
Rule 2: one turn serves at most TURN_MAX connections, then every other task has its turn.
Rule 3: a rider is idle between answers: deadlines and drains reach its task as anybody else's.

What it saves is everything around the answer: with a task of its own, each request costs two turns
of the scheduler and a change of what the kernel watches; here one `epoll` watches all riders.
"""

from __future__ import annotations

import os
import select
from typing import Final

import attrs
import outcome
import trio

from meterd.actors.supervisor import Crash, attempt
from meterd.web.front.connection import Connection
from meterd.web.front.counters import DoorCounters
from meterd.web.front.hot import Again


TURN_MAX: Final = 64
"""Riders served in one turn: some 1 ms of work."""

READ_BYTES: Final = 4_096
"""Bytes taken in one read: more than any request that rides."""


@attrs.define(eq=False)
class _Rider:
    """One connection in the lane, and what it leaves with."""

    connection: Connection
    descriptor: int
    request: bytes
    again: Again
    task: trio.lowlevel.Task
    unsent: bytes = b""


class Lane:
    """Serves riders; `run` it once, next to the connections."""

    def __init__(self, counters: DoorCounters, *, idle_timeout_ms: int) -> None:
        self._counters = counters
        self._idle_timeout_s = idle_timeout_ms / 1000
        self._riders: dict[int, _Rider] = {}
        self._epoll = select.epoll()

    async def run(self) -> None:
        """Serve for ever; cancel it together with the connections, or after them."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                deadline = trio.current_time() + self._idle_timeout_s
                for descriptor, _ in self._epoll.poll(0, TURN_MAX):
                    rider = self._riders.get(descriptor)
                    if rider is None:
                        continue  # put off by what another one's answer has caused
                    rider.connection.deadline = deadline
                    result = attempt(self._serve, rider)
                    if isinstance(result, Crash):
                        self._leave(rider, outcome.Error(result.error))
        finally:
            self._epoll.close()

    async def ride(self, connection: Connection, request: bytes, again: Again) -> bool:
        """Wait like `Connection.receive_more`, while `request` is answered by `again`.

        True also, with nothing unread, when an answer was too large for one write and is written.
        Errors: BrokenResourceError when the peer is gone; what `again` raises.
        """
        assert not connection.is_tls, "the lane reads and writes plain sockets"
        assert not connection.unread, "what is read already does not come again"
        if self._epoll.closed:
            return await connection.receive_more()
        descriptor = connection.socket.fileno()
        rider = _Rider(connection, descriptor, request, again, trio.lowlevel.current_task())
        await self._wait(rider)
        if rider.unsent:
            connection.is_idle = False
            await connection.send_all(rider.unsent)
            return True
        return bool(connection.unread)

    async def _wait(self, rider: _Rider) -> None:
        """Return when the rider is put off."""
        self._riders[rider.descriptor] = rider
        self._epoll.register(rider.descriptor, select.EPOLLIN)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._forget(rider)
            return trio.lowlevel.Abort.SUCCEEDED

        def dropped() -> None:
            self._leave(rider, outcome.Error(trio.ClosedResourceError()))

        rider.connection.on_drop = dropped
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _serve(self, rider: _Rider) -> None:
        """Read once: answer what is the same again, put everything else back."""
        descriptor = rider.descriptor
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return  # nothing to read after all
        except OSError as error:
            raise trio.BrokenResourceError from error
        answer = rider.again() if data == rider.request else None
        if answer is None:
            rider.connection.unread += data
            self._leave(rider)
            return
        self._counters.hot_answers += 1
        try:
            written = os.write(descriptor, answer)
        except BlockingIOError:
            written = 0
        except OSError as error:
            raise trio.BrokenResourceError from error
        if written < len(answer):
            rider.unsent = answer[written:]
            self._leave(rider)

    def _leave(self, rider: _Rider, result: outcome.Outcome[None] | None = None) -> None:
        self._forget(rider)
        trio.lowlevel.reschedule(rider.task, result or outcome.Value(None))

    def _forget(self, rider: _Rider) -> None:
        rider.connection.on_drop = None
        self._epoll.unregister(rider.descriptor)
        del self._riders[rider.descriptor]
