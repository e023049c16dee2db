"""The client on Trio. The names are those of `meterd.client.asyncio` and `.threads`."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

import trio
from websockets.trio.client import connect

from meterd.client.async_client import HANG_UP_TIMEOUT_S, AsyncMeterd, TaskBase
from meterd.client.driver import Runtime, Signal
from meterd.client.policy import OnStop
from meterd.client.task import outcome_of
from meterd.client.transport import Transport, WebSocketTransport


__all__ = ["Meterd", "Task"]


class Task(TaskBase):
    """A running task; see `TaskHandle` for what it tells."""


class _Signal:
    """A `trio.Event` that can happen again."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def notify(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        event = self._event
        await event.wait()
        if self._event is event:
            self._event = trio.Event()


class _TrioRuntime:
    """Time and waiting on Trio's clock, so a `MockClock` drives the client too."""

    def now_ms(self) -> int:
        return int(trio.current_time() * 1000)

    def signal(self) -> _Signal:
        return _Signal()

    async def wait(self, signal: Signal, timeout_ms: int | None) -> bool:
        timeout_s = float("inf") if timeout_ms is None else timeout_ms / 1000
        with trio.move_on_after(timeout_s) as scope:
            await signal.wait()
        return not scope.cancelled_caught

    async def first_of(self, *jobs: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with trio.open_nursery() as nursery:

            async def run(job: Callable[[], Coroutine[Any, Any, None]]) -> None:
                await job()
                nursery.cancel_scope.cancel()

            for job in jobs:
                nursery.start_soon(run, job)


class Meterd(AsyncMeterd):
    """A connection to meterd that meters any number of tasks, on Trio.

    Use it as `async with Meterd(url, key) as client:`, once.
    """

    def _make_runtime(self) -> Runtime:
        return _TrioRuntime()

    def _make_transport(self, url: str, key: str, ssl_context: ssl.SSLContext | None) -> Transport:
        return WebSocketTransport(
            connect,
            url=url,
            key=key,
            ssl_context=ssl_context,
            network_errors=(trio.BrokenResourceError, trio.ClosedResourceError),
        )

    async def __aenter__(self) -> Self:
        """Start the client's background work; the connection opens with the first task."""
        if self._life is not None:
            raise RuntimeError("the client was used before: make a new one")
        self._life = self._living()
        await self._life.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Wait, at most `close_timeout_ms`, until every task is settled; then disconnect."""
        assert self._life is not None, "not entered"
        return await self._life.__aexit__(kind, error, traceback)

    @asynccontextmanager
    async def task(
        self,
        *,
        agent_id: str,
        task_id: str | None = None,
        user_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        on_stop: OnStop | None = None,
    ) -> AsyncIterator[Task]:
        """Meter the body as one task of `agent_id`.

        The body begins when meterd has said yes, or under `FailOpen` without its word. A `stop`
        cancels it and raises the reason here, or only sets `task.stop_requested`. The end is
        settled as succeeded, failed (an exception) or cancelled; that is shielded, and waits at
        most `settle_timeout_ms`. With a `task_id` used before, an unfinished task is resumed.

        Errors: Refused and its kinds, KeyRejected, Unreachable, TaskConflict, TaskClosed,
        RequestRejected, TooManyTasks; ValueError for an impossible id or metadata.
        """
        request = self.request(agent_id, task_id, user_id, metadata)
        task = Task(request, partial(self.elapsed_ms, request.task_id))
        tracked = task.tracked = await self.begin(request, task)
        body = trio.CancelScope()
        error: BaseException | None = None
        try:
            with body:
                if (on_stop or self._on_stop) == "cancel":
                    tracked.cancel_with(body.cancel)
                yield task
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._driver.finish(
                tracked, "cancelled" if body.cancelled_caught else outcome_of(error)
            )
            with trio.CancelScope(shield=True):
                await self._driver.settled(tracked, self._settle_timeout_ms)
        if body.cancelled_caught:
            task.checkpoint()

    @asynccontextmanager
    async def _living(self) -> AsyncIterator[None]:
        error: BaseException | None = None
        # Whoever cancels the application must not cancel the settlements: the driver has its own
        # shield and is ended by the close below, which has a deadline.
        driving = trio.CancelScope(shield=True)
        ended = trio.Event()
        has_failed = True

        async def drive() -> None:
            nonlocal has_failed
            try:
                with driving:
                    await self._driver.run()
                has_failed = False
            finally:
                ended.set()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(drive)
                try:
                    yield
                except BaseException as raised:
                    error = raised
                    raise
                finally:
                    with trio.CancelScope(shield=True):
                        self.unsettled = await self._driver.close(self._close_timeout_ms)
                        await self._close_http()
                        with trio.move_on_after(HANG_UP_TIMEOUT_S):
                            await ended.wait()
                    driving.cancel()
        except BaseExceptionGroup:
            if has_failed or error is None:
                raise
        # The nursery is a detail: what the body raised leaves as it was raised.
        if error is not None:
            raise error
