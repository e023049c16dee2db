"""The organizations of this process, and the one way to talk to them.

A message to a ready organization is decided at once, in the caller's task and to completion:
there is one thread and no await in between, so an organization's messages are serialized without
a lock. Otherwise it waits in the organization's mailbox, in order, and newcomers wait behind it.

Rule 1: what only the store knows is recalled outside of a decision, and the message asked again.
Rule 2: what is answered may be acknowledged only when it is durable (`durable`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import attrs
import trio

from meterd.actors.acknowledgements import Listener
from meterd.actors.cell import Answer
from meterd.actors.cells import Cells
from meterd.actors.standing import Standing
from meterd.core.commands import (
    Adjust,
    Command,
    Denied,
    FinishTask,
    Heartbeat,
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
from meterd.core.organization import FINISHED_KEPT_MS, OrganizationState, Profile
from meterd.core.period import Period
from meterd.core.plan import Terms
from meterd.core.quota import QuotaView, denial, is_due, view
from meterd.core.units import SECOND_MS
from meterd.errors import OverloadedError, ShuttingDownError, StoreUnavailableError


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


class Organizations:
    """Every organization, whether it is in memory yet or not."""

    def __init__(self, cells: Cells) -> None:
        """Ask the organizations of these cells."""
        self.cells = cells
        self.rules = cells.rules
        self.clock = cells.clock
        self.ledger = cells.ledger
        self.acknowledgements = cells.acknowledgements
        self._ask_timeout_s = cells.policy.ask_timeout_ms / SECOND_MS
        self._recall = cells.recall

    # --- asking -----------------------------------------------------------------------------

    def ask_nowait(self, organization_id: str, command: Command) -> Answer | None:
        """Return the answer of a ready organization, or None when the message would wait.

        Errors: OverloadedError when the journal is full, ShuttingDownError, ActorCrashedError.
        """
        cell = self.cells.ready(organization_id)
        if cell is None:
            return None
        self._admit()
        return self.cells.handle(cell, command)

    def beat_nowait(self, organization_id: str, reports: Sequence[Report]) -> Answer | None:
        """Take the first reports, as many as are plain, as one fact; the outcome is `Beats`.

        None when none is taken: ask for the first alone, and if one of them makes the organization
        crash, only that one will. Errors: as `ask_nowait`.
        """
        cell = self.cells.ready(organization_id)
        if cell is None:
            return None
        self._admit()
        return self.cells.handle_together(cell, reports)

    async def ask(
        self,
        organization_id: str,
        command: Command,
        *,
        in_turn: Callable[[], Awaitable[None]] | None = None,
    ) -> Answer:
        """Return the organization's answer, activating it and recalling what it needs.

        With `in_turn` a task that had to be recalled is decided only when that returns.
        Errors: OrganizationUnknownError, QuarantinedError, OverloadedError, ShuttingDownError,
        ActorCrashedError, StoreUnavailableError when it could not be read in time.
        """
        while True:
            answer: Answer | None = self.ask_nowait(organization_id, command)
            if answer is None:
                answer = await self._ask_by_mail(organization_id, command)
            if isinstance(answer.outcome, NeedsTask):
                answer = await self._ask_with_task(organization_id, command, answer, in_turn)
            elif isinstance(answer.outcome, NeedsPeriod):
                answer = await self._ask_with_period(organization_id, command, answer.outcome)
            elif isinstance(answer.outcome, NeedsEvents | NeedsEventsNamed):
                answer = await self._ask_with_events(organization_id, command, answer.outcome)
            if answer is not None:
                return answer

    def view_nowait(self, organization_id: str, agent_id: str | None = None) -> QuotaView | None:
        """Return the quota object of a ready organization, or None when it must be activated."""
        seen = self.glimpse_nowait(organization_id, agent_id)
        cell = self.cells.get(organization_id)
        if seen is not None and cell is not None:
            cell.touched_ms = seen.as_of_ms
        return seen

    def glimpse_nowait(self, organization_id: str, agent_id: str | None = None) -> QuotaView | None:
        """Return as `view_nowait`, but for nobody: it keeps no organization in memory."""
        cell = self.cells.ready(organization_id)
        if cell is None:
            return None
        assert cell.state is not None, organization_id
        now_ms = self.clock.now_ms()
        if is_due(cell.state, now_ms) and not self.cells.is_stopping:
            self.cells.handle(cell, Tick())
            return self.glimpse_nowait(organization_id, agent_id)
        return view(cell.state, now_ms, agent_id)

    def standing_nowait(self, organization_id: str, agent_id: str | None = None) -> Standing | None:
        """Return the quota object and how long it stands, or None as `view_nowait`."""
        seen = self.view_nowait(organization_id, agent_id)
        cell = self.cells.get(organization_id)
        return None if seen is None or cell is None else Standing.of(cell, seen)

    def moved_nowait(self, standing: Standing, now_ms: int) -> int | None:
        """Return the projected use now if nothing but time has moved since, else None."""
        if self.cells.ready(standing.organization_id) is not standing.cell:
            return None
        return standing.projected_ms(now_ms)

    async def view(self, organization_id: str, agent_id: str | None = None) -> QuotaView:
        """Return the quota object, activating the organization if need be; errors as `ask`."""
        while (seen := self.view_nowait(organization_id, agent_id)) is None:
            await self._ask_by_mail(organization_id, Tick())
        return seen

    async def snapshot(self, organization_id: str) -> OrganizationSnapshot:
        """Return profile, terms and quota as the actor knows them; errors as `ask`."""
        quota = await self.view(organization_id)
        state = self._state(organization_id)
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
        self,
        organization_id: str,
        command: Command,
        answer: Answer,
        in_turn: Callable[[], Awaitable[None]] | None,
    ) -> Answer | None:
        """Ask again with what the store says of the task.

        None: it may be true no more, because the organization was reloaded or the turn came late.
        """
        assert isinstance(command, StartTask | Heartbeat | FinishTask), command
        assert isinstance(answer.outcome, NeedsTask), answer
        asked_at_ms = self.clock.now_ms()
        state = self._state(organization_id)
        try:
            recalled = await self._recall.task(organization_id, answer.outcome.task_id)
        except StoreUnavailableError:
            refused = self._refusal_nowait(organization_id, command)
            if refused is None:
                raise
            return Answer(refused, answer.seq)
        if in_turn is not None:
            await in_turn()
        is_old = self.clock.now_ms() - asked_at_ms >= FINISHED_KEPT_MS // 2
        if is_old or state is None or self._state(organization_id) is not state:
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
        if (state := self._state(organization_id)) is not None:
            self._recall.forget_events(state, self.durable_seq(organization_id))
        return answer

    def _state(self, organization_id: str) -> OrganizationState | None:
        """Return the live state, by whose identity a reload shows."""
        cell = self.cells.get(organization_id)
        return None if cell is None else cell.state

    def _refusal_nowait(self, organization_id: str, command: Command) -> Denied | None:
        """Enforcement does not wait for the store: a start that would be refused is refused."""
        cell = self.cells.get(organization_id)
        if not isinstance(command, StartTask) or cell is None or cell.state is None:
            return None
        reason = denial(cell.state, command.info.agent_id, self.clock.now_ms())
        return None if reason is None else Denied(reason=reason)

    async def _ask_by_mail(self, organization_id: str, command: Command) -> Answer:
        self._admit()
        reply = self.cells.post(organization_id, command)
        try:
            with trio.fail_after(self._ask_timeout_s):
                return await reply.wait()
        except trio.TooSlowError as error:
            raise StoreUnavailableError("load the organization", "no answer in time") from error

    def _admit(self) -> None:
        if self.cells.is_stopping:
            raise ShuttingDownError("meterd is stopping")
        if self.ledger.is_full:
            raise OverloadedError("the journal of unwritten facts")

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
