"""One thread with one asyncio loop, and the portal through which Trio tasks use it.

Rule 1: this is the only module that starts or stops an asyncio loop; asyncpg and redis run on it.
Rule 2: a job lives posted -> running -> finished, and `run` returns only when it is finished:
nothing of a job goes on behind the back of its caller.
Rule 3: a cancel is a request. A cancelled write is unknown, not undone; if the job finished with
a value all the same, the value is returned and the cancel waits for the next checkpoint.
Rule 4: when the loop dies, every waiting caller gets PortalClosedError at once and the block is
cancelled and raises it too, so that the process cannot go on without noticing.

Both directions are a deque and one wake-up per burst: about 120 µs a call over bare asyncpg,
where trio-asyncio costs 650 µs. Virtual clocks do not wait for this thread: use a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal, TypeVar, TypeVarTuple, cast

import attrs
import outcome
import trio
import uvloop
from sniffio import current_async_library_cvar

from meterd.errors import PortalClosedError


T = TypeVar("T")
Ts = TypeVarTuple("Ts")

DRAIN_S = 5.0
"""Seconds that jobs in flight get to finish when the block is left, before they are cancelled."""

STOP_S = 5.0
"""Seconds that cancelled jobs get to end; then the thread is abandoned and the block raises.

A healthy job ends within milliseconds of its cancel. Only code that holds the thread or swallows
cancels gets here, and a shutdown must not wait for it for ever.
"""

START_S = 30.0
"""Seconds a new thread may take to have its loop running; generous for a starved machine."""


@attrs.define(eq=False)
class _Job:
    """One call on its way; touched by the asyncio thread only between start and finish."""

    async_fn: Callable[..., Awaitable[Any]]
    args: tuple[Any, ...]
    context: contextvars.Context
    waiter: trio.lowlevel.Task
    raise_cancel: Callable[[], Any] | None = None
    asyncio_task: asyncio.Task[Any] | None = None


class AsyncioThread:
    """The portal: runs coroutine functions on the asyncio loop for tasks of one Trio run."""

    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._loop_factory = loop_factory
        self._trio = trio.lowlevel.current_trio_token()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_requested: asyncio.Event | None = None
        self._posted: deque[tuple[Literal["start", "cancel"], _Job]] = deque()
        self._finished: deque[tuple[_Job, outcome.Outcome[Any]]] = deque()
        self._is_wake_up_pending = False
        self._jobs: set[_Job] = set()  # Trio side only
        self._is_open = False
        self._is_stopping = False
        self._started = trio.Event()
        self._ended = trio.Event()
        self._idle: trio.Event | None = None
        self._death: BaseException | None = None
        self._body_scope = trio.CancelScope()
        self._thread = threading.Thread(target=self._host, name="meterd-asyncio", daemon=True)

    @property
    def is_open(self) -> bool:
        """True while `run` accepts work."""
        return self._is_open

    @property
    def in_flight(self) -> int:
        """Number of calls that wait for the loop now."""
        return len(self._jobs)

    async def run(self, async_fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Return what `await async_fn(*args)` gives on the asyncio loop, in a copy of our context.

        Errors: whatever the call raises; PortalClosedError when the loop is or goes away.
        A cancel is passed on and awaited; a call cancelled before it started never starts.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._is_open:
            raise PortalClosedError("the asyncio thread takes no work")
        job = _Job(
            async_fn=async_fn,
            args=args,
            context=contextvars.copy_context(),
            waiter=trio.lowlevel.current_task(),
        )
        job.context.run(current_async_library_cvar.set, "asyncio")
        self._jobs.add(job)
        self._post("start", job)

        def abort(raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
            job.raise_cancel = raise_cancel
            self._post("cancel", job)
            return trio.lowlevel.Abort.FAILED  # stay parked until the asyncio side has finished

        return cast("T", await trio.lowlevel.wait_task_rescheduled(abort))

    def _post(self, verb: Literal["start", "cancel"], job: _Job) -> None:
        assert self._loop is not None, "posted before the loop ran"
        self._posted.append((verb, job))
        if not self._is_wake_up_pending:
            self._is_wake_up_pending = True
            # A closed loop refuses: then _thread_ended is on its way and tells the waiters.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._take_posted)

    def _deliver(self) -> None:
        while self._finished:
            job, result = self._finished.popleft()
            if job not in self._jobs:
                continue  # it was told that the loop died
            if isinstance(result, outcome.Error) and isinstance(
                result.error, asyncio.CancelledError
            ):
                result = (
                    outcome.Error(PortalClosedError("the call was cancelled by the asyncio side"))
                    if job.raise_cancel is None
                    else outcome.capture(job.raise_cancel)
                )
            self._settle(job, result)

    def _settle(self, job: _Job, result: outcome.Outcome[Any]) -> None:
        self._jobs.remove(job)
        trio.lowlevel.reschedule(job.waiter, result)
        if not self._jobs and self._idle is not None:
            self._idle.set()

    def _close(self, reason: str) -> None:
        """Refuse new work and tell everybody who still waits."""
        self._is_open = False
        self._deliver()
        for job in tuple(self._jobs):
            self._settle(job, outcome.Error(PortalClosedError(reason)))

    # Trio side of the thread's life.

    def _loop_started(self) -> None:
        self._is_open = True
        self._started.set()

    def _loop_left(self, death: BaseException | None) -> None:
        """React at once when the loop leaves its main task; its clean-up may still take time."""
        # Waiters first: a cancel of the block would make them hear "cancelled" instead of "lost".
        self._close("the asyncio loop ended")
        if not self._is_stopping:
            self._death = death
            self._body_scope.cancel()

    def _thread_ended(self, result: outcome.Outcome[None]) -> None:
        if isinstance(result, outcome.Error):
            self._loop_left(result.error)
        self._started.set()
        self._ended.set()

    @contextlib.asynccontextmanager
    async def running(self, *, drain_s: float, stop_s: float) -> AsyncIterator[None]:
        """Keep the thread alive for the block; `open_asyncio_thread` is the way to get one."""
        await self._start()
        try:
            with self._body_scope:
                yield
        finally:
            await self._stop(drain_s=drain_s, stop_s=stop_s)
        if self._death is not None:
            raise PortalClosedError("the asyncio loop died") from self._death

    async def _start(self) -> None:
        self._thread.start()
        with trio.move_on_after(START_S), trio.CancelScope(shield=True):
            await self._started.wait()
        if not self._is_open:
            if self._ended.is_set():
                self._thread.join()  # its last act was to tell us: this does not wait
            raise PortalClosedError("the asyncio loop did not start") from self._death

    async def _stop(self, *, drain_s: float, stop_s: float) -> None:
        """Let jobs in flight finish, then cancel the rest, then end the loop and the thread.

        Errors: PortalClosedError when the thread does not end within `stop_s` of the cancel.
        """
        self._is_open = False
        self._is_stopping = True
        with trio.CancelScope(shield=True):
            if self._jobs:
                self._idle = trio.Event()
                with trio.move_on_after(drain_s):
                    await self._idle.wait()
            self._request_stop()
            with trio.move_on_after(stop_s):
                await self._ended.wait()
            self._close("the asyncio thread stopped")
        if not self._ended.is_set():
            raise PortalClosedError(f"the asyncio thread did not end within {stop_s:g} s")
        self._thread.join()  # its last act was to tell us: this does not wait

    def _request_stop(self) -> None:
        if self._loop is not None and self._stop_requested is not None:
            with contextlib.suppress(RuntimeError):  # closed: it has already stopped
                self._loop.call_soon_threadsafe(self._stop_requested.set)

    # The asyncio side.

    def _host(self) -> None:
        result = outcome.capture(self._run_loop)
        self._tell_trio(self._thread_ended, result)

    def _run_loop(self) -> None:
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            result = outcome.capture(runner.run, self._serve())
            death = result.error if isinstance(result, outcome.Error) else None
            # Waiters are told before the runner cancels what is left, which can take for ever.
            if death is not None:
                self._tell_trio(self._loop_left, death)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop_requested = asyncio.Event()
        self._tell_trio(self._loop_started)
        await self._stop_requested.wait()
        # The runner cancels and awaits the tasks that are left, then closes async generators.

    def _take_posted(self) -> None:
        self._is_wake_up_pending = False  # before taking: who posts from now on wakes us again
        loop = self._loop
        assert loop is not None
        while self._posted:
            verb, job = self._posted.popleft()
            if verb == "start":
                job.asyncio_task = loop.create_task(_perform(job), context=job.context)
                job.asyncio_task.add_done_callback(functools.partial(self._finish, job))
            elif job.asyncio_task is not None:
                job.asyncio_task.cancel()

    def _finish(self, job: _Job, task: asyncio.Task[Any]) -> None:
        self._finished.append((job, outcome.capture(task.result)))
        with contextlib.suppress(trio.RunFinishedError):
            self._trio.run_sync_soon(self._deliver, idempotent=True)

    def _tell_trio(self, sync_fn: Callable[[*Ts], None], *args: *Ts) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._trio.run_sync_soon(sync_fn, *args)


async def _perform(job: _Job) -> Any:
    return await job.async_fn(*job.args)


@contextlib.asynccontextmanager
async def open_asyncio_thread(
    *,
    drain_s: float = DRAIN_S,
    stop_s: float = STOP_S,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> AsyncIterator[AsyncioThread]:
    """Start the thread, hand out its portal, and end the thread when the block is left.

    Units:  seconds of Trio time for both deadlines; leaving waits at most their sum.
    Errors: PortalClosedError when the loop dies (the block is cancelled) or does not end in time.
    """
    assert 0 <= drain_s < math.inf, drain_s
    assert 0 < stop_s < math.inf, stop_s
    portal = AsyncioThread(loop_factory)
    async with portal.running(drain_s=drain_s, stop_s=stop_s):
        yield portal
