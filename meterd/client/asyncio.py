"""The client on asyncio. The names are those of `meterd.client.trio` and `.threads`."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from websockets.asyncio.client import connect

from meterd.client.async_client import HANG_UP_TIMEOUT_S, AsyncMeterd, TaskBase
from meterd.client.driver import Runtime, Signal
from meterd.client.policy import OnStop
from meterd.client.task import outcome_of
from meterd.client.transport import Transport, WebSocketTransport


__all__ = ["Meterd", "Task"]

Result = TypeVar("Result")


class Task(TaskBase):
    """A running task; see `TaskHandle` for what it tells."""


class _Signal:
    """An `asyncio.Event` that can happen again."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        event = self._event
        await event.wait()
        if self._event is event:
            self._event = asyncio.Event()


class _AsyncioRuntime:
    """Waiting on the running loop; the time is the same in every thread."""

    def now_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def signal(self) -> _Signal:
        return _Signal()

    async def wait(self, signal: Signal, timeout_ms: int | None) -> bool:
        try:
            async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1000):
                await signal.wait()
        except TimeoutError:
            return False
        return True

    async def first_of(self, *jobs: Callable[[], Coroutine[Any, Any, None]]) -> None:
        tasks = [asyncio.create_task(job()) for job in jobs]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result


class _Body:
    """Cancels the task that runs a body, and knows its own cancellation from others'.

    The counting is that of `asyncio.timeout`.
    Source: https://docs.python.org/3/library/asyncio-task.html#asyncio.Task.uncancel
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "a task of the event loop runs this"
        self._task = task
        self._cancelling = task.cancelling()
        self._is_asked = False

    def cancel(self) -> None:
        if not self._is_asked:
            self._is_asked = True
            self._task.cancel("meterd asked the task to stop")

    def has_caught(self, error: BaseException | None) -> bool:
        """Tell, once, whether `error` is this cancellation and nobody else's."""
        if not self._is_asked:
            return False
        left = self._task.uncancel()
        return left <= self._cancelling and isinstance(error, asyncio.CancelledError)


async def _shielded(work: Coroutine[Any, Any, Result]) -> Result:
    """Finish `work` whatever cancels the caller, then let the cancellation go on."""
    inner = asyncio.ensure_future(work)
    is_cancelled = False
    while not inner.done():
        try:
            await asyncio.shield(inner)
        except asyncio.CancelledError:
            if inner.cancelled():
                raise
            is_cancelled = True
    if is_cancelled:
        raise asyncio.CancelledError
    return inner.result()


class Meterd(AsyncMeterd):
    """A connection to meterd that meters any number of tasks, on asyncio.

    Use it as `async with Meterd(url, key) as client:`, once.
    """

    def _make_runtime(self) -> Runtime:
        return _AsyncioRuntime()

    def _make_transport(self, url: str, key: str, ssl_context: ssl.SSLContext | None) -> Transport:
        return WebSocketTransport(
            connect,
            url=url,
            key=key,
            ssl_context=ssl_context,
            network_errors=(),
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
        body = _Body()
        if (on_stop or self._on_stop) == "cancel":
            tracked.cancel_with(body.cancel)
        is_stopped = False
        error: BaseException | None = None
        try:
            yield task
            body.has_caught(None)
        except asyncio.CancelledError as raised:
            error = raised
            is_stopped = body.has_caught(raised)
            if not is_stopped:
                raise
        except BaseException as raised:
            error = raised
            body.has_caught(raised)
            raise
        finally:
            self._driver.finish(tracked, outcome_of(error))
            await _shielded(self._driver.settled(tracked, self._settle_timeout_ms))
        if is_stopped:
            task.checkpoint()

    @asynccontextmanager
    async def _living(self) -> AsyncIterator[None]:
        error: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                driving = group.create_task(self._driver.run())
                try:
                    yield
                except BaseException as raised:
                    error = raised
                    raise
                finally:
                    await _shielded(self._close(driving))
        except BaseExceptionGroup:
            has_failed = not driving.cancelled() and driving.exception() is not None
            if has_failed or error is None:
                raise
        # The task group is a detail: what the body raised leaves as it was raised.
        if error is not None:
            raise error

    async def _close(self, driving: asyncio.Task[None]) -> None:
        self.unsettled = await self._driver.close(self._close_timeout_ms)
        await self._close_http()
        await asyncio.wait([driving], timeout=HANG_UP_TIMEOUT_S)
        driving.cancel()
