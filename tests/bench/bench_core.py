"""What the core costs: nanoseconds per view, heartbeat, and start with finish.

Run: python -m tests.bench.bench_core
"""

from __future__ import annotations

import time
from collections.abc import Callable

from meterd.core.commands import Heartbeat
from meterd.core.organization import OrganizationState
from meterd.core.plan import Contract, Tier
from meterd.core.quota import denial, next_wakeup_ms, view
from tests.organizations import NOON_MS, drive, make_finish, make_start, make_state, start


ROUNDS = 7
CALLS = 20_000
TASKS = 1_000


def busy_state() -> OrganizationState:
    """Return an organization with a thousand running tasks and room for all of them."""
    state = make_state(Tier.PRO, Contract(agents=None, agent_minutes=50_000_000))
    for number in range(TASKS):
        start(state, f"t{number}", f"a{number}")
    return state


def best_ns(work: Callable[[int], object]) -> int:
    """Return the best mean over some rounds: what the machine can do when left alone."""
    means = []
    for _ in range(ROUNDS):
        begun = time.perf_counter_ns()
        for number in range(CALLS):
            work(number)
        means.append((time.perf_counter_ns() - begun) // CALLS)
    return min(means)


def main() -> None:
    """Print one line per operation."""
    state = busy_state()
    count = 0

    def heartbeat(_: int) -> None:
        nonlocal count
        count += 1
        now_ms = NOON_MS + count // TASKS
        drive(state, Heartbeat(f"t{count % TASKS}", count // TASKS), now_ms)

    def start_and_finish(number: int) -> None:
        drive(state, make_start(f"x{number}", "agent_x"), state_now())
        drive(state, make_finish(f"x{number}", 0), state_now())
        state.ended.clear()

    def state_now() -> int:
        return NOON_MS + count // TASKS

    work: dict[str, Callable[[int], object]] = {
        "check (denial)": lambda _: denial(state, "a1", state_now()),
        "view": lambda _: view(state, state_now()),
        "next wake-up": lambda _: next_wakeup_ms(state, state_now()),
        "heartbeat": heartbeat,
        "start + finish": start_and_finish,
    }
    for name, operation in work.items():
        print(f"{name:20s}{best_ns(operation):>10,d} ns")  # noqa: T201  # a program that prints


if __name__ == "__main__":
    main()
