"""Service actors: started again after failures, escalated when that does not help."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from meterd.actors.supervisor import Crash, EscalatedError, Service, attempt
from meterd.core.supervision import RestartPolicy
from meterd.errors import OwnershipLostError
from tests.make import FixedClock


async def test_a_service_actor_is_started_again_until_it_holds(autojump_clock: MockClock) -> None:
    """The delays double; an operator sees the last error and the number of restarts."""
    attempts: list[float] = []

    async def shaky() -> None:
        await trio.lowlevel.checkpoint()
        attempts.append(trio.current_time())
        if len(attempts) < 4:
            raise ValueError(f"no {len(attempts)}")

    service = Service("shaky", shaky, clock=FixedClock())
    await service.run()

    waits = [round(b - a, 6) for a, b in pairwise(attempts)]
    assert waits == [0.1, 0.2, 0.4]
    assert service.restarts == 3
    assert service.last_error == "ValueError: no 3"
    assert service.phase == "ready"


async def test_too_many_failures_are_escalated(autojump_clock: MockClock) -> None:
    """Then the process ends, for its own supervisor to restart."""

    async def broken() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("always")

    service = Service(
        "broken", broken, clock=FixedClock(), policy=RestartPolicy(failures_max=3, window_ms=10**6)
    )
    with pytest.raises(EscalatedError) as escalated:
        await service.run()

    assert isinstance(escalated.value.__cause__, ValueError)
    assert service.phase == "escalated"
    assert service.restarts == 3


async def test_failures_far_apart_are_forgiven(autojump_clock: MockClock) -> None:
    """Only what happens within the window counts."""
    clock = FixedClock()
    attempts = 0

    async def rare() -> None:
        nonlocal attempts
        await trio.lowlevel.checkpoint()
        attempts += 1
        clock.at_ms += 10_000
        if attempts < 50:
            raise ValueError("rare")

    policy = RestartPolicy(failures_max=1, window_ms=10_000)
    await Service("rare", rare, clock=clock, policy=policy).run()

    assert attempts == 50


async def test_a_lost_database_is_not_retried(autojump_clock: MockClock) -> None:
    """Another process owns it: this one must end."""

    async def fenced() -> None:
        await trio.lowlevel.checkpoint()
        raise OwnershipLostError("gone")

    service = Service("ledger", fenced, clock=FixedClock())
    with pytest.raises(OwnershipLostError):
        await service.run()

    assert service.restarts == 0


def test_attempt_catches_failures_and_never_a_cancellation() -> None:
    """A cancel must reach the nursery it belongs to."""

    def fail() -> None:
        raise ZeroDivisionError

    def interrupt() -> None:
        raise KeyboardInterrupt

    crash = attempt(fail)
    assert isinstance(crash, Crash)
    assert isinstance(crash.error, ZeroDivisionError)
    assert attempt(lambda: 5) == 5
    with pytest.raises(KeyboardInterrupt):
        attempt(interrupt)
