"""When to restart, when to keep apart, when to give up: decided from the times of failures.

After Erlang's supervisors: so many failures within a period are answered by a fresh start, more
are not. An organization's actor is then quarantined, a service actor's failure is escalated.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs


@attrs.frozen(kw_only=True)
class StrikePolicy:
    """How many crashes an organization's actor may have before it is kept apart."""

    strikes_max: int = 3
    window_ms: int = 60_000
    quarantine_ms: int = 300_000


@attrs.frozen(kw_only=True)
class RestartPolicy:
    """How a service actor is restarted; delays double up to the ceiling."""

    failures_max: int = 10
    window_ms: int = 300_000
    delay_min_ms: int = 100
    delay_max_ms: int = 10_000


@attrs.frozen
class Restart:
    """Start again after a delay."""

    delay_ms: int


@attrs.frozen
class Escalate:
    """Too many failures: the process is not ready and must be restarted by its supervisor."""

    failures: int


def recent(times_ms: Sequence[int], *, now_ms: int, window_ms: int) -> tuple[int, ...]:
    """Return the instants that lie within the window, oldest first."""
    return tuple(at_ms for at_ms in times_ms if at_ms > now_ms - window_ms)


def is_out(policy: StrikePolicy, strikes_ms: Sequence[int], now_ms: int) -> bool:
    """Tell whether these strikes, the newest included, quarantine an organization."""
    return len(recent(strikes_ms, now_ms=now_ms, window_ms=policy.window_ms)) >= policy.strikes_max


def after_failure(
    policy: RestartPolicy, failures_ms: Sequence[int], now_ms: int
) -> Restart | Escalate:
    """Decide from the times of a service actor's failures, the newest included."""
    assert failures_ms, "called without a failure"
    count = len(recent(failures_ms, now_ms=now_ms, window_ms=policy.window_ms))
    if count > policy.failures_max:
        return Escalate(count)
    return Restart(backoff_ms(count, least_ms=policy.delay_min_ms, most_ms=policy.delay_max_ms))


def backoff_ms(tries: int, *, least_ms: int, most_ms: int) -> int:
    """Return the delay before the next try: doubling from the least up to the most."""
    doublings = min(max(tries - 1, 0), 30)
    return min(most_ms, least_ms << doublings)
