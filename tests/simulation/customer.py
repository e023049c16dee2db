"""A customer's program on the real client, and the connection it has to a simulated meterd.

What a task *ran* is the time its body took, from its first step to its last, on the program's own
monotonic clock. A `stop` ends the body where it stands; the milliseconds it had already run count.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import trio

from meterd.client import MeterdClientError
from meterd.client.policy import UnreachablePolicy
from meterd.client.transport import (
    ABNORMAL_CLOSURE,
    OPEN_TIMEOUT_S,
    ConnectFailed,
    ConnectionLost,
    Wire,
)
from meterd.client.trio import Meterd
from tests.simulation.clients import SeededChance
from tests.simulation.determinism import Chance
from tests.simulation.network import Line, Network, Server


UNSEEN_S = 40.0
"""How long a silent network goes unnoticed: `websockets` pings every 20 s and waits 20 s."""


class SimulatedWire:
    """An open connection of the client; frames that meterd sends wait here to be read."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self._arrived, self._frames = trio.open_memory_channel[bytes](10_000)
        self._end = ConnectionLost(ABNORMAL_CLOSURE)

    def put(self, frame: bytes) -> None:
        """Let a frame arrive."""
        self._arrived.send_nowait(frame)

    def end(self, code: int) -> None:
        """Let the connection end once what has arrived is read."""
        self._end = ConnectionLost(code)
        self._arrived.close()

    async def send(self, frame: str) -> None:
        """Send one text frame. Errors: ConnectionLost."""
        await trio.lowlevel.checkpoint()
        if not self.line.is_up:
            raise self._end
        self.line.from_client(frame)

    async def receive(self) -> bytes:
        """Wait for one frame. Errors: ConnectionLost."""
        try:
            return await self._frames.receive()
        except trio.EndOfChannel:
            raise self._end from None


@attrs.define(eq=False)
class SimulatedTransport:
    """The client's `Transport`, and the client as the simulated network sees it."""

    organization_id: str
    network: Network
    find_server: Callable[[], Server | None]
    is_dead: bool = False
    is_cut_off: bool = False
    """Nothing passes, and nothing says so: packets vanish."""
    connections: int = 0
    _wire: SimulatedWire | None = None
    _refused: bool = False
    _changed: trio.Event = attrs.Factory(trio.Event)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Wire]:
        """Open one connection. Errors: ConnectFailed."""
        if self.is_cut_off:
            await trio.sleep(OPEN_TIMEOUT_S)
            raise ConnectFailed("the handshake took too long")
        self._refused = False
        self.network.connect(self, self.find_server())
        while self._wire is None and not self._refused:
            await self._changed.wait()
        if self._wire is None:
            raise ConnectFailed("nobody listens")
        try:
            yield self._wire
        finally:
            if self._wire is not None:
                self._wire.line.cut()
                self._wire = None

    async def lose_network(self, seconds: float) -> None:
        """Let nothing pass for so long; a longer silence is noticed by the client's pings."""
        self.is_cut_off = True
        with trio.move_on_after(seconds):
            await trio.sleep(UNSEEN_S)
            self.hang_up()
            await trio.sleep_forever()
        self.hang_up()
        self.is_cut_off = False

    def hang_up(self) -> None:
        """Let the client learn that its connection is over."""
        if self._wire is not None:
            self._wire.line.cut()

    # The network's side.

    def on_connected(self, line: Line) -> None:
        """Take the open connection."""
        self.connections += 1
        self._wire = SimulatedWire(line)
        self._tell()

    def on_refused(self) -> None:
        """Learn that no connection came about."""
        self._refused = True
        self._tell()

    def on_frame(self, line: Line, frame: bytes) -> None:
        """Take what meterd says."""
        if self._wire is not None and self._wire.line is line and not self.is_cut_off:
            self._wire.put(frame)

    def on_lost(self, line: Line, code: int) -> None:
        """Learn that the connection is over."""
        if self._wire is not None and self._wire.line is line:
            wire, self._wire = self._wire, None
            wire.end(code)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@attrs.define(kw_only=True, eq=False)
class Ran:
    """One task as the program lived it; all in milliseconds."""

    task_id: str
    ran_ms: int = 0
    said_ms: int = 0
    """What the client told meterd at the end."""
    settled_ms: int | None = None
    """What meterd answered that it counts; None: it never did."""
    was_local: bool = False
    was_stopped: bool = False
    was_clamped: bool = False


class Program:
    """One process of a customer: agents that work, one task after the other."""

    def __init__(
        self,
        transport: SimulatedTransport,
        chance: Chance,
        unreachable: UnreachablePolicy,
    ) -> None:
        self.transport = transport
        self.tasks: dict[str, Ran] = {}
        self.refusals: list[str] = []
        self._chance = chance
        self.client = Meterd(
            "http://meterd",
            "a key",
            unreachable=unreachable,
            settle_timeout_ms=600_000,
            close_timeout_ms=600_000,
            transport=transport,
            chance=SeededChance(chance),
        )

    async def work(self, agent_id: str, mean_s: float, until_s: float) -> None:
        """Run tasks of about this length until the hour is over."""
        while trio.current_time() < until_s:
            lasts_s = min(self._chance.soon(mean_s), until_s - trio.current_time())
            try:
                await self.run_task(agent_id, lasts_s)
            except MeterdClientError as error:
                self.refusals.append(error.code)
                await trio.sleep(30)
            await trio.sleep(self._chance.soon(2.0))

    async def run_task(self, agent_id: str, lasts_s: float) -> None:
        """Run one task, and take down what it ran whatever becomes of it."""
        begun_ms, ran = None, Ran(task_id="")
        try:
            async with self.client.task(agent_id=agent_id) as task:
                begun_ms, ran.task_id, ran.was_local = now_ms(), task.task_id, task.is_local
                self.tasks[task.task_id] = ran
                try:
                    await trio.sleep(lasts_s)
                finally:
                    ran.ran_ms = now_ms() - begun_ms
        finally:
            if begun_ms is not None:
                ran.said_ms, ran.was_stopped = task.elapsed_ms, task.stop_requested
                ran.was_clamped = task.is_clamped
                ran.settled_ms = task.metered_ms if task.is_settled else None


def now_ms() -> int:
    """Return the program's monotonic milliseconds."""
    return int(trio.current_time() * 1_000)
