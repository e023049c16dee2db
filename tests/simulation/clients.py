"""Those who use meterd: honest clients on the real client core, liars, and what they really did.

An honest client is `meterd.client.session` with a shell as thin as can be. Its bodies run for as
long as they run: `Run` is the truth that the auditor holds the ledger to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import msgspec
import trio

from meterd.client.errors import MeterdClientError
from meterd.client.events import (
    Acknowledged,
    Declared,
    GaveUp,
    NotStarted,
    Settled,
    Started,
    StopAsked,
)
from meterd.client.policy import FailClosed, Settings, UnreachablePolicy
from meterd.client.session import Session
from meterd.client.wire import TaskRequest
from tests.simulation.determinism import Chance
from tests.simulation.network import Line, Network, Server


PATIENT = FailClosed(running_minutes=1_440)


@attrs.define(kw_only=True, eq=False)
class Run:
    """What really happened to one task of an honest client."""

    organization_id: str
    task_id: str
    agent_id: str
    asked_s: float
    heard_s: list[float] = attrs.Factory(list)
    """When an acknowledgement of it reached the client."""
    begun_s: float | None = None
    is_local: bool = False
    """It began without meterd."""
    ended_s: float | None = None
    """When its body ended."""
    failed_s: float | None = None
    """When the client gave up to start it."""
    ran_ms: int | None = None
    outcome: str | None = None
    stop: MeterdClientError | None = None
    stopped_s: float | None = None
    error: MeterdClientError | None = None
    settled_ms: int | None = None
    gave_up: MeterdClientError | None = None
    acked_ms: int = 0
    is_clamped: bool = False
    is_orphan: bool = False
    """The client died, or an earlier client died with it: nobody finishes this task exactly."""
    changed: trio.Event = attrs.Factory(trio.Event)

    def tell(self) -> None:
        """Wake the body."""
        self.changed.set()
        self.changed = trio.Event()


class SeededChance:
    """The client's randomness."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance

    def up_to(self, most: int) -> int:
        """Give an integer from 0 to `most`."""
        return self._chance.whole(0, most)

    def task_id(self) -> str:
        """Give a name."""
        return f"task_{self._chance.whole(0, 10**9)}"


class HonestClient:
    """One process of a customer: any number of tasks, one connection."""

    def __init__(
        self,
        organization_id: str,
        *,
        network: Network,
        find_server: Callable[[], Server | None],
        chance: Chance,
        unreachable: UnreachablePolicy = PATIENT,
    ) -> None:
        self.organization_id = organization_id
        self.is_dead = False
        self.died_s = math.inf
        self._offline_until_s = 0.0
        self.runs: dict[str, Run] = {}
        self.settings = Settings(unreachable=unreachable, start_timeout_ms=20_000)
        self.session = Session(self.settings, SeededChance(chance))
        self._network = network
        self._find_server = find_server
        self._line: Line | None = None
        self._changed = trio.Event()

    def now_ms(self) -> int:
        """Give this machine's monotonic time."""
        return int(trio.current_time() * 1_000 + 1e-6)  # an instant of whole ms is that instant

    # --- the application ----------------------------------------------------------------------

    async def work(
        self, task_id: str, agent_id: str, *, lasts_s: float, obeys: bool, outcome: str
    ) -> Run:
        """Run one task: wait for the verdict, do the work, say how it ended."""
        run = Run(
            organization_id=self.organization_id,
            task_id=task_id,
            agent_id=agent_id,
            asked_s=trio.current_time(),
        )
        self.runs[task_id] = run
        self.session.start(TaskRequest(task_id=task_id, agent_id=agent_id), self.now_ms())
        self._drain()
        while run.begun_s is None and run.error is None:
            await run.changed.wait()
        if run.error is not None:
            return run
        with trio.move_on_after(lasts_s):
            while run.stop is None or not obeys:
                await run.changed.wait()
        run.ended_s = trio.current_time()
        if not self.is_dead:
            run.ran_ms = self.session.elapsed_ms(task_id, self.now_ms())
            run.outcome = "cancelled" if run.stop is not None and obeys else outcome
            self.session.finish(task_id, run.outcome, self.now_ms())  # type: ignore[arg-type]
            self._drain()
        return run

    def go_offline(self, seconds: float) -> None:
        """Lose the network for a while; the bodies work on."""
        self._offline_until_s = trio.current_time() + seconds
        if self._line is not None:
            self._line.cut()

    def die(self) -> None:
        """Lose the process: nothing more is sent, nothing more is heard."""
        self.is_dead, self.died_s = True, min(self.died_s, trio.current_time())
        for run in self.runs.values():
            run.is_orphan = True
        if self._line is not None:
            self._line.cut()
        self._changed.set()

    # --- the shell ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep time and the connection until the process dies."""
        while not self.is_dead:
            self._changed = trio.Event()
            now_ms = self.now_ms()
            self.session.advance(now_ms)
            connect_at_ms = self.session.connect_at_ms()
            if connect_at_ms is not None and connect_at_ms <= now_ms:
                self.session.connecting()
                is_offline = trio.current_time() < self._offline_until_s
                self._network.connect(self, None if is_offline else self._find_server())
            self._speak()
            times = (
                self.session.wake_at_ms(),
                self.session.send_at_ms(),
                self.session.connect_at_ms(),
            )
            next_ms = min((at for at in times if at is not None), default=now_ms + 3_600_000)
            with trio.move_on_at(max(next_ms, now_ms + 1) / 1_000):
                await self._changed.wait()

    def on_connected(self, line: Line) -> None:
        """Send everything again."""
        self._line = line
        self.session.connected(self.now_ms())
        self._drain()

    def on_refused(self) -> None:
        """Try again later."""
        if not self.is_dead:
            self.session.refused(status=None, now_ms=self.now_ms())
            self._drain()

    def on_frame(self, line: Line, frame: bytes) -> None:
        """Take what meterd says."""
        if line is self._line:
            self._hear(frame)
            self.session.receive(frame, self.now_ms())
            self._drain()

    def _hear(self, frame: bytes) -> None:
        """Note which tasks are acknowledged, without the client's own understanding."""
        content = msgspec.json.decode(frame)
        for message in content if isinstance(content, list) else [content]:
            run = self.runs.get(message.get("task_id", ""))
            if run is not None and message["type"] in {"started", "ack"}:
                run.heard_s.append(trio.current_time())

    def on_lost(self, line: Line, code: int) -> None:
        """Try again later."""
        if line is self._line and not self.is_dead:
            self._line = None
            self.session.lost(code=code, now_ms=self.now_ms())
            self._drain()

    def _drain(self) -> None:
        self._speak()
        self._changed.set()

    def _speak(self) -> None:
        for event in self.session.events():
            self._take(event)
        if self._line is not None and not self.is_dead:
            for frame in self.session.frames(self.now_ms()):
                self._line.from_client(frame)

    def _take(self, event: Any) -> None:
        run = self.runs[event.task_id]
        match event:
            case Started(is_local=is_local):
                run.begun_s, run.is_local = trio.current_time(), is_local
            case NotStarted(error=error):
                run.error, run.failed_s = error, trio.current_time()
            case Acknowledged(elapsed_ms=elapsed_ms, is_clamped=is_clamped):
                run.acked_ms = max(run.acked_ms, elapsed_ms)
                run.is_clamped = run.is_clamped or is_clamped
            case StopAsked(error=error):
                run.stop, run.stopped_s = error, trio.current_time()
            case Settled(metered_ms=metered_ms):
                run.settled_ms = metered_ms
            case GaveUp(error=error):
                run.gave_up = error
            case Declared() | _:
                pass
        run.tell()


