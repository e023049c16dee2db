"""The organizations of this process: who they are, and the one way to talk to them.

A message to a ready organization is decided at once, in the caller's task and to completion:
there is one thread and no await in between, so an organization's messages are serialized without
a lock. Otherwise it waits in the organization's mailbox, in order, and newcomers wait behind it.

Rule 1: a message that raises changes nothing, is a dead letter and a strike; the organization is
        read again from the store plus its own unwritten facts. Too many strikes quarantine it.
Rule 2: no organization's trouble reaches another; the store being away is nobody's strike.
Rule 3: what is answered may be acknowledged only when it is durable (`durable`).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import attrs
import structlog
import trio

from meterd.actors.acknowledgements import Acknowledgements, Listener
from meterd.actors.activation import Activation
from meterd.actors.cell import Answer, Cell, Letter, Phase, Reply
from meterd.actors.ledger import Ledger
from meterd.actors.recall import Recall
from meterd.actors.supervisor import Crash, attempt, where_in
from meterd.actors.timers import Timers
from meterd.actors.trace import Trace
from meterd.core.commands import (
    Adjust,
    Audited,
    Beat,
    Beats,
    ChangeOrganization,
    Command,
    Decision,
    Denied,
    Finished,
    FinishTask,
    Heartbeat,
    Heartbeats,
    NeedsEvents,
    NeedsEventsNamed,
    NeedsPeriod,
    NeedsTask,
    RecordEvents,
    Report,
    StartTask,
    Tick,
    VoidEvent,
)
from meterd.core.decide import commit
from meterd.core.journal import StoredOrganization, restore
from meterd.core.organization import (
    OrganizationState,
    Profile,
    Rules,
    forget_ended,
    forget_events,
)
from meterd.core.period import Period
from meterd.core.plan import Terms, resolve
from meterd.core.quota import QuotaView, denial, is_due, next_wakeup_ms, view
from meterd.core.slowing import STEADY, Slowing
from meterd.core.supervision import StrikePolicy, is_out, recent
from meterd.core.task import Task
from meterd.core.units import SECOND_MS
from meterd.errors import (
    ActorCrashedError,
    OrganizationUnknownError,
    OverloadedError,
    QuarantinedError,
    ShuttingDownError,
    StoreUnavailableError,
)
from meterd.ports import Clock, DeadLetter, Ids, LedgerStore


log = structlog.get_logger(__name__)

CATALOGUE_CHANGED = "plan catalogue changed"

DEAD_LETTERS_KEPT = 256


@attrs.frozen(kw_only=True)
class ActorPolicy:
    """Bounds and time-outs of organizations' actors."""

    mailbox_max: int = 1_000
    ask_timeout_ms: int = 5_000
    """How long a message may wait for an organization to be ready."""
    ack_timeout_ms: int = 5_000
    """How long a caller waits for its facts to be durable."""
    passivate_after_ms: int = 600_000
    strikes: StrikePolicy = attrs.Factory(StrikePolicy)


@attrs.frozen(kw_only=True)
class OrganizationSnapshot:
    """An organization as its actor knows it, for operators."""

    organization_id: str
    profile: Profile
    terms: Terms
    period: Period
    quota: QuotaView
    seq: int
    running_tasks: int


Decide = Callable[[OrganizationState, Command, int], Decision]


