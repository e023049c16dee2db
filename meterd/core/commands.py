"""What can be asked of an organization, and everything it can answer.

Commands are imperative, outcomes are what happened, notices are what listeners should hear.
A command may be repeated: cumulative values and ids make the second time harmless.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Protocol

import attrs

from meterd.core.event import EventKey, EventStatus, EventVoid, KnownEvent, UsageEvent
from meterd.core.notification import Notification
from meterd.core.organization import DenialReason, Facts, Hold, Profile, QuotaState
from meterd.core.period import Period
from meterd.core.plan import UNSET, Contract, Terms, Tier, Unset
from meterd.core.subscription import Invoice, Subscription
from meterd.core.task import Task, TaskInfo, TaskOutcome
from meterd.core.usage import UsageRow


@attrs.frozen
class Recalled:
    """The store's answer about a task that is not in memory; `None`: it never existed."""

    task: Task | None


@attrs.frozen(kw_only=True)
class Tick:
    """Let time pass: end the period, lose silent tasks, announce crossings."""


@attrs.frozen(kw_only=True)
class StartTask:
    """Admit a task, or answer for the one that already has this id."""

    info: TaskInfo
    """`started_at_ms` is ignored: a task starts when it is admitted."""
    recalled: Recalled | None = None


@attrs.frozen
class Heartbeat:
    """A task's cumulative elapsed time; positional, because one is made per frame."""

    task_id: str
    elapsed_ms: int
    recalled: Recalled | None = None


class Report(Protocol):
    """What a heartbeat says."""

    @property
    def task_id(self) -> str:
        """The task that runs."""
        ...

    @property
    def elapsed_ms(self) -> int:
        """Its cumulative elapsed time."""
        ...


@attrs.frozen
class Heartbeats:
    """Reports that arrived together, taken in their order as far as they are plain.

    A shortcut for `Heartbeat` after `Heartbeat`: the whole costs one fact.
    """

    reports: Sequence[Report]


@attrs.frozen(kw_only=True)
class FinishTask:
    """A task's last cumulative elapsed time, and how it ended."""

    task_id: str
    elapsed_ms: int
    outcome: TaskOutcome
    recalled: Recalled | None = None


@attrs.frozen(kw_only=True)
class Audited:
    """Who ordered an administrative change, and why."""

    actor: str
    reason: str
    entry_id: str | None = None
    """Id of the audit entry, by which a repeated request finds what it did; `None`: any."""


@attrs.frozen(kw_only=True)
class ChangeOrganization:
    """Change what is given; new terms begin now, and nothing recorded is re-priced.

    With nothing given it still compares the limits in force with the catalogue's: that is how an
    edited catalogue takes effect.
    """

    audited: Audited
    plan: Tier | None = None
    contract: Contract | None = None
    trialing: bool | None = None
    name: str | None = None
    stripe_customer_id: str | Unset | None = UNSET
    place: Hold | None = None
    """Suspend with this hold."""
    lift: Hold | None = None
    """End this hold; the other one, if any, stays."""


@attrs.frozen(kw_only=True)
class ChangeSettings:
    """Change what the organization decides for itself; what is not given stays."""

    audited: Audited
    overage_cap_usd: Decimal | Unset | None = UNSET
    """`None`: no cap."""
    threshold_percents: tuple[int, ...] | None = None
    """Distinct and rising."""


@attrs.frozen
class RecalledPeriod:
    """The store's answer about a period that is not in memory; `None`: it never existed."""

    found: tuple[Period, Terms] | None


@attrs.frozen(kw_only=True)
class Adjust:
    """Add agent time (positive) or credit it (negative), in the current or a named period."""

    audited: Audited
    agent_ms: int
    label: str | None = None
    recalled: RecalledPeriod | None = None


@attrs.frozen(kw_only=True)
class FollowSubscription:
    """Bring plan, periods and payment state in line with what Stripe shows now.

    Give every subscription of the organization that is not known to have ended long ago: one that
    ended is news once, and whatever an operator did since then stays.
    """

    subscriptions: tuple[Subscription, ...]
    invoices: tuple[Invoice, ...] = ()
    customer_id: str | None = None
    """Linked when the organization has no customer yet."""
    reason: str
    """The signal that led here, for the audit log."""


@attrs.frozen(kw_only=True)
class RecordEvents:
    """Book events, each once; one that cannot be booked hinders no other."""

    events: Sequence[UsageEvent]
    recalled: Sequence[KnownEvent] | None = None
    """What the store knows of their ids."""


@attrs.frozen(kw_only=True)
class VoidEvent:
    """Take an event back with a compensating row."""

    event_id: str
    source: str | None = None
    """`None`: the only event with this id, whatever its source."""
    reason: str
    recalled: Sequence[KnownEvent] | None = None
    recalled_period: RecalledPeriod | None = None


Command = (
    Tick
    | StartTask
    | Heartbeat
    | Heartbeats
    | FinishTask
    | ChangeOrganization
    | ChangeSettings
    | Adjust
    | FollowSubscription
    | RecordEvents
    | VoidEvent
)


@attrs.frozen(kw_only=True)
class Done:
    """The command took effect and has nothing else to say."""


@attrs.frozen(kw_only=True)
class NeedsTask:
    """The task is not in memory: ask again with what the store says (`recalled`)."""

    task_id: str


