"""A session, a naive meterd and the network between them, in virtual milliseconds.

Frames wait in `outgoing` and answers in `incoming` until a test delivers, repeats, swaps or drops
them; what a dead connection still carries to the server may arrive late, as on a real network.
Only a start is never more than 5 s late while its body runs: it is lost instead, because meterd
would take the task for younger than it is and, by its plausibility rule, count less.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs

from meterd.client.errors import MeterdClientError
from meterd.client.events import (
    Acknowledged,
    Declared,
    Event,
    GaveUp,
    NotStarted,
    Settled,
    Started,
    StopAsked,
)
from meterd.client.policy import FailClosed, Outcome, Settings, UnreachablePolicy
from meterd.client.session import Session
from meterd.client.wire import TaskRequest
from tests.fakes.naive_meterd import PLAUSIBLE_MS, NaiveMeterd


class HalfChance:
    """No chance at all: always the middle, so that a test can name the instant."""

    def __init__(self) -> None:
        self.count = 0

    def up_to(self, most: int) -> int:
        """Give the middle."""
        return most // 2

    def task_id(self) -> str:
        """Count."""
        self.count += 1
        return f"task-{self.count}"


@attrs.define(kw_only=True)
class Run:
    """What the application saw of one task."""

    begun_at_ms: int | None = None
    ran_ms: int | None = None
    outcome: Outcome | None = None
    is_local: bool = False
    error: MeterdClientError | None = None
    stop: MeterdClientError | None = None
    settled_ms: int | None = None
    gave_up: MeterdClientError | None = None
    acked_ms: int = 0


@attrs.frozen
class Sent:
    """A message on its way to the server."""

    connection: int
    message: dict[str, Any]
    sent_at_ms: int


class World:
    """Everything one client lives in."""

    def __init__(self, *, unreachable: UnreachablePolicy | None = None, **limits: Any) -> None:
        settings = Settings(unreachable=unreachable or FailClosed(), **limits)
        self.session = Session(settings, HalfChance())
        self.now_ms = 1_000_000
        self.book = NaiveMeterd(now_ms=lambda: self.now_ms)
        self.obeys_stop = False
        self.runs: dict[str, Run] = {}
        self.seen: list[Event] = []
        self.connection = 0
        self.outgoing: list[Sent] = []
        self.incoming: list[tuple[int, dict[str, Any]]] = []
        self.frames: list[str] = []

    # The application.

    def start(self, task_id: str = "t", agent_id: str = "a") -> Run:
        """Ask for a task."""
        self.session.start(TaskRequest(task_id=task_id, agent_id=agent_id), self.now_ms)
        run = self.runs[task_id] = Run()
        self.settle_events()
        return run

    def finish(self, task_id: str = "t", outcome: Outcome = "succeeded") -> None:
        """End the body of a task, or give up waiting for it to begin."""
        run = self.runs[task_id]
        if run.begun_at_ms is not None:
            run.ran_ms, run.outcome = self.now_ms - run.begun_at_ms, outcome
        else:
            run.error = MeterdClientError("The application gave up waiting.")
        self.session.finish(task_id, outcome, self.now_ms)
        self.settle_events()

    def settle_events(self) -> None:
        """Take in what the session has to say."""
        for event in self.session.events():
            self.seen.append(event)
            run = self.runs[event.task_id]
            match event:
                case Started(is_local=is_local):
                    run.begun_at_ms, run.is_local = self.now_ms, is_local
                case NotStarted(error=error):
                    run.error = error
                case Declared():
                    run.is_local = False
                case Acknowledged(elapsed_ms=elapsed_ms):
                    run.acked_ms = elapsed_ms
                case StopAsked(error=error):
                    run.stop = error
                    if self.obeys_stop and run.ran_ms is None:
                        self.finish(event.task_id, "cancelled")
                case Settled(metered_ms=metered_ms):
                    run.settled_ms = metered_ms
                case GaveUp(error=error):
                    run.gave_up = error

    # Time.

    def advance(self, ms: int) -> None:
        """Let time pass, stopping at each instant the session asked for."""
        end_ms = self.now_ms + ms
        while True:
            wanted = (self.session.wake_at_ms(), self.session.send_at_ms())
            next_ms = min((at_ms for at_ms in wanted if at_ms is not None), default=end_ms)
            if next_ms >= end_ms:
                break
            self._tick(max(self.now_ms, next_ms))
        self._tick(end_ms)

    def _tick(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.session.advance(now_ms)
        self.settle_events()
        self.collect()

    # The connection.

    def connect(self) -> None:
        """Open a connection, if the session wants one now."""
        connect_at_ms = self.session.connect_at_ms()
        if connect_at_ms is None or connect_at_ms > self.now_ms:
            return
        self.session.connecting()
        self.connection += 1
        self.session.connected(self.now_ms)
        self.collect()

    def cut(self, code: int = 1006) -> None:
        """Lose the connection: no answer on its way arrives any more."""
        if self.session.is_open:
            self.session.lost(code=code, now_ms=self.now_ms)
            self.incoming.clear()
            self.settle_events()

    def refuse(self, status: int | None = None, retry_after_ms: int = 0) -> None:
        """Fail one attempt to connect."""
        self.session.connecting()
        self.session.refused(status=status, retry_after_ms=retry_after_ms, now_ms=self.now_ms)
        self.settle_events()

    def collect(self) -> None:
        """Put what the session sends now on the network."""
        frames = self.session.frames(self.now_ms)
        self.frames += frames
        for frame in frames:
            content = json.loads(frame)
            messages = content if isinstance(content, list) else [content]
            for message in messages:
                self.outgoing.append(Sent(self.connection, message, self.now_ms))

    def deliver(self, index: int = 0, *, again: bool = False) -> None:
        """Let one message reach the server; its answers go on their way back."""
        sent = self.outgoing[index] if again else self.outgoing.pop(index)
        begun_at_ms = self.runs[sent.message["task_id"]].begun_at_ms
        if sent.message["type"] == "start" and begun_at_ms is not None:
            late_ms = self.now_ms - max(sent.sent_at_ms, begun_at_ms)
            if late_ms > PLAUSIBLE_MS:
                return
        answers = self.book.answers(sent.message)
        if self.session.is_open and sent.connection == self.connection:
            self.incoming += [(sent.connection, answer) for answer in answers]

    def answer(self, index: int = 0, *, again: bool = False) -> None:
        """Let one answer reach the client."""
        _, message = self.incoming[index] if again else self.incoming.pop(index)
        self.receive(message)

    def receive(self, *messages: dict[str, Any]) -> None:
        """Give the client one frame."""
        content = messages[0] if len(messages) == 1 else list(messages)
        self.session.receive(json.dumps(content), self.now_ms)
        self.settle_events()
        self.collect()

    def flow(self) -> None:
        """Let everything under way arrive, both ways, until the network is empty."""
        self.collect()
        for _ in range(10_000):
            if self.outgoing:
                self.deliver()
            elif self.incoming:
                self.answer()
            else:
                return
        raise AssertionError("the two talk for ever")

    def run_until(self, is_done: Callable[[], bool], *, step_ms: int = 1_000) -> None:
        """Let a healthy world run, in steps, until it is done."""
        for _ in range(2_000):
            if is_done():
                return
            self.connect()
            self.flow()
            self.advance(step_ms)
        raise AssertionError("the world did not become quiet")

    def sent(self, *names: str) -> list[tuple[Any, ...]]:
        """Give the messages that reached the server, reduced to some fields."""
        return [tuple(message.get(name) for name in names) for message in self.book.received]