class Organizations:
    """Every organization in memory, by id."""

    def __init__(  # noqa: PLR0913  # everything the actors need of the world, by name
        self,
        store: LedgerStore,
        ledger: Ledger,
        *,
        rules: Rules,
        clock: Clock,
        ids: Ids,
        jitter: Iterator[float],
        policy: ActorPolicy,
        decide: Decide,
        slowing: Callable[[], Slowing] = lambda: STEADY,
    ) -> None:
        """Own the organizations; `slowing` tells how the clock has run, `decide` is the core's."""
        self.rules = rules
        self.clock = clock
        self.ledger = ledger
        self.timers = Timers(clock, self._wake)
        self.activation = Activation(
            store,
            jitter=jitter,
            on_loaded=self._loaded,
            on_waiting=self._back_off,
            on_unreadable=self._unreadable,
        )
        self.dead_letters: deque[DeadLetter] = deque(maxlen=DEAD_LETTERS_KEPT)
        self._store = store
        self._recall = Recall(store, timeout_ms=policy.ask_timeout_ms)
        self._ids = ids
        self._policy = policy
        self._decide = decide
        self._slowing = slowing
        self._cells: dict[str, Cell] = {}
        self._serving_since_ms = clock.now_ms()
        self._is_stopping = False
        self.on_change: Callable[[str], None] | None = None
        """Hears, synchronously, of every organization that has changed."""
        self.crashes = 0
        self.passivated = 0
        self.decided: dict[tuple[type[Command], object], int] = {}
        """Decisions by command, and by the kind of outcome or the reason to refuse or stop."""
        self.beats = 0
        """Heartbeats that may go on; they are not in `decided`."""
        self.unbilled_ms = 0
        """Time reported past hard limits since the start; nobody is billed for it."""
        self.acknowledgements = Acknowledgements(
            ledger, ack_timeout_ms=policy.ack_timeout_ms, on_rejected=self._rejected
        )

    # --- asking -----------------------------------------------------------------------------

    def ask_nowait(self, organization_id: str, command: Command) -> Answer | None:
        """Return the answer of a ready organization, or None when the message would wait.

        Errors: OverloadedError when the journal is full, ShuttingDownError, ActorCrashedError.
        """
        cell = self._cells.get(organization_id)
        if cell is None or cell.phase is not Phase.READY or cell.mailbox is not None:
            return None
        self._admit()
        return self._handle(cell, command)

    def beat_nowait(self, organization_id: str, reports: Sequence[Report]) -> Answer | None:
        """Take the first reports, as many as are plain, as one fact; the outcome is `Beats`.

        None when none is taken: ask for the first alone, and if one of them makes the organization
        crash, only that one will. Errors: as `ask_nowait`.
        """
        cell = self._cells.get(organization_id)
        if cell is None or cell.phase is not Phase.READY or cell.mailbox is not None:
            return None
        self._admit()
        state, now_ms = cell.state, self.clock.now_ms()
        assert state is not None, organization_id
        if is_due(state, now_ms):
            return None
        command = Heartbeats(reports)
        decision = attempt(self._decide, state, command, now_ms)
        if isinstance(decision, Crash) or decision.facts is None:
            return None
        return self._handle(cell, command, decision)

    async def ask(self, organization_id: str, command: Command) -> Answer:
        """Return the organization's answer, activating it and recalling what it needs.

        Errors: OrganizationUnknownError, QuarantinedError, OverloadedError, ShuttingDownError,
        ActorCrashedError, StoreUnavailableError when it could not be read in time.
        """
        while True:
            answer: Answer | None = self.ask_nowait(organization_id, command)
            if answer is None:
                answer = await self._ask_by_mail(organization_id, command)
            if isinstance(answer.outcome, NeedsTask):
                answer = await self._ask_with_task(organization_id, command, answer)
            elif isinstance(answer.outcome, NeedsPeriod):
                answer = await self._ask_with_period(organization_id, command, answer.outcome)
            elif isinstance(answer.outcome, NeedsEvents | NeedsEventsNamed):
                answer = await self._ask_with_events(organization_id, command, answer.outcome)
            if answer is not None:
                return answer

    def view_nowait(self, organization_id: str, agent_id: str | None = None) -> QuotaView | None:
        """Return the quota object of a ready organization, or None when it must be activated."""
        cell = self._cells.get(organization_id)
        if cell is None or cell.phase is not Phase.READY or cell.mailbox is not None:
            return None
        assert cell.state is not None, organization_id
        now_ms = self.clock.now_ms()
        if is_due(cell.state, now_ms) and not self._is_stopping:
            self._handle(cell, Tick())
            return self.view_nowait(organization_id, agent_id)
        cell.touched_ms = now_ms
        return view(cell.state, now_ms, agent_id)

    async def view(self, organization_id: str, agent_id: str | None = None) -> QuotaView:
        """Return the quota object, activating the organization if need be; errors as `ask`."""
        while (seen := self.view_nowait(organization_id, agent_id)) is None:
            await self._ask_by_mail(organization_id, Tick())
        return seen

    async def snapshot(self, organization_id: str) -> OrganizationSnapshot:
        """Return profile, terms and quota as the actor knows them; errors as `ask`."""
        quota = await self.view(organization_id)
        state = self._cells[organization_id].state
        assert state is not None, organization_id
        return OrganizationSnapshot(
            organization_id=organization_id,
            profile=state.profile,
            terms=state.terms,
            period=state.period,
            quota=quota,
            seq=state.seq,
            running_tasks=len(state.running),
        )

    async def _ask_with_task(
        self, organization_id: str, command: Command, answer: Answer
    ) -> Answer | None:
        """Ask again with what the store says of the task; None: the organization was reloaded."""
        assert isinstance(command, StartTask | Heartbeat | FinishTask), command
        assert isinstance(answer.outcome, NeedsTask), answer
        state = self._state(organization_id)
        try:
            recalled = await self._recall.task(organization_id, answer.outcome.task_id)
        except StoreUnavailableError:
            refused = self._refusal_nowait(organization_id, command)
            if refused is None:
                raise
            return Answer(refused, answer.seq)
        if state is None or self._state(organization_id) is not state:
            return None
        return self.ask_nowait(organization_id, attrs.evolve(command, recalled=recalled))

    async def _ask_with_period(
        self, organization_id: str, command: Command, outcome: NeedsPeriod
    ) -> Answer | None:
        """Change a period that only the store has; None: the organization was reloaded."""
        async with self._recall.turn(organization_id):
            await self.durable(organization_id, self.ledger.last_seq(organization_id))
            state = self._state(organization_id)
            recalled = await self._recall.period(organization_id, outcome.label)
            if state is None or self._state(organization_id) is not state:
                return None
            if isinstance(command, VoidEvent):
                command = attrs.evolve(command, recalled_period=recalled)
            else:
                assert isinstance(command, Adjust), command
                command = attrs.evolve(command, recalled=recalled)
            return self.ask_nowait(organization_id, command)

    async def _ask_with_events(
        self, organization_id: str, command: Command, outcome: NeedsEvents | NeedsEventsNamed
    ) -> Answer | None:
        """Ask again with what the store says of events; None: the organization was reloaded.

        Events that become durable meanwhile stay in memory: this look-up may not have seen them.
        """
        assert isinstance(command, RecordEvents | VoidEvent), command
        state = self._state(organization_id)
        begun_seq = 0 if state is None else min(state.seq, self.durable_seq(organization_id))
        with self._recall.looking(organization_id, begun_seq):
            if isinstance(outcome, NeedsEvents):
                found = await self._recall.events(organization_id, outcome.keys)
            else:
                found = await self._recall.events_named(
                    organization_id, outcome.event_id, outcome.source
                )
            if state is None or self._state(organization_id) is not state:
                return None
            command = attrs.evolve(command, recalled=found)
            answer: Answer | None = self.ask_nowait(organization_id, command)
            if answer is not None and isinstance(answer.outcome, NeedsPeriod):
                answer = await self._ask_with_period(organization_id, command, answer.outcome)
        self._forget_events(organization_id)
        return answer

    def _forget_events(self, organization_id: str) -> None:
        """Let go of events that every look-up, under way or to come, finds in the store."""
        state = self._state(organization_id)
        if state is not None and state.recent_events:
            durable_seq = self.durable_seq(organization_id)
            forget_events(state, durable_seq=self._recall.seen_seq(organization_id, durable_seq))

    def _state(self, organization_id: str) -> OrganizationState | None:
        """Return the live state, by whose identity a reload shows."""
        cell = self._cells.get(organization_id)
        return None if cell is None else cell.state

    def _refusal_nowait(self, organization_id: str, command: Command) -> Denied | None:
        """Enforcement does not wait for the store: a start that would be refused is refused."""
        cell = self._cells.get(organization_id)
        if not isinstance(command, StartTask) or cell is None or cell.state is None:
            return None
        reason = denial(cell.state, command.info.agent_id, self.clock.now_ms())
        return None if reason is None else Denied(reason=reason)

    async def _ask_by_mail(self, organization_id: str, command: Command) -> Answer:
        self._admit()
        cell = self._cells.get(organization_id)
        now_ms = self.clock.now_ms()
        if cell is None:
            cell = self._cells[organization_id] = Cell(organization_id, touched_ms=now_ms)
        if cell.phase is Phase.QUARANTINED:
            if now_ms < cell.quarantined_until_ms:
                retry_after_ms = cell.quarantined_until_ms - now_ms
                raise QuarantinedError(
                    f"organization/{organization_id}", retry_after_ms=retry_after_ms
                )
            cell.phase, cell.is_on_probation = Phase.LOADING, True
        if cell.mailbox is None:
            cell.mailbox = deque()
        if len(cell.mailbox) >= self._policy.mailbox_max:
            cell.sweep_mailbox()
        if len(cell.mailbox) >= self._policy.mailbox_max:
            raise OverloadedError("the organization's mailbox")
        letter = Letter(command, Reply())
        cell.mailbox.append(letter)
        cell.mailbox_peak = max(cell.mailbox_peak, len(cell.mailbox))
        if cell.phase is Phase.LOADING:
            self.activation.request(organization_id)
        try:
            with trio.fail_after(self._policy.ask_timeout_ms / SECOND_MS):
                return await letter.reply.wait()
        except trio.TooSlowError as error:
            raise StoreUnavailableError("load the organization", "no answer in time") from error

    def _admit(self) -> None:
        if self._is_stopping:
            raise ShuttingDownError("meterd is stopping")
        if self.ledger.is_full:
            raise OverloadedError("the journal of unwritten facts")

    # --- deciding ---------------------------------------------------------------------------

    def _handle(self, cell: Cell, command: Command, decision: Decision | None = None) -> Answer:
        """Decide a message to completion; a crash costs the cell a strike, not the process.

        A decision that has been made on the present state need not be made again.
        """
        result = attempt(self._decide_now, cell, command, decision)
        if isinstance(result, Crash):
            self._strike(cell, command, result.error)
            message = f"organization/{cell.organization_id} failed on {type(command).__name__}"
            raise ActorCrashedError(message) from result.error
        return result

    def _decide_now(self, cell: Cell, command: Command, decision: Decision | None) -> Answer:
        state = cell.state
        assert state is not None, cell.organization_id
        now_ms = self.clock.now_ms()
        cell.touched_ms = now_ms
        cell.processed += 1
        if decision is None:
            state.slowing = self._slowing()
            if is_due(state, now_ms):
                self._commit(cell, state, self._decide(state, Tick(), now_ms))
            decision = self._decide(state, command, now_ms)
        self._count(state, command, decision)
        self._commit(cell, state, decision)
        wakeup_ms = next_wakeup_ms(state, now_ms)
        if cell.timer_ms is None or wakeup_ms < cell.timer_ms:
            cell.timer_ms = wakeup_ms
            self.timers.set(cell.organization_id, wakeup_ms)
        if cell.trace is not None:
            cell.trace.note(now_ms, command, decision.outcome)
        return Answer(decision.outcome, state.seq)

    def _count(self, state: OrganizationState, command: Command, decision: Decision) -> None:
        """Count a decision that is not committed yet."""
        outcome = decision.outcome
        what: object = type(outcome)
        if isinstance(outcome, Beat):
            what = outcome.stop
            if what is None:
                self.beats += 1  # a heartbeat pays for this line only: about 0.1 µs
                return
            self._count_unbilled(state, outcome.task)
        elif isinstance(outcome, Beats):
            self.beats += len(outcome.tasks)
            return
        elif isinstance(outcome, Denied):
            what = outcome.reason
        elif isinstance(outcome, Finished):
            self._count_unbilled(state, outcome.task)
        key = (type(command), what)
        self.decided[key] = self.decided.get(key, 0) + 1

    def _count_unbilled(self, state: OrganizationState, task: Task) -> None:
        known = state.task(task.task_id)
        if known is not None:
            self.unbilled_ms += task.unbilled_ms - known.unbilled_ms

    def _commit(self, cell: Cell, state: OrganizationState, decision: Decision) -> None:
        """Make a decision part of the live state, then of the journal, then tell listeners."""
        commit(state, decision)
        if decision.facts is not None:
            self.ledger.accept(cell.organization_id, decision.facts)
            if self.on_change is not None:
                self.on_change(cell.organization_id)
        if decision.notices:
            self.acknowledgements.announce(cell.organization_id, decision.notices)

    def _wake(self, organization_id: str, at_ms: int) -> None:
        """Let time pass for an organization whose timer has come."""
        cell = self._cells.get(organization_id)
        if cell is None or cell.timer_ms != at_ms:
            return
        cell.timer_ms = None
        if cell.phase is Phase.READY and cell.mailbox is None and not self._is_stopping:
            attempt(self._handle, cell, Tick())  # a crash has struck the cell already

    # --- supervision ------------------------------------------------------------------------

    def _strike(self, cell: Cell, command: Command, error: Exception) -> None:
        """Forget the live state: what is stored plus the journal is the truth."""
        now_ms = self.clock.now_ms()
        policy = self._policy.strikes
        self.crashes += 1
        cell.last_error = f"{type(error).__name__}: {error} (on {type(command).__name__})"
        strikes = recent(cell.strikes_ms, now_ms=now_ms, window_ms=policy.window_ms)
        cell.strikes_ms = (*strikes, now_ms)
        address = f"organization/{cell.organization_id}"
        log.error("actor_crashed", address=address, strikes=len(cell.strikes_ms), exc_info=error)
        letter = DeadLetter(
            id=self._ids.new("dead"),
            at_ms=now_ms,
            address=address,
            kind="message",
            error=cell.last_error,
            detail_json=json.dumps({"command": type(command).__name__, "where": where_in(error)}),
        )
        self.dead_letters.append(letter)
        self.ledger.bury(letter)
        self._reload(cell)
        if cell.is_on_probation or is_out(policy, cell.strikes_ms, now_ms):
            self._quarantine(cell, now_ms)

    def _reload(self, cell: Cell) -> None:
        """Read the organization again: the store plus the journal give the state exactly."""
        cell.state, cell.timer_ms, cell.phase = None, None, Phase.LOADING
        cell.restarts += 1
        self.activation.request(cell.organization_id)

    def _quarantine(self, cell: Cell, now_ms: int) -> None:
        policy = self._policy.strikes
        cell.phase = Phase.QUARANTINED
        cell.quarantined_until_ms = now_ms + policy.quarantine_ms
        address = f"organization/{cell.organization_id}"
        log.error("actor_quarantined", address=address, last_error=cell.last_error)
        for letter in cell.take_mailbox():
            letter.reply.fail(QuarantinedError(address, retry_after_ms=policy.quarantine_ms))

    def release(self, organization_id: str) -> bool:
        """Forgive a quarantined organization at once; False when it is not in memory."""
        cell = self._cells.get(organization_id)
        if cell is None:
            return False
        if cell.phase is Phase.QUARANTINED:
            cell.strikes_ms, cell.is_on_probation = (), False
            self._reload(cell)
        return True

    def restart(self, organization_id: str) -> bool:
        """Read a ready organization again, without a strike; False when it is not in memory."""
        cell = self._cells.get(organization_id)
        if cell is not None and cell.phase is Phase.READY:
            self._reload(cell)
        return cell is not None

    def passivate(self, organization_id: str) -> bool:
        """Let an idle organization leave memory now; False when it must stay.

        It stays while it is not ready, tasks run, messages wait or facts are not durable.
        """
        cell = self._cells.get(organization_id)
        if cell is None or not cell.is_idle or self.ledger.waiting(organization_id):
            return False
        del self._cells[organization_id]
        self.ledger.forget(organization_id)
        self.passivated += 1
        return True

    def trace(self, organization_id: str, *, is_on: bool) -> bool:
        """Write down an organization's messages, or stop; False when it is not in memory."""
        cell = self._cells.get(organization_id)
        if cell is None:
            return False
        if not is_on:
            cell.trace = None
        elif cell.trace is None:
            cell.trace = Trace()
        return True

    # --- activation and passivation -----------------------------------------------------------

    async def activate_at_work(self) -> None:
        """Load every organization with running tasks: their timers must run from the start."""
        self._serving_since_ms = self.clock.now_ms()
        for organization_id in await self._store.organizations_at_work():
            if organization_id not in self._cells:
                self._cells[organization_id] = Cell(
                    organization_id, touched_ms=self._serving_since_ms
                )
                self.activation.request(organization_id)
        await self.activation.settled()

    def _loaded(self, organization_id: str, stored: StoredOrganization | None) -> None:
        cell = self._cells.get(organization_id)
        if cell is None or cell.phase not in (Phase.LOADING, Phase.BACKING_OFF):
            return
        if stored is None:
            del self._cells[organization_id]
            for letter in cell.take_mailbox():
                letter.reply.fail(OrganizationUnknownError(organization_id))
            return
        if stored.seq < self.ledger.settled_seq(organization_id):
            # Read before a flush that has committed meanwhile: its facts are in neither place.
            self.activation.request(organization_id)
            return
        restored = attempt(self._restore, stored)
        if isinstance(restored, Crash):
            self._strike(cell, Tick(), restored.error)
            return
        cell.state, cell.phase, cell.load_tries = restored, Phase.READY, 0
        cell.loaded_ms = self.clock.now_ms()
        self._work_off(cell)

    def _unreadable(self, organization_id: str, error: Exception) -> None:
        """Count what is stored and makes no sense as a strike: only a person can mend it."""
        cell = self._cells.get(organization_id)
        if cell is not None and cell.phase in (Phase.LOADING, Phase.BACKING_OFF):
            self._strike(cell, Tick(), error)

    def _restore(self, stored: StoredOrganization) -> OrganizationState:
        organization_id = stored.organization_id
        pending = self.ledger.pending(organization_id)
        if pending and pending[0].seq > stored.seq + 1:  # after facts that the store rejected
            stored = attrs.evolve(stored, seq=pending[0].seq - 1)
        return restore(
            stored,
            pending,
            rules=self.rules,
            serving_since_ms=self._serving_since_ms,
            now_ms=self.clock.now_ms(),
            last_seq=self.ledger.last_seq(organization_id),
        )

    def _work_off(self, cell: Cell) -> None:
        """Decide what waited, oldest first; newcomers cannot overtake: there is no await here."""
        state = cell.state
        assert state is not None, cell.organization_id
        terms = state.terms
        limits = resolve(
            self.rules.catalogue,
            terms.plan,
            terms.contract,
            trialing=terms.trialing,
            overage_cap_usd=terms.limits.overage_cap_usd,
        )
        first: Command = Tick()
        if limits != terms.limits:
            audited = Audited(actor="meterd", reason=CATALOGUE_CHANGED)
            first = ChangeOrganization(audited=audited)
        attempt(self._handle, cell, first)
        while cell.phase is Phase.READY and cell.mailbox:
            letter = cell.mailbox.popleft()
            if letter.reply.is_abandoned:
                continue
            result = attempt(self._handle, cell, letter.command)
            if isinstance(result, Crash):
                letter.reply.fail(result.error)
            else:
                letter.reply.set(result)
                cell.is_on_probation = False  # the probe went well
        if cell.phase is Phase.READY:
            cell.mailbox = None

    def _back_off(self, organization_ids: Sequence[str], error: Exception) -> None:
        for organization_id in organization_ids:
            cell = self._cells.get(organization_id)
            if cell is not None and cell.phase in (Phase.LOADING, Phase.BACKING_OFF):
                cell.phase = Phase.BACKING_OFF
                cell.load_tries += 1
                cell.last_error = str(error)

    async def run_janitor(self) -> None:
        """Let idle organizations leave memory, and ended tasks with them, for ever."""
        while True:
            await trio.sleep(self._policy.passivate_after_ms / 4 / SECOND_MS)
            await self.tidy()

    async def tidy(self) -> None:
        """Drop what nobody has used for a while; pauses between cells, never within one."""
        for count, cell in enumerate(list(self._cells.values())):
            if count % 1_000 == 0:
                await trio.lowlevel.checkpoint()
            now_ms = self.clock.now_ms()
            if cell.phase is not Phase.READY or cell.state is None:
                continue
            durable_seq = self.ledger.durable_seq(cell.organization_id)
            forget_ended(cell.state, now_ms=now_ms, durable_seq=durable_seq)
            self._forget_events(cell.organization_id)
            is_old = cell.touched_ms + self._policy.passivate_after_ms <= now_ms
            if is_old and cell.is_idle and cell.state.seq <= durable_seq:
                del self._cells[cell.organization_id]
                self.ledger.forget(cell.organization_id)
                self.passivated += 1

    def cells(self) -> Iterator[Cell]:
        """Yield every organization in memory, for inspection only."""
        yield from self._cells.values()

    def cell(self, organization_id: str) -> Cell | None:
        """Return one organization's cell, for inspection only."""
        return self._cells.get(organization_id)

    # --- durability -------------------------------------------------------------------------

    async def durable(self, organization_id: str, seq: int) -> None:
        """Return when everything up to `seq` is committed; see `Acknowledgements.durable`."""
        await self.acknowledgements.durable(organization_id, seq)

    def is_durable(self, organization_id: str, seq: int) -> bool:
        """Tell whether `seq` may be acknowledged now; see `Acknowledgements.is_durable`."""
        return self.acknowledgements.is_durable(organization_id, seq)

    def durable_seq(self, organization_id: str) -> int:
        """Return the highest fact that is committed: no fact up to it is waiting."""
        return self.ledger.durable_seq(organization_id)

    def listen(self, organization_id: str, listener: Listener) -> Callable[[], None]:
        """Tell a listener what happens to an organization; call the result to stop."""
        return self.acknowledgements.listen(organization_id, listener)

    def _rejected(self, organization_id: str, error: Exception) -> None:
        """Start an organization again from what the store has: its facts were refused."""
        cell = self._cells.get(organization_id)
        if cell is not None and cell.phase is Phase.READY:
            self._strike(cell, Tick(), error)

    # --- stopping ---------------------------------------------------------------------------

    def stop(self) -> None:
        """Refuse new messages; what is accepted is still flushed."""
        self._is_stopping = True
        for cell in self._cells.values():
            for letter in cell.take_mailbox():
                letter.reply.fail(ShuttingDownError("meterd is stopping"))
