"""A customer's three programs - Trio, asyncio, plain threads - each with agents at work.

What a task *ran* is what its body took on the program's own monotonic clock. What the client says
to meterd is measured by the client; `Ran` keeps both.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import attrs
import trio

from meterd.client import asyncio as asyncio_client, threads as threads_client, trio as trio_client
from tests.integration.service.load import SETTINGS


SETTLE_MS = 60_000
AGENTS = 4
"""Of each program; every second one runs tasks that are due to report several times."""


@attrs.frozen
class Ran:
    """One ended task, in milliseconds."""

    task_id: str
    ran_ms: int
    said_ms: int
    settled_ms: int | None
    """What meterd answered that it counts; None: it never did."""


@attrs.define(eq=False)
class Diary:
    """What the programs lived through; written from their threads."""

    is_over: threading.Event = attrs.Factory(threading.Event)
    ran: defaultdict[str, list[Ran]] = attrs.Factory(lambda: defaultdict(list))
    """By program."""

    def write(self, program: str, task: Any, ran_ms: int) -> None:
        """Keep a task that has ended."""
        settled_ms = task.metered_ms if task.is_settled else None
        self.ran[program].append(Ran(task.task_id, ran_ms, task.elapsed_ms, settled_ms))


def options() -> dict[str, Any]:
    """Return the clients' settings; the programs start without meterd when they must."""
    return {
        "settings": SETTINGS,
        "settle_timeout_ms": SETTLE_MS,
        "close_timeout_ms": SETTLE_MS,
    }


def lengths_s(number: int) -> Iterator[float]:
    """Yield how long an agent's tasks last: short ones, or long enough to be caught between."""
    while True:
        yield from (0.3, 0.7, 0.5) if number % 2 else (2.6, 6.2, 4.1)


def now_ms() -> int:
    """Return the program's monotonic milliseconds."""
    return time.monotonic_ns() // 1_000_000


async def run_trio_program(url: str, key: str, diary: Diary) -> None:
    """Work until the diary says that it is over."""
    async with (
        trio_client.Meterd(url, key, **options()) as client,
        trio.open_nursery() as nursery,
    ):
        for number in range(AGENTS):
            nursery.start_soon(_work, "trio", client, number, trio.sleep, diary)


async def run_asyncio_program(url: str, key: str, diary: Diary) -> None:
    """Work until the diary says that it is over, on a loop of its own."""

    async def live() -> None:
        async with (
            asyncio_client.Meterd(url, key, **options()) as client,
            asyncio.TaskGroup() as group,
        ):
            for number in range(AGENTS):
                group.create_task(_work("asyncio", client, number, asyncio.sleep, diary))

    await trio.to_thread.run_sync(asyncio.run, live())


async def run_threads_program(url: str, key: str, diary: Diary) -> None:
    """Work until the diary says that it is over, one thread for each agent."""

    def work(client: threads_client.Meterd, number: int) -> None:
        for length_s in lengths_s(number):
            if diary.is_over.is_set():
                return
            with client.task(agent_id=f"threads-{number}") as task:
                begun_ms = now_ms()
                time.sleep(length_s)
                ran_ms = now_ms() - begun_ms
            diary.write("threads", task, ran_ms)

    with_client = threads_client.Meterd(url, key, **options())
    client = await trio.to_thread.run_sync(with_client.__enter__)
    try:
        async with trio.open_nursery() as nursery:
            for number in range(AGENTS):
                nursery.start_soon(trio.to_thread.run_sync, work, client, number)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(with_client.__exit__, None, None, None)


async def _work(
    program: str, client: Any, number: int, sleep: Callable[[float], Awaitable[None]], diary: Diary
) -> None:
    for length_s in lengths_s(number):
        if diary.is_over.is_set():
            return
        async with client.task(agent_id=f"{program}-{number}") as task:
            begun_ms = now_ms()
            await sleep(length_s)
            ran_ms = now_ms() - begun_ms
        diary.write(program, task, ran_ms)


PROGRAMS = {
    "trio": run_trio_program,
    "asyncio": run_asyncio_program,
    "threads": run_threads_program,
}
