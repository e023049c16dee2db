"""One agent stream: messages in, decisions asked for, acknowledgements once they are durable.

Rule 1: nothing here waits. What the organization's actor can answer at once is answered at once;
the rest is asked for in a task of its own, while frames of other tasks go on.
Rule 2: the messages of one task are taken in the order they came, and so are starts: a slot goes
to who came first, though the store is asked about many tasks at once.
Rule 3: `started`, `ack` and `finished` leave only when the store has what they say; refusals and
`stop` leave at once, because enforcement does not wait for the store.
Rule 4: what is owed is bounded: reports without a `ref` share acknowledgements.

It knows no socket: `StreamTransport` carries it in the front door, in Quart and in tests.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Final

import structlog
import trio
from msgspec import UNSET

from meterd.actors.cell import Answer
from meterd.actors.keyring import Principal
from meterd.core import commands
from meterd.core.commands import Notice, Outcome
from meterd.core.organization import DenialReason
from meterd.core.quota import QuotaView
from meterd.core.task import Task, TaskOutcome, TaskState
from meterd.errors import ActorCrashedError, MeterdError
from meterd.web.problems import KINDS, code_of, denial_message
from meterd.web.services import WebServices
from meterd.web.shapes import QuotaMessage, quota_message, quota_object
from meterd.web.stream_messages import (
    MESSAGES_MAX,
    Ack,
    AnyRef,
    Check,
    ClientMessage,
    Denied,
    Error,
    Finish,
    Finished,
    Heartbeat,
    Mistake,
    QuotaBrief,
    ServerMessage,
    Start,
    Started,
    Stop,
    TaskMessage,
    read_frame,
    write_frames,
    write_message,
)
from meterd.web.stream_owed import Owed, OwedAck, OwedAnswers, OwedEvent
from meterd.web.stream_transport import CLOSE_UNAUTHORIZED, StreamTransport
from meterd.web.stream_turns import Turns
from meterd.web.tasks import start_command


log = structlog.get_logger(__name__)

CLOSE_TOO_MANY_ERRORS: Final = 1008

MISTAKES_MAX: Final = 20
"""Messages in a row that cannot be understood: then the client is not speaking this protocol."""

WAITING_TASKS_MAX: Final = 64
"""Tasks of one stream that are asked for at once when the actor cannot answer at once."""

WAITING_MESSAGES_MAX: Final = 10_000
"""Messages of one stream that wait for such answers; more are refused."""

Spawn = Callable[[Callable[[], Awaitable[None]]], None]
"""Runs something in a task that ends with the stream's server, and contains its failure."""


