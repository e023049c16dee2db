"""Moves frames between a session and a connection, in any async library.

Written once for Trio and asyncio: it awaits only what its `Runtime` and `Transport` offer. Three
jobs run side by side, each sleeping until the session's next instant or until told of a change:
the clock (unreachable policy), the connection (open, read, re-open) and, while it is open, the
writer. Nothing here decides anything about a task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, assert_never

from meterd.client.errors import MeterdClientError
from meterd.client.events import (
    Acknowledged,
    Declared,
    Event,
    GaveUp,
    NotStarted,
    Settled,
    Started,
    StopAsked,
)
from meterd.client.policy import Outcome
from meterd.client.session import Session
from meterd.client.task import TaskHandle
from meterd.client.transport import ConnectFailed, ConnectionLost, Transport, Wire
from meterd.client.wire import TaskRequest


logger = logging.getLogger("meterd.client")


class Signal(Protocol):
    """Something happened: wakes every waiter, and the next one if nobody waits."""

    def notify(self) -> None:
        """Wake up whoever waits, or whoever waits next."""
        ...

    async def wait(self) -> None:
        """Wait for the next `notify`."""
        ...


class Runtime(Protocol):
    """What the driver needs of an async library."""

    def now_ms(self) -> int:
        """Give monotonic milliseconds."""
        ...

    def signal(self) -> Signal:
        """Make a signal."""
        ...

    async def wait(self, signal: Signal, timeout_ms: int | None) -> bool:
        """Wait for a signal, at most so long; tell whether it came."""
        ...

    async def first_of(self, *jobs: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run all until one returns, then cancel the others."""
        ...


class Tracked:
    """A task as the driver follows it, from the start to its settlement."""

    def __init__(self, handle: TaskHandle, changed: Signal, stopped: Signal) -> None:
        self.handle = handle
        self.changed = changed
        self.stopped = stopped
        self.is_started = False
        self.start_error: MeterdClientError | None = None
        self.on_stop: Callable[[], None] | None = None

    def cancel_with(self, cancel: Callable[[], None]) -> None:
        """Have `cancel` called when meterd asks the task to stop, at once if it has already."""
        self.on_stop = cancel
        if self.handle.stop_requested:
            cancel()

    @property
    def is_decided(self) -> bool:
        """Tell whether the task may begin or may not."""
        return self.is_started or self.start_error is not None

    @property
    def is_ended(self) -> bool:
        """Tell whether nothing more will come."""
        return self.handle.is_settled or self.handle.settle_error is not None


