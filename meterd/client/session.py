"""The agent stream without I/O: every decision of the client is made in these files.

Rule 1: nothing here awaits, reads a clock or draws a random number; `now_ms` is an argument (any
monotonic milliseconds), randomness is a `Chance`. A shell moves bytes and waits, nothing else.
Rule 2: what is not acknowledged is kept and said again; values are cumulative, so saying it
again changes nothing. A task costs a few integers, whatever the outage.
Rule 3: inputs change state and queue events; `frames()` alone produces output, so a slow
connection queues nothing.

The life of a task is told in `entry`, that of the connection in `link`.
"""

from __future__ import annotations

from collections.abc import Iterator

from meterd.client import wire
from meterd.client.answers import TRANSIENT_CODES, refusal_in
from meterd.client.chance import Chance
from meterd.client.entry import Entry, Known, Phase
from meterd.client.errors import (
    REFUSAL_CODES,
    KeyRejected,
    MeterdClientError,
    RequestRejected,
    TaskClosed,
    TaskConflict,
    TooManyTasks,
    Unreachable,
    rejection,
)
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
from meterd.client.link import Link, LinkState, backoff_ms
from meterd.client.policy import (
    MS_PER_MINUTE,
    UNDECLARED_MS_MAX,
    FailOpen,
    Outcome,
    Settings,
)
from meterd.client.quota import Quota, quota_in
from meterd.client.timers import Timers
from meterd.client.wire import Message, TaskRequest


FINISH_REJECTIONS_MAX = 8
"""Rejections in a row after which a finish is given up: the service will not take it."""


