"""Agents that survive anything: they keep their own books and send cumulative values again."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from meterd.client import FailOpen, MeterdClientError, Settings
from meterd.client.trio import Meterd


SETTINGS = Settings(
    unreachable=FailOpen(), start_timeout_ms=2_000, backoff_ms=50, backoff_ms_max=500
)


@attrs.define
class Books:
    """What the agents say: per task what it ran, and what meterd acknowledged as durable."""

    ran_ms: dict[str, int] = attrs.Factory(dict)
    acknowledged_ms: dict[str, int] = attrs.Factory(dict)
    errors: list[str] = attrs.Factory(list)


async def run_agents(
    url: str,
    key: str,
    books: Books,
    *,
    agents: int,
    until: Callable[[], bool],
    settle_ms: int = 30_000,
) -> None:
    """Run short tasks on every agent until told to end; every task is settled at the end."""
    async with (
        Meterd(
            url, key, settings=SETTINGS, settle_timeout_ms=settle_ms, close_timeout_ms=settle_ms
        ) as client,
        trio.open_nursery() as nursery,
    ):
        for number in range(agents):
            nursery.start_soon(_run_agent, client, number, books, until)


async def _run_agent(client: Meterd, number: int, books: Books, until: Callable[[], bool]) -> None:
    count = 0
    while not until():
        count += 1
        try:
            async with client.task(agent_id=f"agent-{number}") as task:
                await trio.sleep(0.3 + number % 7 / 10)
        except MeterdClientError as error:
            books.errors.append(repr(error))
            await trio.sleep(0.1)
            continue
        books.ran_ms[task.task_id] = task.elapsed_ms
        books.acknowledged_ms[task.task_id] = task.acked_ms
        if not task.is_settled:
            books.errors.append(f"{task.task_id} was not settled: {task.settle_error!r}")