class AgentSession:
    """The agent stream of one key; a `StreamSession` and an actors' `Listener`."""

    def __init__(
        self,
        transport: StreamTransport,
        *,
        services: WebServices,
        principal: Principal,
        spawn: Spawn,
    ) -> None:
        assert principal.organization_id is not None, principal.key_id
        self._transport = transport
        self._organizations = services.organizations
        self._upgrade_url = services.config.upgrade_url
        self._organization_id = principal.organization_id
        self._spawn = spawn
        self._view: QuotaView | None = None
        self._owed = OwedAnswers()
        self._tasks: dict[str, None] = {}
        self._unannounced: dict[str, Stop | None] = {}
        """Tasks whose `started` waits to be durable, and a stop that must not overtake it."""
        self._queues: dict[str, deque[tuple[int, TaskMessage]]] = {}
        self._turns = Turns()
        self._lined_up: deque[str] = deque()
        self._workers = 0
        self._waiting = 0
        self._mistakes = 0
        self._is_over = False
        self._is_quota_coming = False
        self._outgoing: list[ServerMessage] | None = None
        self._takes_arrays = False
        self._progress = trio.Event()
        self._stop_listening = services.organizations.listen(self._organization_id, self)
        self._stop_watching = services.keyring.on_revoked(principal.key_id, self._on_revoked)
        self._stop_metering = (
            None
            if services.connections is None
            else services.connections.opened(self._organization_id)
        )
        if services.keyring.is_revoked(principal.key_id):
            self._on_revoked()

    # --- what the transport calls -----------------------------------------------------------

    def on_texts(self, payloads: Sequence[bytes]) -> None:
        """Take text messages: each is one object, or an array of up to 1,000."""
        messages: list[ClientMessage | Mistake] = []
        for payload in payloads:
            # Only a client that sends arrays is sent some: it shows that it understands them.
            self._takes_arrays = self._takes_arrays or payload.lstrip()[:1] == b"["
            messages += read_frame(payload)
        self._outgoing = []
        try:
            self._take_all(messages)
        finally:
            self._flush()

    def on_binary(self, payload: bytes) -> None:
        """Refuse a binary message: this protocol has none."""
        del payload
        self._take_mistake(Mistake("Messages are text."))

    async def settled(self) -> None:
        """Return when everything that was asked is answered and sent to the transport."""
        while self._owed or self._waiting:
            self._progress = trio.Event()
            await self._progress.wait()

    def on_end(self, code: int) -> None:
        """Forget everything; closing a stream ends no task."""
        del code
        self._is_over = True
        self._stop_listening()
        self._stop_watching()
        if self._stop_metering is not None:
            self._stop_metering()
        self._owed.clear()
        self._lined_up.clear()
        self._turns.end()
        self._progress.set()

    # --- what actors call -------------------------------------------------------------------

    def on_notices(self, notices: Sequence[Notice]) -> None:
        """Push `stop` for this stream's tasks, and the quota when its state has changed."""
        has_changed = False
        for notice in notices:
            if isinstance(notice, commands.StopTasks):
                for task_id in notice.task_ids:
                    if task_id in self._tasks:
                        self._push_stop(task_id, notice.reason)
            elif isinstance(notice, _NEWS_FOR_AGENTS):
                has_changed = True
        if has_changed:
            self._push_quota()

    def on_durable(self, seq: int) -> None:
        """Send what was waiting for the store to have everything up to `seq`."""
        ready = self._owed.due(seq)
        if ready:
            self._settle(ready)

    def on_dropped(self, seq: int) -> None:
        """Tell the client to send again what the store has refused."""
        self.on_durable(seq)
        self._unannounced.clear()
        self._write([_plain_error("actor_crashed", one.ref) for one in self._owed.clear()])
        self._progress.set()

    def _on_revoked(self) -> None:
        self._transport.close(CLOSE_UNAUTHORIZED, "the key was revoked")

    # --- messages in --------------------------------------------------------------------------

    def _take_all(self, messages: Sequence[ClientMessage | Mistake]) -> None:
        """Take messages in order; reports in a row are asked for together."""
        index = row_end = 0
        is_together = True
        while index < len(messages) and self._transport.is_open:
            if index >= row_end:
                row_end, is_together = _row_end(messages, index), True
            if is_together and row_end - index > 1 and not self._queues:
                taken = self._take_together(messages[index:row_end])  # type: ignore[arg-type]  # a row of reports
                index += taken
                is_together = taken > 0
                if index == row_end:
                    continue
            self._take(messages[index])
            index += 1

    def _take_together(self, reports: Sequence[Heartbeat]) -> int:
        """Take as many reports as the actor takes together; return how many, perhaps none."""
        if self._view is None and (seen := self._seen()) is not None:
            self._view = seen
        try:
            answer = self._organizations.beat_nowait(self._organization_id, reports)
        except MeterdError:
            return 0  # each is told by itself
        if answer is None:
            return 0
        assert isinstance(answer.outcome, commands.Beats), answer
        seq, tasks = answer.seq, answer.outcome.tasks
        self._mistakes = 0
        shared: dict[str, OwedAck] = {}
        own: list[OwedAck] = []
        for report, task in zip(reports, tasks, strict=False):  # the others were not taken
            ack = OwedAck(seq, task, report.elapsed_ms, False, report.ref)
            if report.ref is UNSET:
                shared[report.task_id] = ack
            else:
                own.append(ack)
            self._tasks[report.task_id] = None
        self._owed.add_all(seq, (*own, *shared.values()))
        return len(tasks)

    def _take(self, message: ClientMessage | Mistake) -> None:
        if isinstance(message, Mistake):
            self._take_mistake(message)
            return
        self._mistakes = 0
        if isinstance(message, Check):
            self._take_check(message)
            return
        queue = self._queues.get(message.task_id)
        if queue is None and self._ask_nowait(message):
            return
        if self._waiting >= WAITING_MESSAGES_MAX:
            self._write([_plain_error("overloaded", message.ref)])
            return
        self._waiting += 1
        turn = self._turns.join()
        if queue is not None:
            queue.append((turn, message))
            return
        self._queues[message.task_id] = deque([(turn, message)])
        self._lined_up.append(message.task_id)
        if self._workers < WAITING_TASKS_MAX:
            self._workers += 1
            self._spawn(self._work)

    def _take_mistake(self, mistake: Mistake) -> None:
        self._mistakes += 1
        self._write([Error(code="bad_frame", message=mistake.message, ref=mistake.ref)])
        if self._mistakes >= MISTAKES_MAX:
            self._flush()  # what is answered goes out before the close
            self._transport.close(CLOSE_TOO_MANY_ERRORS, "too many errors in a row")

    def _take_check(self, message: Check) -> None:
        view = self._seen(message.agent_id)
        if view is not None:
            self._write([quota_message(view, message.ref)])
        elif self._waiting >= WAITING_MESSAGES_MAX:
            self._write([_plain_error("overloaded", message.ref)])
        else:
            self._waiting += 1
            self._spawn(lambda: self._check_later(message))

    def _ask_nowait(self, message: TaskMessage) -> bool:
        """Ask, if the actor can answer at once; whether it could."""
        try:
            answer = self._organizations.ask_nowait(self._organization_id, _command(message))
            if answer is None or isinstance(answer.outcome, commands.NeedsTask):
                return False
            self._answer(message, answer, self._view_for(message))
        except MeterdError as error:
            self._write([self._refused(error, message.ref)])
        return True

    def _view_for(self, message: TaskMessage) -> QuotaView:
        """Return the quota that goes with an answer: fresh where it is shown whole.

        Errors: ActorCrashedError when the actor is gone since it answered; asking again is safe.
        """
        is_whole = isinstance(message, Start)
        view = self._view
        if view is None or is_whole:
            agent_id = message.agent_id if isinstance(message, Start) else None
            view = self._organizations.view_nowait(self._organization_id, agent_id)
            if view is None:
                raise ActorCrashedError("the actor is gone since it answered")
            self._view = self._view or view
        return view

    def _seen(self, agent_id: str | None = None) -> QuotaView | None:
        """Return the quota now, or None when the actor cannot say at once."""
        try:
            return self._organizations.view_nowait(self._organization_id, agent_id)
        except MeterdError:
            return None

    # --- tasks that have to wait ----------------------------------------------------------------

    async def _work(self) -> None:
        """Ask for tasks that wait, one after the other, each one's messages in order."""
        try:
            while self._lined_up:
                task_id = self._lined_up.popleft()
                queue = self._queues[task_id]
                is_first = True  # who is not must not hold up the messages it came before
                while queue and not self._is_over:
                    turn, message = queue[0]
                    waits = is_first and isinstance(message, Start)
                    try:
                        await self._ask(message, turn if waits else None)
                    finally:
                        self._turns.leave(turn)  # also when it raises: others wait for theirs
                    is_first = False
                    queue.popleft()
                    self._note_answered()
                del self._queues[task_id]
        finally:
            self._workers -= 1

    async def _ask(self, message: TaskMessage, turn: int | None) -> None:
        """Ask; with a turn, decide only when everything that came before is decided."""
        in_turn = None if turn is None else functools.partial(self._turns.wait, turn)
        try:
            answer = await self._organizations.ask(
                self._organization_id, _command(message), in_turn=in_turn
            )
            self._answer(message, answer, self._view_for(message))
        except MeterdError as error:
            self._write([self._refused(error, message.ref)])

    async def _check_later(self, message: Check) -> None:
        try:
            view = await self._organizations.view(self._organization_id, message.agent_id)
        except MeterdError as error:
            self._write([self._refused(error, message.ref)])
        else:
            self._write([quota_message(view, message.ref)])
        self._note_answered()

    def _refused(self, error: MeterdError, ref: AnyRef) -> Error:
        """Return what the client is told of an error; what is ours alone is logged."""
        code = code_of(error)
        if code == "internal_error":
            log.error("agent_message_failed", organization_id=self._organization_id, exc_info=error)
        return _plain_error(code, ref)

    def _note_answered(self) -> None:
        self._waiting -= 1
        self._progress.set()

    # --- answers --------------------------------------------------------------------------------

    def _answer(self, message: TaskMessage, answer: Answer, view: QuotaView) -> None:
        """Turn an outcome into what is sent now and what is owed."""
        outcome, seq, ref = answer.outcome, answer.seq, message.ref
        match outcome:
            case commands.Beat():
                assert isinstance(message, Heartbeat), message
                self._answer_beat(message, outcome, seq)
            case commands.Started(task=task) if task.state is TaskState.FINISHED:
                self._owe(OwedEvent(seq, _finished(task, ref)))
            case commands.Started(closed=True):
                self._write([_plain_error("task_closed", ref)])
            case commands.Started(task=task):
                self._tasks[task.task_id] = None
                self._unannounced.setdefault(task.task_id)
                started = Started(
                    task_id=task.task_id,
                    heartbeat_interval_ms=self._organizations.rules.heartbeat_interval_ms,
                    elapsed_ms=task.elapsed_ms,
                    quota=quota_object(view),
                    ref=ref,
                )
                self._owe(OwedEvent(seq, started))
            case commands.Denied(reason=reason):
                denied = Denied(
                    task_id=message.task_id,
                    code=reason.value,
                    message=denial_message(reason, view.hold),
                    quota=quota_object(view),
                    upgrade_url=self._upgrade_url or UNSET,
                    ref=ref,
                )
                self._write([denied])
            case commands.Finished(task=task, clamped=clamped):
                self._tasks.pop(task.task_id, None)
                self._owe(OwedEvent(seq, _finished(task, ref, clamped=clamped)))
            case _:
                self._write([_plain_error(_REFUSALS[type(outcome)], ref)])

    def _answer_beat(self, message: Heartbeat, beat: commands.Beat, seq: int) -> None:
        task = beat.task
        if beat.finished:
            elapsed_ms = task.elapsed_ms
            self._write([Stop(task_id=task.task_id, code="task_closed", message=_ENDED)])
        else:
            self._tasks[task.task_id] = None
            elapsed_ms = max(task.elapsed_ms, message.elapsed_ms)
            if beat.stop is not None:
                self._push_stop(task.task_id, beat.stop)
        self._owe(OwedAck(seq, task, elapsed_ms, beat.clamped, message.ref))

    def _owe(self, one: Owed) -> None:
        """Send an answer when its facts are durable: now, or after a flush.

        Errors: ActorCrashedError when the store has rejected them already.
        """
        if self._is_over:
            return
        if self._organizations.is_durable(self._organization_id, one.seq):
            self._settle([one])
        else:
            self._owed.add(one)

    def _settle(self, ready: Sequence[Owed]) -> None:
        """Send answers whose facts are durable."""
        self._view = view = self._seen() or self._view
        assert view is not None, "answered without ever having seen the quota"
        brief = QuotaBrief(view.state.value, view.used_ms, view.remaining_ms)
        messages: list[ServerMessage] = []
        for one in ready:
            if isinstance(one, OwedAck):
                messages.append(_ack(one, brief))
                continue
            messages.append(one.message)
            held = self._unannounced.pop(one.message.task_id, None)
            if held is not None and isinstance(one.message, Started):
                messages.append(held)
        self._write(messages)
        self._progress.set()

    # --- messages out -----------------------------------------------------------------------

    def _write(self, messages: Sequence[ServerMessage]) -> None:
        """Send messages; while a frame is being taken, together with the others it causes."""
        if self._is_over or not messages:
            return
        if self._outgoing is not None:
            self._outgoing.extend(messages)
        elif self._takes_arrays:
            key = _key_of(messages)
            for payload in write_frames(messages):
                self._transport.send(payload, key=key)
        else:
            for message in messages:
                self._transport.send(write_message(message), key=_key_of([message]))

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, None
        self._write(outgoing or ())

    def _push_stop(self, task_id: str, reason: DenialReason) -> None:
        view = self._seen()
        message = denial_message(reason, None if view is None else view.hold)
        stop = Stop(task_id=task_id, code=reason.value, message=message)
        if task_id in self._unannounced:  # `started` first: it waits to be durable
            self._unannounced[task_id] = stop
        else:
            self._write([stop])

    def _push_quota(self) -> None:
        """Push the quota as it is now; when the actor is busy loading, as soon as it is not."""
        view = self._seen()
        if view is not None:
            self._view = view
            self._write([quota_message(view)])
        elif not self._is_quota_coming and not self._is_over:
            self._is_quota_coming = True
            self._spawn(self._push_quota_later)

    async def _push_quota_later(self) -> None:
        try:
            self._view = view = await self._organizations.view(self._organization_id)
        except MeterdError:
            return  # whoever asks next learns of the trouble, and of the quota after it
        finally:
            self._is_quota_coming = False
        self._write([quota_message(view)])


