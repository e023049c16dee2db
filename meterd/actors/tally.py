"""How often what was decided: the counts behind the metrics of all organizations together."""

from __future__ import annotations

from meterd.core.commands import Beat, Beats, Command, Decision, Denied, Finished
from meterd.core.organization import OrganizationState
from meterd.core.task import Task


class Tally:
    """Counts since the start of the process."""

    __slots__ = ("beats", "decided", "unbilled_ms")

    def __init__(self) -> None:
        self.decided: dict[tuple[type[Command], object], int] = {}
        """Decisions by command, and by the kind of outcome or the reason to refuse or stop."""
        self.beats = 0
        """Heartbeats that may go on; they are not in `decided`."""
        self.unbilled_ms = 0
        """Time reported past hard limits; nobody is billed for it."""

    def count(self, state: OrganizationState, command: Command, decision: Decision) -> None:
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