class Session:
    """All tasks of one client and their one connection.

    A shell calls, in any order: `start`, `finish` for the application; `connecting`, `connected`,
    `refused`, `lost`, `receive` for the connection; `advance` when `wake_at_ms` has come. After
    each it drains `events`, and sends `frames` whenever there are any.
    """

    def __init__(self, settings: Settings, chance: Chance) -> None:
        self._settings = settings
        self._chance = chance
        self._link = Link(settings, chance)
        self._by_id: dict[str, Entry] = {}
        self._by_serial: dict[int, Entry] = {}
        self._serials = 0
        self._interval_ms = settings.heartbeat_interval_ms
        self._events: list[Event] = []
        self._deadlines = Timers()
        self._reports = Timers()
        self._urgent = Timers()
        self.quota: Quota | None = None
        """The last whole quota object meterd sent, if any."""
        self.unread_count = 0
        """Parts of frames that could not be understood, and errors about no known task."""

    # What the application asks.

    def start(self, request: TaskRequest, now_ms: int) -> None:
        """Ask for a task; `Started` or `NotStarted` follows within `start_timeout_ms`.

        Errors: KeyRejected, TaskConflict (the id is in use here), TooManyTasks.
        """
        if self._link.rejection is not None:
            raise type(self._link.rejection)(self._link.rejection.message)
        if request.task_id in self._by_id:
            raise TaskConflict(f"This client already has a task {request.task_id!r}.")
        if len(self._by_id) >= self._settings.tasks_max:
            raise TooManyTasks(f"{len(self._by_id)} tasks are running or not yet settled.")
        self._serials += 1
        entry = Entry(
            request=request,
            serial=self._serials,
            decide_by_ms=now_ms + self._settings.start_timeout_ms,
            interval_ms=self._interval_ms,
        )
        self._by_id[request.task_id] = self._by_serial[entry.serial] = entry
        self._deadlines.set(entry.serial, entry.decide_by_ms)
        self._urgent.set(entry.serial, now_ms)

    def finish(self, task_id: str, outcome: Outcome, now_ms: int) -> None:
        """End a task; `Settled` or `GaveUp` follows, however long that takes.

        Also gives up a task that has not started; then nothing follows.
        """
        entry = self._by_id.get(task_id)
        if entry is None or entry.phase is Phase.FINISHING:
            return
        if entry.phase is Phase.STARTING:
            self._abandon(entry, now_ms)
            return
        entry.final_ms = entry.elapsed_ms(now_ms)
        entry.outcome = outcome
        entry.phase = Phase.FINISHING
        entry.failures = entry.rejections = 0
        self._deadlines.discard(entry.serial)
        if entry.is_over:
            self._give_up(entry, entry.stop or TaskClosed("meterd takes no more reports of it."))
        elif entry.known is not Known.ASKED:
            self._send_at(entry, now_ms)

    def elapsed_ms(self, task_id: str, now_ms: int) -> int:
        """Give the cumulative time of a task, 0 when it is not known (any longer)."""
        entry = self._by_id.get(task_id)
        return 0 if entry is None else entry.elapsed_ms(now_ms)

    @property
    def task_count(self) -> int:
        """Tasks starting, running or not yet settled."""
        return len(self._by_id)

    @property
    def unsettled(self) -> list[str]:
        """Ids of the tasks that have ended but are not acknowledged yet."""
        return [
            task_id
            for task_id, entry in self._by_id.items()
            if entry.phase is Phase.FINISHING and not entry.is_abandoned
        ]

    @property
    def rejection(self) -> KeyRejected | None:
        """Why the key cannot be used, once meterd has said so."""
        return self._link.rejection

    # What the connection reports.

    @property
    def is_open(self) -> bool:
        """Tell whether a connection is up."""
        return self._link.state is LinkState.OPEN

    def connect_at_ms(self) -> int | None:
        """Give when to open a connection; None while none is needed, or ever again."""
        if self._link.state is not LinkState.WAITING or not self._by_id:
            return None
        return self._link.retry_at_ms

    def connecting(self) -> None:
        """Note that the shell is opening a connection."""
        self._link.connecting()

    def connected(self, now_ms: int) -> None:
        """Note a finished handshake: everything unacknowledged is due at once."""
        self._link.connected()
        for entry in self._by_id.values():
            if entry.known is Known.ASKED:
                entry.known = Known.MAYBE
            if not entry.is_over:
                self._send_at(entry, now_ms)

    def refused(
        self, *, status: int | None, retry_after_ms: int = 0, reason: str = "", now_ms: int
    ) -> None:
        """Note a handshake that failed; 401 and 403 end all trying."""
        self._link.refused(status, retry_after_ms, reason, now_ms)
        self._after_rejection()

    def lost(self, *, code: int, reason: str = "", now_ms: int) -> None:
        """Note a connection that ended; 4401 and 4403 end all trying."""
        self._link.lost(code, reason, now_ms)
        self._after_rejection()

    def receive(self, frame: str | bytes, now_ms: int) -> None:
        """Take one frame; what it means comes out of `events` and `frames`."""
        messages, unreadable = wire.messages(frame)
        self.unread_count += unreadable
        if messages:
            self._link.heard()
        for message in messages:
            self._receive_one(message, now_ms)

    # Time and output.

    def wake_at_ms(self) -> int | None:
        """Give when `advance` has something to decide, or None."""
        return self._deadlines.next_at_ms()

    def advance(self, now_ms: int) -> None:
        """Apply the unreachable policy to the tasks whose patience has run out."""
        for serial in self._deadlines.pop_due(now_ms):
            entry = self._by_serial[serial]
            if entry.phase is Phase.STARTING:
                self._decide_unreachable(entry, now_ms)
            elif entry.phase is Phase.RUNNING and entry.stop is None:
                patience_at_ms = self._patience_at_ms(entry)
                if patience_at_ms > now_ms:
                    self._deadlines.set(serial, patience_at_ms)
                else:
                    self._stop(entry, self._unreachable(entry, "The task ran too long without it."))

    def send_at_ms(self) -> int | None:
        """Give when `frames` has something to send, or None (also while not connected)."""
        if not self.is_open:
            return None
        times = (self._urgent.next_at_ms(), self._reports.next_at_ms())
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    def frames(self, now_ms: int) -> list[str]:
        """Give the text frames to send now, in order; the shell must send or lose them all.

        Reports due within a tenth of the interval go along, so that many tasks share a frame.
        """
        if not self.is_open:
            return []
        due = self._urgent.pop_due(now_ms)
        due += self._reports.pop_due(now_ms + self._interval_ms // 10)
        return wire.frames(self._message(self._by_serial[serial], now_ms) for serial in due)

    def events(self) -> Iterator[Event]:
        """Drain what happened since the last call, in order."""
        while self._events:
            events, self._events = self._events, []
            yield from events

    # Sending one task's state.

    def _message(self, entry: Entry, now_ms: int) -> Message:
        entry.sent += 1
        ref = wire.reference(entry.serial, entry.sent)
        elapsed_ms = entry.elapsed_ms(now_ms)
        retry_at_ms = now_ms + self._settings.retry_ms
        if entry.known is Known.ASKED:  # The answer is overdue: from here on, ask by reporting.
            entry.known = Known.MAYBE
        if entry.phase is Phase.STARTING or entry.known is Known.NO:
            entry.starts += 1
            entry.start_number = entry.sent
            entry.known = Known.ASKED
            elapsed_ms = min(elapsed_ms, UNDECLARED_MS_MAX)
            entry.claimed_ms = max(entry.claimed_ms, elapsed_ms)
            self._send_at(entry, retry_at_ms)
            return entry.request.start(ref=ref, elapsed_ms=elapsed_ms)
        entry.claimed_ms = max(entry.claimed_ms, elapsed_ms)
        outcome = entry.outcome if entry.phase is Phase.FINISHING else None
        if outcome is not None:
            entry.finish_number = entry.sent
            self._send_at(entry, retry_at_ms)
        else:
            self._report_at(entry, now_ms + entry.interval_ms)
        return entry.request.report(ref=ref, elapsed_ms=elapsed_ms, outcome=outcome)

    def _send_at(self, entry: Entry, at_ms: int) -> None:
        self._reports.discard(entry.serial)
        self._urgent.set(entry.serial, at_ms)

    def _report_at(self, entry: Entry, at_ms: int) -> None:
        self._urgent.discard(entry.serial)
        self._reports.set(entry.serial, at_ms)

    def _retry(self, entry: Entry, now_ms: int) -> None:
        wait_ms = backoff_ms(self._settings, self._chance, entry.failures)
        entry.failures += 1
        self._send_at(entry, now_ms + wait_ms)

    # Understanding the answers.

    def _receive_one(self, message: Message, now_ms: int) -> None:
        kind = message["type"]
        if kind == "quota":
            self._remember_quota({"quota": message})
            return
        self._remember_quota(message)
        if kind == "error":
            self._receive_error(message, now_ms)
            return
        entry = self._by_id.get(wire.text(message, "task_id"))
        if entry is None:
            return
        match kind:
            case "started":
                self._receive_started(entry, message, now_ms)
            case "denied":
                self._receive_denied(entry, message)
            case "ack":
                self._receive_ack(entry, message, now_ms)
            case "finished":
                self._receive_finished(entry, message)
            case "stop":
                self._receive_stop(entry, message)
            case _:
                self.unread_count += 1

    def _receive_denied(self, entry: Entry, message: Message) -> None:
        # Of a task meterd has started it answers a stray copy of the start: while the store is
        # away, meterd may refuse what it has forgotten. The task goes on.
        if entry.known is not Known.YES:
            self._refuse(entry, self._refusal_in(message, entry))

    def _receive_stop(self, entry: Entry, message: Message) -> None:
        if entry.phase is Phase.RUNNING:
            self._stop(entry, self._refusal_in(message, entry))
        elif entry.phase is Phase.STARTING:
            # A limit reached at once overtakes `started`, which waits to be durable.
            entry.early_stop = refusal_in(message, quota=self.quota, stopped=True)

    def _receive_started(self, entry: Entry, message: Message, now_ms: int) -> None:
        if entry.is_over:
            return
        stored_ms = wire.whole(message, "elapsed_ms")
        if stored_ms > entry.claimed_ms:  # An earlier process ran part of this task.
            entry.base_ms = stored_ms
            entry.claimed_ms = stored_ms
        interval_ms = wire.whole(message, "heartbeat_interval_ms")
        if interval_ms:
            entry.interval_ms = self._interval_ms = interval_ms
        entry.acked_ms = max(entry.acked_ms, stored_ms)
        if entry.phase is Phase.STARTING:
            entry.phase = Phase.RUNNING
            entry.begun_at_ms = now_ms
            self._events.append(Started(entry.request.task_id, self.quota, is_local=False))
            if entry.early_stop is not None:
                self._stop(entry, entry.early_stop)
        self._known(entry, now_ms)
        if entry.phase is Phase.RUNNING:
            self._report_at(entry, now_ms + entry.interval_ms)
        elif not entry.is_abandoned and entry.finish_number < entry.start_number:
            self._send_at(entry, now_ms)

    def _receive_ack(self, entry: Entry, message: Message, now_ms: int) -> None:
        if entry.phase is Phase.STARTING or entry.is_over:
            return
        entry.acked_ms = max(entry.acked_ms, wire.whole(message, "elapsed_ms"))
        entry.metered_ms = max(entry.metered_ms, wire.whole(message, "metered_ms"))
        self._known(entry, now_ms)
        if entry.phase is Phase.RUNNING:
            entry.failures = entry.rejections = 0
            self._events.append(
                Acknowledged(
                    entry.request.task_id,
                    entry.acked_ms,
                    entry.metered_ms,
                    is_clamped=message.get("clamped") is True,
                )
            )

    def _receive_finished(self, entry: Entry, message: Message) -> None:
        metered_ms = wire.whole(message, "metered_ms")
        if entry.phase is Phase.FINISHING:
            self._drop(entry)
            is_clamped = message.get("clamped") is True
            self._events.append(Settled(entry.request.task_id, metered_ms, is_clamped))
        else:
            self._refuse(entry, TaskClosed("The task has ended already."))

    def _receive_error(self, message: Message, now_ms: int) -> None:
        named = wire.parse_reference(message)
        if named is not None:
            entry, number = self._by_serial.get(named[0]), named[1]
        else:
            entry = self._by_id.get(wire.text(message, "task_id"))
            number = 0 if entry is None else entry.sent
        if entry is None or entry.is_over or number < entry.start_number:
            self.unread_count += entry is None
            return
        code = wire.text(message, "code", absent="error")
        error = rejection(code, wire.text(message, "message", absent=code))
        if code == "task_unknown":
            self._receive_unknown(entry, number, now_ms)
        elif code == "task_conflict" and entry.begun_at_ms is not None and entry.starts > 1:
            # It is our own earlier start that meterd remembers, with less time on it.
            self._known(entry, now_ms)
            self._send_at(entry, now_ms)
        elif code in REFUSAL_CODES or isinstance(error, TaskClosed | TaskConflict | KeyRejected):
            self._refuse(entry, self._refusal_in(message, entry))
        elif number == entry.start_number:
            self._receive_start_error(entry, code, error, now_ms)
        elif entry.phase is Phase.FINISHING and number >= entry.finish_number > 0:
            entry.rejections += code not in TRANSIENT_CODES
            if entry.rejections > FINISH_REJECTIONS_MAX:
                self._give_up(entry, error)
            else:
                self._retry(entry, now_ms)
        # An error about a heartbeat needs nothing: the next one says it all again.

    def _receive_unknown(self, entry: Entry, number: int, now_ms: int) -> None:
        if number == entry.start_number or entry.phase is Phase.STARTING:
            return
        entry.rejections += 1
        if entry.is_abandoned:
            self._drop(entry)
        elif entry.phase is Phase.FINISHING and entry.rejections > FINISH_REJECTIONS_MAX:
            self._give_up(
                entry, RequestRejected("meterd keeps forgetting it.", code="task_unknown")
            )
        else:
            entry.known = Known.NO
            if entry.rejections == 1:
                self._send_at(entry, now_ms)
            else:
                self._retry(entry, now_ms)

    def _receive_start_error(
        self, entry: Entry, code: str, error: MeterdClientError, now_ms: int
    ) -> None:
        if code in TRANSIENT_CODES:
            entry.last_error_code = code
            entry.known = Known.MAYBE
            self._retry(entry, now_ms)
        else:
            self._refuse(entry, error)

    def _refusal_in(self, message: Message, entry: Entry) -> MeterdClientError:
        is_begun = entry.phase is not Phase.STARTING
        return refusal_in(message, quota=self.quota, stopped=is_begun)

    def _remember_quota(self, message: Message) -> None:
        quota = quota_in(message)
        if quota is not None:
            self.quota = quota

    # What follows from it.

    def _known(self, entry: Entry, now_ms: int) -> None:
        entry.known = Known.YES
        entry.heard_at_ms = now_ms
        if entry.is_local:
            entry.is_local = False
            self._events.append(Declared(entry.request.task_id))
        if entry.phase is Phase.RUNNING and entry.stop is None:
            self._deadlines.set(entry.serial, self._patience_at_ms(entry))

    def _refuse(self, entry: Entry, error: MeterdClientError) -> None:
        """End meterd's part in a task: before it starts, while it runs, or after it."""
        if entry.phase is Phase.STARTING:
            self._drop(entry)
            self._events.append(NotStarted(entry.request.task_id, error))
        elif entry.phase is Phase.FINISHING:
            self._give_up(entry, error)
        else:
            entry.is_over = True
            self._urgent.discard(entry.serial)
            self._reports.discard(entry.serial)
            self._stop(entry, error)

    def _stop(self, entry: Entry, error: MeterdClientError) -> None:
        if entry.stop is None:
            entry.stop = error
            self._deadlines.discard(entry.serial)
            self._events.append(StopAsked(entry.request.task_id, error))

    def _abandon(self, entry: Entry, now_ms: int) -> None:
        if entry.starts == 0:
            self._drop(entry)
            return
        entry.phase = Phase.FINISHING
        entry.is_abandoned = True
        entry.outcome = "cancelled"
        entry.known = Known.MAYBE
        self._deadlines.discard(entry.serial)
        self._send_at(entry, now_ms)

    def _give_up(self, entry: Entry, error: MeterdClientError) -> None:
        self._drop(entry)
        self._events.append(GaveUp(entry.request.task_id, error))

    def _drop(self, entry: Entry) -> None:
        del self._by_id[entry.request.task_id], self._by_serial[entry.serial]
        for timers in (self._deadlines, self._reports, self._urgent):
            timers.discard(entry.serial)

    def _after_rejection(self) -> None:
        error = self._link.rejection
        if error is not None:
            for entry in list(self._by_id.values()):
                self._refuse(entry, type(error)(error.message))

    def _decide_unreachable(self, entry: Entry, now_ms: int) -> None:
        if isinstance(self._settings.unreachable, FailOpen):
            entry.phase = Phase.RUNNING
            entry.is_local = True
            entry.begun_at_ms = entry.heard_at_ms = now_ms
            self._deadlines.set(entry.serial, self._patience_at_ms(entry))
            self._events.append(Started(entry.request.task_id, None, is_local=True))
            return
        error = self._unreachable(entry, "The task was not started.")
        self._abandon(entry, now_ms)
        self._events.append(NotStarted(entry.request.task_id, error))

    def _patience_at_ms(self, entry: Entry) -> int:
        policy = self._settings.unreachable
        if entry.is_local and isinstance(policy, FailOpen):
            return entry.heard_at_ms + policy.minutes * MS_PER_MINUTE
        return entry.heard_at_ms + policy.running_minutes * MS_PER_MINUTE

    def _unreachable(self, entry: Entry, consequence: str) -> Unreachable:
        reason = entry.last_error_code or self._link.last_reason or "no answer"
        return Unreachable(
            f"meterd did not answer in time ({reason}). {consequence}",
            code=entry.last_error_code or None,
        )
