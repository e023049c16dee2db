"""The client for plain threads. The names are those of `meterd.client.trio` and `.asyncio`.

A background thread runs the asyncio client; the body of a task runs in the caller's thread.
Nothing can cancel a thread from outside, so a `stop` shows in `task.stop_requested`, ends
`task.wait_stop` and makes `task.checkpoint()` raise: call it where the body may end.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from meterd.client import asyncio as asyncio_client
from meterd.client.driver import Tracked
from meterd.client.policy import Outcome
from meterd.client.quota import Check, Quota
from meterd.client.task import TaskHandle, outcome_of
from meterd.client.wire import TaskRequest


__all__ = ["Meterd", "Task"]

Result = TypeVar("Result")


class Task(TaskHandle):
    """A running task of a thread; see `TaskHandle` for what it tells."""

    stopped: threading.Event
    """Set, from the background thread, when meterd asks the task to stop."""

    def wait_stop(self, timeout_s: float | None = None) -> bool:
        """Sleep until meterd asks the task to stop, at most so long; tell whether it did."""
        return self.stopped.wait(timeout_s)


class Meterd:
    """A connection to meterd that meters any number of tasks of any number of threads.

    Use it as `with Meterd(url, key) as client:`, once.

    Takes the arguments of `meterd.client.asyncio.Meterd`, except `on_stop`.
    """

    def __init__(self, url: str, key: str, **options: Any) -> None:
        if "on_stop" in options:
            raise TypeError("on_stop needs an async client: a thread cannot be cancelled")
        self._client = asyncio_client.Meterd(url, key, on_stop="finish_step", **options)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leave: asyncio.Event | None = None

    def __enter__(self) -> Self:
        """Start the background thread; the connection opens with the first task."""
        if self._thread is not None:
            raise RuntimeError("the client was used before: make a new one")
        ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        # A daemon, so that a forgotten client cannot keep the interpreter from ending.
        self._thread = threading.Thread(
            target=self._serve, args=(ready,), name="meterd-client", daemon=True
        )
        self._thread.start()
        ready.result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait, at most `close_timeout_ms`, until every task is settled; then disconnect."""
        loop, leave, thread = self._loop, self._leave, self._thread
        assert loop is not None and leave is not None and thread is not None, "not entered"  # noqa: PT018
        loop.call_soon_threadsafe(leave.set)
        thread.join()
        self._loop = None

    @property
    def unsettled(self) -> list[str]:
        """After leaving the client: ids of tasks whose end meterd never acknowledged."""
        return self._client.unsettled

    @property
    def latest_quota(self) -> Quota | None:
        """The last quota object meterd sent on the stream, without asking for a new one."""
        return self._client.latest_quota

    def check(self, agent_id: str | None = None) -> Check:
        """Ask whether `agent_id`, or a new agent, may start work now; nothing is reserved.

        Errors: Unauthorized, Forbidden, RequestRejected; Unreachable under `FailClosed`.
        Source: GET /v1/quota/check.
        """
        return self._call(self._client.check(agent_id))

    def quota(self) -> Quota:
        """Give the organization's quota.

        Errors: Unauthorized, Forbidden, Unreachable. Source: GET /v1/quota.
        """
        return self._call(self._client.quota())

    @contextmanager
    def task(
        self,
        *,
        agent_id: str,
        task_id: str | None = None,
        user_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Iterator[Task]:
        """Meter the body as one task of `agent_id`, as the async clients do.

        Errors: those of `meterd.client.asyncio.Meterd.task`.
        """
        request = self._client.request(agent_id, task_id, user_id, metadata)
        task = Task(request, partial(self._client.elapsed_ms, request.task_id))
        task.stopped = threading.Event()
        tracked = self._call(self._begin(request, task))
        error: BaseException | None = None
        try:
            yield task
        except BaseException as raised:
            error = raised
            raise
        finally:
            # The reason to stop, raised by `checkpoint`, is a stop that was obeyed: cancelled.
            is_stopped = error is not None and error is task.stop
            outcome: Outcome = "cancelled" if is_stopped else outcome_of(error)
            self._call(self._client.end(tracked, outcome))

    async def _begin(self, request: TaskRequest, task: Task) -> Tracked:
        tracked = await self._client.begin(request, task)
        tracked.cancel_with(task.stopped.set)
        return tracked

    def _serve(self, ready: concurrent.futures.Future[None]) -> None:
        try:
            asyncio.run(self._live(ready))
        finally:
            if not ready.done():
                ready.set_exception(RuntimeError("the client's thread could not start"))

    async def _live(self, ready: concurrent.futures.Future[None]) -> None:
        self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        async with self._client:
            ready.set_result(None)
            await self._leave.wait()

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        if self._loop is None:
            work.close()
            raise RuntimeError("the client is not open: use it inside `with`")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