class Liar:
    """A worker that claims what it likes, when it likes, under anybody's task id."""

    def __init__(
        self,
        organization_id: str,
        *,
        network: Network,
        find_server: Callable[[], Server | None],
        chance: Chance,
        lies: Iterable[dict[str, Any]] | None = None,
    ) -> None:
        """Say these and be silent, or without them whatever comes to mind for ever."""
        self.organization_id = organization_id
        self.is_dead = False
        self._network = network
        self._find_server = find_server
        self._chance = chance
        self._lies = iter(self._message, None) if lies is None else iter(lies)
        self._line: Line | None = None
        self._is_connecting = False

    async def run(self) -> None:
        """Say something every few seconds."""
        while not self.is_dead:
            await trio.sleep(self._chance.soon(4.0))
            if self._line is not None:
                lie = next(self._lies, None)
                if lie is None:
                    return
                self._line.from_client(msgspec.json.encode(lie).decode())
            elif not self._is_connecting:
                self._is_connecting = True
                self._network.connect(self, self._find_server())

    def _message(self) -> dict[str, Any]:
        chance = self._chance
        task_id = f"lie_{chance.whole(1, 3)}"
        claim = chance.pick(0, 1, 59_999, 60_000, chance.whole(0, 400_000), 2_678_400_000)
        match chance.whole(0, 5):
            case 0 | 1:
                return {
                    "type": "start",
                    "task_id": task_id,
                    "agent_id": f"liar_{chance.whole(1, 2)}",
                    "elapsed_ms": min(claim, 300_000),
                }
            case 2 | 3 | 4:
                return {"type": "heartbeat", "task_id": task_id, "elapsed_ms": claim}
            case _:
                outcome = chance.pick("succeeded", "failed", "cancelled")
                return {
                    "type": "finish",
                    "task_id": task_id,
                    "elapsed_ms": claim,
                    "outcome": outcome,
                }

    def on_connected(self, line: Line) -> None:
        """Remember the line."""
        self._line, self._is_connecting = line, False

    def on_refused(self) -> None:
        """Try again with the next lie."""
        self._is_connecting = False

    def on_frame(self, line: Line, frame: bytes) -> None:
        """Not listen."""

    def on_lost(self, line: Line, code: int) -> None:
        """Forget the line."""
        del code
        if line is self._line:
            self._line = None