_NEWS_FOR_AGENTS: Final = (
    commands.QuotaChanged,
    commands.TermsChanged,
    commands.ProfileChanged,
)

_ENDED: Final = "The task has ended."

_REFUSALS: Final[dict[type[Outcome], str]] = {
    commands.TaskUnknown: "task_unknown",
    commands.TaskConflict: "task_conflict",
    commands.TaskClosed: "task_closed",
}


def _row_end(messages: Sequence[ClientMessage | Mistake], start: int) -> int:
    """Return where the reports in a row that begin at `start` end; `start` if there are none."""
    for index in range(start, len(messages)):
        if type(messages[index]) is not Heartbeat:
            return index
    return len(messages)


def _command(message: TaskMessage) -> commands.Command:
    if isinstance(message, Heartbeat):
        return commands.Heartbeat(message.task_id, message.elapsed_ms)
    if isinstance(message, Finish):
        return commands.FinishTask(
            task_id=message.task_id,
            elapsed_ms=message.elapsed_ms,
            outcome=TaskOutcome(message.outcome),
        )
    return start_command(message.body(), message.task_id)


def _plain_error(code: str, ref: AnyRef) -> Error:
    return Error(code=code, message=KINDS[code].detail, ref=ref)


def _finished(task: Task, ref: AnyRef, *, clamped: bool = False) -> Finished:
    assert task.outcome is not None, task.task_id
    return Finished(
        task_id=task.task_id,
        metered_ms=task.metered_ms,
        outcome=task.outcome.value,
        clamped=True if clamped else UNSET,
        ref=ref,
    )


def _ack(one: OwedAck, brief: QuotaBrief) -> Ack:
    clamped = True if one.clamped else UNSET
    return Ack(one.task.task_id, one.elapsed_ms, one.task.metered_ms, brief, clamped, one.ref)


def _key_of(messages: Sequence[ServerMessage]) -> Hashable | None:
    """Return what a newer frame of the same kind replaces while it waits; None: nothing.

    Only what says nothing but the latest state may be replaced, and never what has a `ref`:
    somebody waits for that very answer.
    """
    if len(messages) == 1:
        match messages[0]:
            case Ack(task_id=task_id, ref=ref) if ref is UNSET:
                return ("ack", task_id)
            case Stop(task_id=task_id):
                return ("stop", task_id)
            case QuotaMessage(ref=ref) if ref is UNSET:
                return "quota"
        return None
    plain = [one.task_id for one in messages if isinstance(one, Ack) and one.ref is UNSET]
    return ("acks", *plain) if len(plain) == len(messages) <= MESSAGES_MAX else None