@attrs.frozen(kw_only=True)
class NeedsPeriod:
    """The period is not in memory: ask again with what the store says (`recalled`)."""

    label: str


@attrs.frozen(kw_only=True)
class Started:
    """The task runs (or, repeated, whatever became of it)."""

    task: Task
    repeated: bool = False
    closed: bool = False
    """It was lost so long ago that it takes no more reports."""


@attrs.frozen(kw_only=True)
class Denied:
    """The task may not start; nothing was changed."""

    reason: DenialReason


@attrs.frozen(kw_only=True)
class TaskConflict:
    """A task with this id was started with another body."""


@attrs.frozen(kw_only=True)
class TaskUnknown:
    """No task has this id: the agent should send `start`."""


@attrs.frozen(kw_only=True)
class TaskClosed:
    """The task was lost more than 24 hours ago and takes no more reports."""


@attrs.frozen(slots=False)  # made per heartbeat, see Task
class Beat:
    """A report was taken; positional, because one is made per frame."""

    task: Task
    stop: DenialReason | None
    """Why the agent must stop; `None`: go on. A finished task always stops."""
    clamped: bool
    finished: bool = False
    """The task had already finished: nothing changed."""


@attrs.frozen(slots=False)
class Beats:
    """The first reports were taken; the others are still to be asked for, one by one."""

    tasks: tuple[Task, ...]
    """Each report's task as that report left it."""


@attrs.frozen(kw_only=True)
class Finished:
    """The task has ended; a repeat finds it as it ended the first time."""

    task: Task
    clamped: bool = False
    """What was claimed is more than what was counted, because it was not plausible."""


@attrs.frozen(kw_only=True)
class Adjusted:
    """The adjustment is booked in these ledger rows."""

    rows: tuple[UsageRow, ...]


@attrs.frozen(kw_only=True)
class CreditExceedsUsage:
    """The credit is larger than what the period used; nothing was booked."""

    used_ms: int


@attrs.frozen(kw_only=True)
class ExceedsHardLimit:
    """The debit would pass the period's hard limit; nothing was booked."""

    room_ms: int


@attrs.frozen(kw_only=True)
class ExceedsOverageCap:
    """The debit would pass the customer's overage cap; nothing was booked."""

    room_ms: int


@attrs.frozen(kw_only=True)
class PlanManagedByStripe:
    """A live subscription decides the plan: nothing was changed."""


@attrs.frozen(kw_only=True)
class PeriodUnknown:
    """The organization never had this billing period."""


@attrs.frozen(kw_only=True)
class NeedsEvents:
    """Whether these events are known is not in memory: ask again with what the store says."""

    keys: Sequence[EventKey]


@attrs.frozen(kw_only=True)
class NeedsEventsNamed:
    """The event to void is not in memory: ask again with what the store says of its id."""

    event_id: str
    source: str | None


@attrs.frozen(kw_only=True)
class Recorded:
    """What became of each event, in the order they were told."""

    statuses: tuple[EventStatus, ...]


@attrs.frozen(kw_only=True)
class Voided:
    """The event is taken back, now or before."""

    void: EventVoid
    repeated: bool = False


@attrs.frozen(kw_only=True)
class EventUnknown:
    """No event has this id."""


@attrs.frozen(kw_only=True)
class EventAmbiguous:
    """Events of several sources have this id: the source must be named."""


Outcome = (
    Done
    | NeedsTask
    | NeedsPeriod
    | Started
    | Denied
    | TaskConflict
    | TaskUnknown
    | TaskClosed
    | Beat
    | Beats
    | Finished
    | Adjusted
    | CreditExceedsUsage
    | ExceedsHardLimit
    | ExceedsOverageCap
    | PeriodUnknown
    | PlanManagedByStripe
    | NeedsEvents
    | NeedsEventsNamed
    | Recorded
    | Voided
    | EventUnknown
    | EventAmbiguous
)


@attrs.frozen(kw_only=True)
class QuotaChanged:
    """The quota state, or why work must stop, is another than last announced."""

    state: QuotaState
    stop: DenialReason | None = None


@attrs.frozen(kw_only=True)
class ThresholdReached:
    """Projected use crossed a threshold for the first time in this period."""

    percent: int


@attrs.frozen(kw_only=True)
class StopTasks:
    """Every running task must stop now."""

    task_ids: tuple[str, ...]
    reason: DenialReason


@attrs.frozen(kw_only=True)
class TaskLost:
    """An agent was silent for too long; its slot is free again."""

    task_id: str


@attrs.frozen(kw_only=True)
class TermsChanged:
    """New limits are in force."""

    terms: Terms


@attrs.frozen(kw_only=True)
class ProfileChanged:
    """Name, customer or holds are different now."""

    profile: Profile


@attrs.frozen(kw_only=True)
class Notified:
    """A notification was made; it becomes durable with the decision's facts."""

    notification: Notification


Notice = (
    QuotaChanged
    | ThresholdReached
    | StopTasks
    | TaskLost
    | TermsChanged
    | ProfileChanged
    | Notified
)


@attrs.frozen(slots=False)  # made per heartbeat, see Task
class Decision:
    """The result of one decision: what to answer, what to remember, whom to tell."""

    outcome: Outcome
    facts: Facts | None = None
    """`None`: nothing changed."""
    notices: tuple[Notice, ...] = ()
