"""The three clients behind one face, so that one suite says what all of them must do.

The threaded client is driven from a worker thread each time; its body is then whatever the
scenario does between entering and leaving.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Protocol, Self

import trio

from meterd.client import asyncio as asyncio_client, threads as threads_client, trio as trio_client


class Shell(Protocol):
    """What a scenario needs."""

    name: str

    def client(self, url: str, key: str, **options: Any) -> AbstractAsyncContextManager[Any]:
        """Make a client."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run something that blocks."""
        ...

    def run(self, scenario: Callable[[], Awaitable[None]], *, timeout_s: float = 20) -> None:
        """Run a scenario to its end."""
        ...


class TrioShell:
    """Trio."""

    name = "trio"
    client = trio_client.Meterd

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await trio.to_thread.run_sync(function, *arguments)

    def run(self, scenario: Callable[[], Awaitable[None]], *, timeout_s: float = 20) -> None:
        async def main() -> None:
            with trio.fail_after(timeout_s):
                await scenario()

        trio.run(main)


class AsyncioShell:
    """asyncio."""

    name = "asyncio"
    client: Any = asyncio_client.Meterd

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.to_thread(function, *arguments)

    def run(self, scenario: Callable[[], Awaitable[None]], *, timeout_s: float = 20) -> None:
        async def main() -> None:
            async with asyncio.timeout(timeout_s):
                await scenario()

        asyncio.run(main())


class ThreadsShell(AsyncioShell):
    """Plain threads, entered and left from worker threads."""

    name = "threads"

    @staticmethod
    def client(url: str, key: str, **options: Any) -> AbstractAsyncContextManager[Any]:
        return _ThreadedClient(threads_client.Meterd(url, key, **options))


class _Entered:
    """A blocking context manager as an asynchronous one."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aenter__(self) -> Any:
        return await asyncio.to_thread(self._inner.__enter__)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Any:
        return await asyncio.to_thread(self._inner.__exit__, kind, error, traceback)


class _ThreadedClient(_Entered):
    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self

    def task(self, **request: Any) -> _Entered:
        return _Entered(self._inner.task(**request))

    async def check(self, agent_id: str | None = None) -> Any:
        return await asyncio.to_thread(self._inner.check, agent_id)

    async def quota(self) -> Any:
        return await asyncio.to_thread(self._inner.quota)

    @property
    def unsettled(self) -> list[str]:
        return list(self._inner.unsettled)


SHELLS: tuple[Any, ...] = (TrioShell(), AsyncioShell(), ThreadsShell())
