"""Agents that keep books of their own while everything around them fails.

They use the real client; what it says and hears is counted on the wire, below it, so that an
acknowledgement counts from the moment its bytes arrived, whatever the client makes of it.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import attrs
import trio

from meterd.client import MeterdClientError
from meterd.client.transport import Transport, Wire
from meterd.client.trio import Meterd
from tests.integration.service.load import SETTINGS


SETTLE_MS = 60_000
"""Milliseconds an agent waits at the end of a trial until meterd has acknowledged everything."""

LONG_TASK_S = 3.0
"""Seconds; reports are due every second under the trials' settings."""

ACKNOWLEDGEMENTS = ("started", "ack", "finished")


@attrs.define(eq=False)
class Ledger:
    """What the agents know: what ran, what was said, what was acknowledged."""

    ran_ms: dict[str, int] = attrs.Factory(dict)
    """Per ended task what the agent ran."""
    acknowledged_ms: dict[str, int] = attrs.Factory(dict)
    """Per task the most that meterd has acknowledged on the wire; 0 for `started`."""
    finished: set[str] = attrs.Factory(set)
    """Tasks whose end is acknowledged."""
    acknowledgements: int = 0
    connections: int = 0
    said: Counter[tuple[str, str]] = attrs.Factory(Counter)
    """How often `start` and `finish` of each task were sent."""
    repeated_reports: int = 0
    """Heartbeats that resume a task on a new connection."""
    asked_at_s: dict[str, float] = attrs.Factory(dict)
    """When each task's `start` was first sent, on Trio's clock."""
    started_at_s: dict[str, float] = attrs.Factory(dict)
    errors: list[str] = attrs.Factory(list)
    _heard: trio.Event = attrs.Factory(trio.Event)

    @property
    def resent(self) -> int:
        """Return how many messages were sent although they had been sent before."""
        return sum(count - 1 for count in self.said.values()) + self.repeated_reports

    def on_sent(self, message: dict[str, Any], seen: set[str]) -> None:
        """Count a message the client sends; `seen` are the tasks named on this connection."""
        kind, task_id = message["type"], message["task_id"]
        if kind == "heartbeat":
            self.repeated_reports += task_id not in seen
        else:
            self.said[kind, task_id] += 1
        if kind == "start":
            self.asked_at_s.setdefault(task_id, trio.current_time())
        seen.add(task_id)

    def on_received(self, message: dict[str, Any]) -> None:
        """Note what meterd acknowledges."""
        kind = message["type"]
        if kind not in ACKNOWLEDGEMENTS:
            return
        task_id = message["task_id"]
        self.acknowledgements += 1
        if kind == "started":
            self.started_at_s.setdefault(task_id, trio.current_time())
        if kind == "finished":
            self.finished.add(task_id)
        durable_ms = message.get("elapsed_ms", message.get("metered_ms", 0))
        self.acknowledged_ms[task_id] = max(self.acknowledged_ms.get(task_id, 0), durable_ms)
        self._heard.set()
        self._heard = trio.Event()

    async def recovery_s(self, since_s: float, within_s: float = 60) -> float:
        """Wait until a task that was asked for after `since_s` is durable; return the seconds."""
        with trio.fail_after(within_s):
            while True:
                times = [
                    at_s
                    for task_id, at_s in self.started_at_s.items()
                    if self.asked_at_s[task_id] > since_s
                ]
                if times:
                    return min(times) - since_s
                await self._heard.wait()


@attrs.frozen
class CountedTransport:
    """The client's transport, with a count of what passes."""

    inner: Transport
    ledger: Ledger

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Wire]:
        """Open one connection. Errors: ConnectFailed."""
        async with self.inner.open() as wire:
            self.ledger.connections += 1
            yield CountedWire(wire, self.ledger)


@attrs.define(eq=False)
class CountedWire:
    """One connection, with a count of what passes."""

    inner: Wire
    ledger: Ledger
    seen: set[str] = attrs.Factory(set)

    async def send(self, frame: str) -> None:
        """Send one text frame. Errors: ConnectionLost."""
        for message in messages_of(frame):
            self.ledger.on_sent(message, self.seen)
        await self.inner.send(frame)

    async def receive(self) -> str | bytes:
        """Wait for one frame. Errors: ConnectionLost."""
        frame = await self.inner.receive()
        for message in messages_of(frame):
            self.ledger.on_received(message)
        return frame


class CountedMeterd(Meterd):
    """The client, counted."""

    def __init__(self, url: str, key: str, ledger: Ledger) -> None:
        self._ledger = ledger
        super().__init__(
            url, key, settings=SETTINGS, settle_timeout_ms=SETTLE_MS, close_timeout_ms=SETTLE_MS
        )

    def _make_transport(self, url: str, key: str, ssl_context: Any) -> Transport:
        return CountedTransport(super()._make_transport(url, key, ssl_context), self._ledger)


def messages_of(frame: str | bytes) -> Iterator[dict[str, Any]]:
    """Yield the messages of a frame, which is one or an array."""
    content = json.loads(frame)
    yield from content if isinstance(content, list) else [content]


@contextlib.asynccontextmanager
async def working_agents(url: str, key: str, ledger: Ledger, agents: int) -> AsyncIterator[None]:
    """Run short tasks on every agent for the length of the block, and settle them all."""
    is_over = False
    async with CountedMeterd(url, key, ledger) as client, trio.open_nursery() as nursery:
        for number in range(agents):
            nursery.start_soon(_work, client, number, ledger, lambda: is_over)
        yield
        is_over = True


async def _work(
    client: CountedMeterd, number: int, ledger: Ledger, is_over: Callable[[], bool]
) -> None:
    while not is_over():
        try:
            async with client.task(agent_id=f"agent-{number}") as task:
                # Every fourth runs long enough to be caught between two of its reports.
                await trio.sleep(0.2 + number % 7 / 10 + (0 if number % 4 else LONG_TASK_S))
        except MeterdClientError as error:
            ledger.errors.append(repr(error))
            await trio.sleep(0.1)
            continue
        ledger.ran_ms[task.task_id] = task.elapsed_ms
        if not task.is_settled:
            ledger.errors.append(f"{task.task_id} was not settled: {task.settle_error!r}")