class Driver:
    """Runs one session over one transport."""

    def __init__(self, session: Session, runtime: Runtime, transport: Transport) -> None:
        self._session = session
        self._runtime = runtime
        self._transport = transport
        self._tracked: dict[str, Tracked] = {}
        self._clock_due, self._link_due, self._send_due, self._drained = (
            runtime.signal() for _ in range(4)
        )
        self._is_closing = False

    async def run(self) -> None:
        """Serve the session until `close`."""
        await self._runtime.first_of(self._keep_time, self._keep_connected)

    async def close(self, timeout_ms: int) -> list[str]:
        """Wait until every ended task is settled, at most so long; then let `run` return.

        Gives the ids of the tasks that could not be settled.
        """
        give_up_at_ms = self._runtime.now_ms() + timeout_ms
        while self._session.task_count and self._session.rejection is None:
            left_ms = give_up_at_ms - self._runtime.now_ms()
            if left_ms <= 0 or not await self._runtime.wait(self._drained, left_ms):
                break
        self._is_closing = True
        self._changed()
        unsettled = self._session.unsettled
        if unsettled:
            logger.warning("closed with %d tasks not settled at meterd", len(unsettled))
        return unsettled

    async def begin(self, request: TaskRequest, handle: TaskHandle) -> Tracked:
        """Ask for the task and wait for the verdict.

        Errors: MeterdClientError; RuntimeError when nothing drives the session.
        """
        if self._is_closing:
            raise RuntimeError("the client is closed: use it inside its `with` block")
        tracked = Tracked(handle, self._runtime.signal(), self._runtime.signal())
        self._session.start(request, self._runtime.now_ms())
        self._tracked[request.task_id] = tracked
        self._changed()
        try:
            while not tracked.is_decided:
                await self._runtime.wait(tracked.changed, None)
        except BaseException:
            self._tracked.pop(request.task_id, None)
            self._session.finish(request.task_id, "cancelled", self._runtime.now_ms())
            self._changed()
            raise
        if tracked.start_error is not None:
            raise tracked.start_error
        return tracked

    def finish(self, tracked: Tracked, outcome: Outcome) -> None:
        """Fix the task's end; it is sent, and sent again, until meterd has acknowledged it."""
        tracked.on_stop = None
        handle, now_ms = tracked.handle, self._runtime.now_ms()
        handle.final_ms = self._session.elapsed_ms(handle.task_id, now_ms)
        self._session.finish(handle.task_id, handle.outcome or outcome, now_ms)
        self._changed()

    async def settled(self, tracked: Tracked, timeout_ms: int) -> None:
        """Wait until a finished task is settled, at most so long; later is not lost."""
        give_up_at_ms = self._runtime.now_ms() + timeout_ms
        while not tracked.is_ended:
            left_ms = give_up_at_ms - self._runtime.now_ms()
            if left_ms <= 0 or not await self._runtime.wait(tracked.changed, left_ms):
                logger.warning("a task's end is not acknowledged yet; it is sent again meanwhile")
                return

    # The three jobs.

    async def _keep_time(self) -> None:
        while True:
            wake_at_ms = self._session.wake_at_ms()
            now_ms = self._runtime.now_ms()
            if wake_at_ms is None or wake_at_ms > now_ms:
                await self._wait_until(self._clock_due, wake_at_ms, now_ms)
            else:
                self._session.advance(now_ms)
                self._changed()

    async def _keep_connected(self) -> None:
        while not self._is_closing:
            connect_at_ms = self._session.connect_at_ms()
            now_ms = self._runtime.now_ms()
            if connect_at_ms is None or connect_at_ms > now_ms:
                await self._wait_until(self._link_due, connect_at_ms, now_ms)
            else:
                await self._connect()

    async def _connect(self) -> None:
        self._session.connecting()
        end = ConnectionLost(1000)
        try:
            async with self._transport.open() as wire:
                self._session.connected(self._runtime.now_ms())
                end = await self._converse(wire)
        except ConnectFailed as error:
            logger.info("meterd cannot be reached: %s", error.reason)
            self._session.refused(
                status=error.status,
                retry_after_ms=error.retry_after_ms,
                reason=error.reason,
                now_ms=self._runtime.now_ms(),
            )
        else:
            logger.info("connection to meterd closed (%d) %s", end.code, end.reason)
            self._session.lost(code=end.code, reason=end.reason, now_ms=self._runtime.now_ms())
        self._changed()

    async def _converse(self, wire: Wire) -> ConnectionLost:
        ends: list[ConnectionLost] = []

        async def read() -> None:
            try:
                while True:
                    frame = await wire.receive()
                    self._session.receive(frame, self._runtime.now_ms())
                    self._changed()
            except ConnectionLost as end:
                ends.append(end)

        async def write() -> None:
            try:
                while not self._is_closing:
                    now_ms = self._runtime.now_ms()
                    for frame in self._session.frames(now_ms):
                        await wire.send(frame)
                    await self._wait_until(self._send_due, self._session.send_at_ms(), now_ms)
            except ConnectionLost as end:
                ends.append(end)

        await self._runtime.first_of(read, write)
        return ends[0] if ends else ConnectionLost(1000)

    async def _wait_until(self, signal: Signal, at_ms: int | None, now_ms: int) -> None:
        timeout_ms = None if at_ms is None else max(0, at_ms - now_ms)
        await self._runtime.wait(signal, timeout_ms)

    # Telling the tasks.

    def _changed(self) -> None:
        """Deliver what the session has to say and wake the jobs that have something due."""
        for event in self._session.events():
            self._deliver(event)
        if self._is_closing or self._session.task_count == 0 or self._session.rejection:
            self._drained.notify()
        for signal in (self._clock_due, self._link_due, self._send_due):
            signal.notify()

    def _deliver(self, event: Event) -> None:
        tracked = self._tracked.get(event.task_id)
        if tracked is None:
            return
        handle = tracked.handle
        match event:
            case Started():
                tracked.is_started = True
                handle.is_local = event.is_local
                handle.quota = event.quota
            case NotStarted():
                tracked.start_error = event.error
                del self._tracked[event.task_id]
            case Declared():
                handle.is_local = False
            case Acknowledged():
                handle.acked_ms = event.elapsed_ms
                handle.metered_ms = event.metered_ms
                handle.is_clamped = handle.is_clamped or event.is_clamped
            case StopAsked():
                handle.stop = event.error
                tracked.stopped.notify()
                if tracked.on_stop is not None:
                    tracked.on_stop()
            case Settled():
                handle.metered_ms = event.metered_ms
                handle.is_clamped = handle.is_clamped or event.is_clamped
                handle.is_settled = True
                del self._tracked[event.task_id]
            case GaveUp():
                handle.settle_error = event.error
                logger.warning("a task's end was not accepted: %s", event.error.code)
                del self._tracked[event.task_id]
            case _:
                assert_never(event)
        tracked.changed.notify()
