"""The organizations in memory: decided on, struck, read again, and let go.

Rule 1: a message that raises changes nothing, is a dead letter and a strike; the organization is
        read again from the store plus its own unwritten facts. Too many strikes quarantine it.
Rule 2: no organization's trouble reaches another; the store being away is nobody's strike.
Rule 3: what waits in a mailbox is decided in order, and newcomers wait behind it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import attrs
import structlog
import trio

from meterd.actors.acknowledgements import Acknowledgements
from meterd.actors.activation import Activation
from meterd.actors.cell import Answer, Cell, Letter, Phase, Reply
from meterd.actors.ledger import Ledger
from meterd.actors.recall import Recall
from meterd.actors.supervisor import Crash, attempt, where_in
from meterd.actors.tally import Tally
from meterd.actors.timers import Timers
from meterd.actors.trace import Trace
from meterd.core.commands import (
    Audited,
    ChangeOrganization,
    Command,
    Decision,
    Heartbeats,
    Report,
    Tick,
)
from meterd.core.decide import commit
from meterd.core.journal import StoredOrganization, restore
from meterd.core.organization import OrganizationState, Rules, forget_ended
from meterd.core.plan import resolve
from meterd.core.quota import is_due, next_wakeup_ms
from meterd.core.slowing import STEADY, Slowing
from meterd.core.supervision import StrikePolicy, is_out, recent
from meterd.core.units import SECOND_MS
from meterd.errors import (
    ActorCrashedError,
    OrganizationUnknownError,
    OverloadedError,
    QuarantinedError,
    ShuttingDownError,
)
from meterd.ports.clock import Clock
from meterd.ports.ids import Ids
from meterd.ports.ledger import LedgerStore
from meterd.ports.trail import DeadLetter


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


Decide = Callable[[OrganizationState, Command, int], Decision]


class Cells:
    """Every organization in memory, by id; iterating yields them all, for inspection only."""

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
        """Hold nobody yet; `slowing` tells how the clock has run, `decide` is the core's."""
        self.timers = Timers(clock, self._wake)
        self.activation = Activation(
            store,
            jitter=jitter,
            on_loaded=self._loaded,
            on_waiting=self._back_off,
            on_unreadable=self._unreadable,
        )
        self.acknowledgements = Acknowledgements(
            ledger, ack_timeout_ms=policy.ack_timeout_ms, on_rejected=self._rejected
        )
        self.dead_letters: deque[DeadLetter] = deque(maxlen=DEAD_LETTERS_KEPT)
        self.on_change: Callable[[str], None] | None = None
        """Hears, synchronously, of every organization that has changed."""
        self.tally = Tally()
        self.crashes = 0
        self.passivated = 0
        self.is_stopping = False
        self._store = store
        self.ledger = ledger
        self.recall = Recall(store, timeout_ms=policy.ask_timeout_ms)
        self.rules = rules
        self.clock = clock
        self._ids = ids
        self.policy = policy
        self._decide = decide
        self._slowing = slowing
        self._cells: dict[str, Cell] = {}
        self._serving_since_ms = clock.now_ms()

    def get(self, organization_id: str) -> Cell | None:
        """Return one organization's cell, in whatever phase."""
        return self._cells.get(organization_id)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._cells.values())

    def __len__(self) -> int:
        return len(self._cells)

    def ready(self, organization_id: str) -> Cell | None:
        """Return a cell that can decide a message now, or None when the message must wait."""
        cell = self._cells.get(organization_id)
        if cell is None or cell.phase is not Phase.READY or cell.mailbox is not None:
            return None
        return cell

    def post(self, organization_id: str, command: Command) -> Reply[Answer]:
        """Put a message into an organization's mailbox, and see that it becomes ready.

        Errors: QuarantinedError; OverloadedError when the mailbox is full.
        """
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
        if len(cell.mailbox) >= self.policy.mailbox_max:
            cell.sweep_mailbox()
        if len(cell.mailbox) >= self.policy.mailbox_max:
            raise OverloadedError("the organization's mailbox")
        letter = Letter(command, Reply())
        cell.mailbox.append(letter)
        cell.mailbox_peak = max(cell.mailbox_peak, len(cell.mailbox))
        if cell.phase is Phase.LOADING:
            self.activation.request(organization_id)
        return letter.reply

    # --- deciding ---------------------------------------------------------------------------

    def handle(self, cell: Cell, command: Command, decision: Decision | None = None) -> Answer:
        """Decide a message to completion; a crash costs the cell a strike, not the process.

        A decision that has been made on the present state need not be made again.
        """
        result = attempt(self._decide_now, cell, command, decision)
        if isinstance(result, Crash):
            self._crashed(cell, command, result.error)
            message = f"organization/{cell.organization_id} failed on {type(command).__name__}"
            raise ActorCrashedError(message) from result.error
        return result

    def handle_together(self, cell: Cell, reports: Sequence[Report]) -> Answer | None:
        """Decide the first reports, as many as are plain, as one fact; None when that is none.

        A row of reports in which one crashes is none of them: asked one by one, only that one will.
        """
        state, now_ms = cell.state, self.clock.now_ms()
        assert state is not None, cell.organization_id
        if is_due(state, now_ms):
            return None
        command = Heartbeats(reports)
        decision = attempt(self._decide, state, command, now_ms)
        if isinstance(decision, Crash) or decision.facts is None:
            return None
        return self.handle(cell, command, decision)

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
        self.tally.count(state, command, decision)
        self._commit(cell, state, decision)
        wakeup_ms = next_wakeup_ms(state, now_ms)
        if cell.timer_ms is None or wakeup_ms < cell.timer_ms:
            cell.timer_ms = wakeup_ms
            self.timers.set(cell.organization_id, wakeup_ms)
        if cell.trace is not None:
            cell.trace.note(now_ms, command, decision.outcome)
        return Answer(decision.outcome, state.seq)

    def _commit(self, cell: Cell, state: OrganizationState, decision: Decision) -> None:
        """Make a decision part of the live state, then of the journal, then tell listeners."""
        commit(state, decision)
        if decision.facts is not None:
            self.ledger.accept(cell.organization_id, decision.facts)
        has_changed = decision.facts is not None or bool(decision.notices)
        if has_changed and self.on_change is not None:
            self.on_change(cell.organization_id)
        if decision.notices:
            self.acknowledgements.announce(cell.organization_id, decision.notices)

    def _wake(self, organization_id: str, at_ms: int) -> None:
        """Let time pass for an organization whose timer has come."""
        cell = self._cells.get(organization_id)
        if cell is None or cell.timer_ms != at_ms:
            return
        cell.timer_ms = None
        if cell.phase is Phase.READY and cell.mailbox is None and not self.is_stopping:
            attempt(self.handle, cell, Tick())  # a crash has struck the cell already

    # --- supervision ------------------------------------------------------------------------

    def _crashed(self, cell: Cell, command: Command, error: Exception) -> None:
        """Keep the message that raised for a person to read, and strike its organization."""
        cell.last_error = f"{type(error).__name__}: {error} (on {type(command).__name__})"
        letter = DeadLetter(
            id=self._ids.new("dead"),
            at_ms=self.clock.now_ms(),
            address=f"organization/{cell.organization_id}",
            kind="message",
            error=cell.last_error,
            detail_json=json.dumps({"command": type(command).__name__, "where": where_in(error)}),
        )
        self.dead_letters.append(letter)
        self.ledger.bury(letter)
        self._strike(cell, error)

    def _strike(self, cell: Cell, error: Exception) -> None:
        """Forget the live state: what is stored plus the journal is the truth."""
        now_ms = self.clock.now_ms()
        policy = self.policy.strikes
        self.crashes += 1
        strikes = recent(cell.strikes_ms, now_ms=now_ms, window_ms=policy.window_ms)
        cell.strikes_ms = (*strikes, now_ms)
        address = f"organization/{cell.organization_id}"
        log.error("actor_crashed", address=address, strikes=len(cell.strikes_ms), exc_info=error)
        self._reload(cell)
        if cell.is_on_probation or is_out(policy, cell.strikes_ms, now_ms):
            self._quarantine(cell, now_ms)

    def _reload(self, cell: Cell) -> None:
        """Read the organization again: the store plus the journal give the state exactly."""
        cell.state, cell.timer_ms, cell.phase = None, None, Phase.LOADING
        cell.restarts += 1
        self.activation.request(cell.organization_id)

    def _quarantine(self, cell: Cell, now_ms: int) -> None:
        policy = self.policy.strikes
        cell.phase = Phase.QUARANTINED
        cell.quarantined_until_ms = now_ms + policy.quarantine_ms
        address = f"organization/{cell.organization_id}"
        log.error("actor_quarantined", address=address, last_error=cell.last_error)
        for letter in cell.take_mailbox():
            letter.reply.fail(QuarantinedError(address, retry_after_ms=policy.quarantine_ms))

    def _rejected(self, organization_id: str, error: Exception) -> None:
        """Start an organization again from what the store has: its facts are dead letters."""
        cell = self._cells.get(organization_id)
        if cell is not None and cell.phase is Phase.READY:
            cell.last_error = str(error)
            self._strike(cell, error)

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
            self._crashed(cell, Tick(), restored.error)
            return
        cell.state, cell.phase, cell.load_tries = restored, Phase.READY, 0
        cell.loaded_ms = self.clock.now_ms()
        self._work_off(cell)

    def _unreadable(self, organization_id: str, error: Exception) -> None:
        """Count what is stored and makes no sense as a strike: only a person can mend it."""
        cell = self._cells.get(organization_id)
        if cell is not None and cell.phase in (Phase.LOADING, Phase.BACKING_OFF):
            self._crashed(cell, Tick(), error)

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
        attempt(self.handle, cell, first)
        while cell.phase is Phase.READY and cell.mailbox:
            letter = cell.mailbox.popleft()
            if letter.reply.is_abandoned:
                continue
            result = attempt(self.handle, cell, letter.command)
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
            await trio.sleep(self.policy.passivate_after_ms / 4 / SECOND_MS)
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
            self.recall.forget_events(cell.state, durable_seq)
            is_old = cell.touched_ms + self.policy.passivate_after_ms <= now_ms
            if is_old and cell.is_idle and cell.state.seq <= durable_seq:
                del self._cells[cell.organization_id]
                self.ledger.forget(cell.organization_id)
                self.passivated += 1

    # --- stopping ---------------------------------------------------------------------------

    def stop(self) -> None:
        """Refuse new messages; what is accepted is still flushed."""
        self.is_stopping = True
        for cell in self._cells.values():
            for letter in cell.take_mailbox():
                letter.reply.fail(ShuttingDownError("meterd is stopping"))
