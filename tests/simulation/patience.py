"""What a client promises while meterd is away, held to what its programs were allowed to do.

The rules are those of the page on metering an agent, done naively from three facts: when a start
was asked for, when something of meterd reached the client, and when a body began and ended.
"""

from __future__ import annotations

import math
from itertools import pairwise

from meterd.client.errors import Unreachable
from meterd.client.policy import FailClosed, FailOpen, Settings, UnreachablePolicy
from tests.simulation.clients import Run
from tests.simulation.determinism import Chance
from tests.simulation.violation import expect


SLACK_S = 0.05
"""The clients' own timers, which count whole milliseconds."""


def drawn_policy(chance: Chance) -> UnreachablePolicy:
    """Return what a customer has chosen; a minute is little, so that it runs out."""
    policies: tuple[UnreachablePolicy, ...] = (
        FailClosed(running_minutes=1_440),
        FailClosed(running_minutes=1),
        FailOpen(minutes=1),
        FailOpen(minutes=5, running_minutes=1),
    )
    return chance.pick(*policies)


def audit_run(run: Run, settings: Settings, *, until_s: float) -> None:
    """Hold one task to its client's policy, as far as its client lived."""
    policy = settings.unreachable
    facts = (run.task_id, policy, run.asked_s, run.begun_s, run.stopped_s, run.heard_s, until_s)
    waited_s = min(run.begun_s or math.inf, run.failed_s or math.inf, until_s) - run.asked_s
    is_in_time = waited_s <= settings.start_timeout_ms / 1_000 + SLACK_S
    expect(is_in_time, "a start is decided in time", *facts)
    if isinstance(policy, FailOpen):
        is_open = not isinstance(run.error, Unreachable)
        expect(is_open, "FailOpen starts without meterd", *facts)
    if run.begun_s is None:
        return
    is_declared = any(heard_s <= run.begun_s for heard_s in run.heard_s)
    is_allowed = is_declared or isinstance(policy, FailOpen)
    expect(is_allowed, "FailClosed starts nothing without meterd", *facts)
    ended_s = min(run.ended_s or math.inf, until_s)
    marks = [run.begun_s, *(each for each in run.heard_s if run.begun_s < each < ended_s), ended_s]
    for number, (before_s, after_s) in enumerate(pairwise(marks)):
        is_undeclared = number == 0 and not is_declared
        minutes = policy.minutes if is_undeclared else policy.running_minutes  # type: ignore[union-attr]
        stop_s = before_s + 60 * minutes
        is_stopped = run.stopped_s is not None and run.stopped_s <= stop_s + SLACK_S
        expect(after_s <= stop_s + SLACK_S or is_stopped, "an unheard task is stopped", *facts)
        if isinstance(run.stop, Unreachable) and run.stopped_s is not None:
            is_last = after_s == ended_s
            is_here = before_s <= run.stopped_s and (run.stopped_s < after_s or is_last)
            is_early = is_here and run.stopped_s < stop_s - SLACK_S
            expect(not is_early, "a task is stopped by its patience only", *facts)
