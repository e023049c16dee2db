"""The long proof: `make prove`, or `python -m tests.crash.prove --help` for other lengths.

Runs every trial of this folder and worlds of the simulation, prints progress, and writes
`reports/proof-YYYY-MM-DD.md`. Exit 1 when a promise was broken; the report is written all the same.
Ctrl-C and SIGTERM end it cleanly: what it started is stopped, what it has is written, exit 130.
"""

# ruff: noqa: T201  # a command speaks to its terminal

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from math import ceil
from pathlib import Path
from random import Random
from typing import Any

import attrs
import pytest
import trio

from tests.conftest import start_session_server, stop_session_server
from tests.crash.clock_steps import STEPS_MS, step_clock
from tests.crash.findings import Findings, NotHereError
from tests.crash.full_disk import full_disk, small_disk
from tests.crash.kills import kill_meterd, kill_postgres
from tests.crash.named_kills import kill_at_points
from tests.crash.outages import cut_after_commit, freeze, unreachable
from tests.crash.overspend import race_for_the_last_minute
from tests.crash.report import NOT_SIMULATED, Simulated, Trial, written
from tests.simulation.bugs import BUGS
from tests.simulation.run import Failure, live_all, live_once
from tests.tidy.sources import ROOT


BUG_SEEDS = 20
"""Worlds in which a planted bug has to show."""

WORLD_S, BUG_S = 0.4, 1.2
"""Seconds of two cores for a simulated world, and until worlds have found a planted bug."""


def arguments_of(given: Sequence[str]) -> argparse.Namespace:
    """Return the options, checked."""
    parser = argparse.ArgumentParser(prog="make prove ARGS=...", description=__doc__)
    for name, default, what in (
        ("meterd-kills", 10, "kill -9 of meterd"),
        ("named-kills", 2, "kill -9 at each named point of the code"),
        ("postgres-kills", 6, "kill -9 of PostgreSQL"),
        ("freezes", 2, "times PostgreSQL is frozen with SIGSTOP"),
        ("full-disks", 2, "full disks, for tables and for the log in turn; needs root"),
        ("outages", 4, "black holes and refused connections, in turn"),
        ("cuts", 12, "commits whose answer is cut off"),
        (
            "clock-steps",
            len(STEPS_MS),
            "steps of the system clock, small and large; needs libfaketime",
        ),
        ("races", 5, "races for the last minute of a hard limit"),
        ("slots", 60, "agents that a race admits; a fifth more are refused"),
        ("agents", 16, "agents that work through kills and outages"),
        ("seeds", 50, "simulated worlds"),
        ("bugs", len(BUGS), "planted bugs that the simulation has to find"),
        ("seed", int(time.time()), "of the random instants; the time, unless given"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} ({default})")
    parser.add_argument("--report", type=Path, help="where to write (reports/proof-DATE.md)")
    return parser.parse_args(given)


@contextmanager
def own_directory() -> Iterator[Path]:
    """Give a directory that PostgreSQL's account can reach."""
    path = Path(tempfile.mkdtemp(prefix="meterd-proof-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def on_own_server(trial: Callable[[str], Coroutine[Any, Any, Findings]]) -> Findings:
    """Run a trial against a PostgreSQL of its own that outlives meterd."""
    with own_directory() as directory:
        server = start_session_server(directory)
        try:
            return trio.run(trial, server.dsn)
        finally:
            stop_session_server(server)


def on_embedded(trial: Callable[[Path], Coroutine[Any, Any, Findings]]) -> Findings:
    """Run a trial whose meterd has its embedded PostgreSQL."""
    with own_directory() as directory:
        return trio.run(trial, directory)


def on_small_disk(trial: Callable[[Path], Coroutine[Any, Any, Findings]]) -> Findings:
    """Run a trial whose meterd has its embedded PostgreSQL on a disk that is soon full."""
    with own_directory() as directory, small_disk(directory):
        return trio.run(trial, directory)


@attrs.frozen
class Plan:
    """One trial to come."""

    name: str
    cycles: int
    cycle_s: float
    """Seconds a cycle takes on a quiet machine of two cores, with its share of the start."""
    run: Callable[[], Findings]


def planned(options: argparse.Namespace) -> list[Plan]:
    """Return everything that takes real processes and was asked for, in order."""
    agents, random = options.agents, Random(options.seed)
    plans = [
        Plan(
            "kill -9 of meterd",
            options.meterd_kills,
            3.5,
            lambda: on_own_server(
                partial(kill_meterd, cycles=options.meterd_kills, agents=agents, random=random)
            ),
        ),
        Plan(
            "kill -9 at named points (flush, period's end)",
            options.named_kills,
            20,
            lambda: on_own_server(
                partial(kill_at_points, rounds=options.named_kills, agents=agents, random=random)
            ),
        ),
        Plan(
            "kill -9 of PostgreSQL",
            options.postgres_kills,
            4,
            lambda: on_embedded(
                partial(kill_postgres, cycles=options.postgres_kills, agents=agents, random=random)
            ),
        ),
        Plan(
            "PostgreSQL frozen (SIGSTOP)",
            options.freezes,
            9,
            lambda: on_embedded(partial(freeze, cycles=options.freezes, agents=agents)),
        ),
        Plan(
            "disk of PostgreSQL full (tables, log)",
            options.full_disks,
            7,
            lambda: on_small_disk(partial(full_disk, cycles=options.full_disks, agents=agents)),
        ),
        Plan(
            "PostgreSQL unreachable (black hole, refused)",
            options.outages,
            5.5,
            lambda: on_own_server(partial(unreachable, cycles=options.outages, agents=agents)),
        ),
        Plan(
            "commits without an answer (cut, reset, trickle)",
            options.cuts,
            1.5,
            lambda: on_own_server(partial(cut_after_commit, cycles=options.cuts, agents=agents)),
        ),
        Plan(
            "steps of the system clock (libfaketime)",
            options.clock_steps,
            3,
            lambda: on_own_server(
                partial(step_clock, steps_ms=STEPS_MS[: options.clock_steps], agents=agents)
            ),
        ),
        Plan(
            "races for the last minute",
            options.races,
            2.5,
            lambda: on_own_server(
                partial(race_for_the_last_minute, rounds=options.races, slots=options.slots)
            ),
        ),
    ]
    return [plan for plan in plans if plan.cycles > 0]


def about_minutes(plans: Sequence[Plan], seeds: int, bugs: int) -> int:
    """Return how long the proof may take, in whole minutes of a quiet machine of two cores."""
    trials_s = sum(plan.cycles * plan.cycle_s for plan in plans)
    return ceil((trials_s + seeds * WORLD_S + bugs * BUG_S) / 60)


def run_trial(plan: Plan) -> Trial:
    """Run one trial; one that breaks down has broken a promise."""
    began_s = time.monotonic()
    try:
        found = plan.run()
    except NotHereError as error:
        print(f"  left out: {error}", flush=True)
        return Trial(plan.name, Findings(), 0, left_out=str(error))
    except Exception as error:  # noqa: BLE001  # whatever it dies of belongs into the report
        found = Findings(broken=[f"{plan.name} broke down: {causes(error)}"])
    trial = Trial(plan.name, found, time.monotonic() - began_s)
    print(
        f"  {found.cycles} cycles in {trial.took_s:.0f} s: "
        f"{found.acknowledgements:,} acknowledged, {found.resent:,} sent again, "
        f"{found.lost_ms} ms lost, {found.doubled_ms} ms doubled, {found.over_ms} ms over",
        *(f"\n  BROKEN: {sentence}" for sentence in found.broken),
        flush=True,
    )
    return trial


def causes(error: BaseException) -> str:
    """Return what an exception says, groups by their parts."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(causes(part) for part in error.exceptions)
    return f"{type(error).__name__}: {error}"


def simulate(seeds: int, bugs: int) -> Simulated:
    """Live through worlds, and then through worlds with bugs planted in them."""
    processes = os.cpu_count() or 1
    print(f"{seeds} simulated worlds ...", flush=True)
    outcomes = list(live_all(range(seeds), processes=processes)) if seeds else []
    failures = [one for one in outcomes if isinstance(one, Failure)]
    reports = [one for one in outcomes if not isinstance(one, Failure)]
    for one in failures:
        print(f"  BROKEN: {one.what}\n  {one.command}", flush=True)
    names = list(BUGS)[:bugs]
    found: list[str] = []
    # Where worlds fail without a bug, one that fails with it shows nothing.
    if not failures and names:
        print(f"{len(names)} planted bugs ...", flush=True)
        with multiprocessing.get_context("spawn").Pool(
            processes, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
        ) as pool:
            is_found = pool.map(finds, names, chunksize=1)
        found = [name for name, is_true in zip(names, is_found, strict=True) if is_true]
    print(f"  {len(failures)} worlds failed, {len(found)}/{len(names)} bugs found", flush=True)
    return Simulated(
        seeds=seeds,
        failed=[f"world {one.seed}: {one.what} ({one.command})" for one in failures],
        simulated_s=sum(one.simulated_s for one in reports),
        acknowledged=sum(one.acknowledged for one in reports),
        crashes=sum(one.crashes for one in reports),
        planted=names,
        found=found,
    )


def finds(name: str) -> bool:
    """Tell whether the simulation finds a planted bug."""
    with pytest.MonkeyPatch.context() as patch:
        BUGS[name](patch)
        return any(isinstance(live_once(seed), Failure) for seed in range(BUG_SEEDS))


def is_interrupt(error: BaseException) -> bool:
    """Tell whether somebody ended the proof; a nursery wraps that in a group."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(KeyboardInterrupt) is not None
    return isinstance(error, KeyboardInterrupt)


def main(given: Sequence[str]) -> int:
    """Prove, write the report, and say whether every promise was kept."""
    options = arguments_of(given)
    begun_at = datetime.now(UTC)
    path = options.report or ROOT / "reports" / f"proof-{begun_at:%Y-%m-%d}.md"
    path.parent.mkdir(exist_ok=True)
    # Trio knows what to do about SIGINT only.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    plans = planned(options)
    minutes = about_minutes(plans, options.seeds, options.bugs)
    print(f"about {minutes} min on a quiet machine of two cores; the report: {path}", flush=True)
    trials: list[Trial] = []
    simulated, ended_early = NOT_SIMULATED, False
    try:
        for number, plan in enumerate(plans, start=1):
            print(f"[{number}/{len(plans)}] {plan.name}, {plan.cycles} times ...", flush=True)
            trials.append(run_trial(plan))
        simulated = simulate(options.seeds, options.bugs)
    except BaseException as error:
        if not is_interrupt(error):
            raise
        ended_early = True
    text, is_kept = written(
        trials,
        simulated,
        begun_at=begun_at,
        command=f'make prove ARGS="{shlex.join(given)}"' if given else "make prove",
        seed=options.seed,
        ended_early=ended_early,
    )
    path.write_text(text, encoding="utf-8")
    if ended_early:
        print(f"ended before its end; what it has: {path}")
        return 128 + signal.SIGINT
    print(f"{'every promise was kept' if is_kept else 'A PROMISE WAS BROKEN'}: {path}")
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
