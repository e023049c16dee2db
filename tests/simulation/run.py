"""Simulate worlds from the command line: `make simulate SEEDS=0-999`, `make simulate SEEDS=17`.

Prints progress and simulated time per second, and for every seed that fails the one command that
replays it. Exit 1 when any failed.
"""

# ruff: noqa: T201  # a command speaks to its terminal

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence

import attrs

from tests.simulation.world import Report, simulate


SEEDS_DEFAULT = "0-199"
LINE_EVERY_S = 5.0


@attrs.frozen
class Failure:
    """A world that broke a promise, or broke down."""

    seed: int
    what: str
    where: str

    @property
    def command(self) -> str:
        """Return the one command that lives through it again."""
        return f"make simulate SEEDS={self.seed}"


def first_cause(error: BaseException) -> BaseException:
    """Return the first exception inside the groups that nurseries make."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def live_once(seed: int) -> Report | Failure:
    """Return what became of one seed."""
    try:
        return simulate(seed)
    except Exception as error:  # noqa: BLE001  # whatever a world dies of is what we look for
        cause = first_cause(error)
        where = "".join(traceback.format_exception(cause)[-4:])
        return Failure(seed, f"{type(cause).__name__}: {cause}", where)


def live_all(seeds: Sequence[int], *, processes: int) -> Iterator[Report | Failure]:
    """Yield what became of every seed, on several processes."""
    if processes == 1 or len(seeds) == 1:
        yield from map(live_once, seeds)
        return
    # A fresh interpreter: the tests' process may have threads, which a fork would not survive.
    with multiprocessing.get_context("spawn").Pool(
        processes, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        yield from pool.imap_unordered(live_once, seeds, chunksize=4)


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that `3`, `0-199` or `3,17,20-29` name."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        seeds.extend(range(int(first), int(last or first) + 1))
    return seeds


def main(arguments: Sequence[str]) -> int:
    """Simulate and say how it went."""
    seeds = parse_seeds(arguments[0] if arguments and arguments[0] else SEEDS_DEFAULT)
    begin_s = said_s = time.monotonic()
    reports: list[Report] = []
    failures: list[Failure] = []
    for one in live_all(seeds, processes=os.cpu_count() or 1):
        if isinstance(one, Failure):
            failures.append(one)
            print(f"seed {one.seed}: {one.what}\n{one.where}\n  again: {one.command}", flush=True)
        else:
            reports.append(one)
        now_s = time.monotonic()
        if now_s - said_s >= LINE_EVERY_S or len(reports) + len(failures) == len(seeds):
            said_s = now_s
            print(summary(reports, failures, len(seeds), now_s - begin_s), flush=True)
    return 1 if failures else 0


def summary(
    reports: Sequence[Report], failures: Sequence[Failure], total: int, took_s: float
) -> str:
    """Return one line of progress."""
    simulated_s = sum(report.simulated_s for report in reports)
    done = len(reports) + len(failures)
    return (
        f"{done}/{total} seeds, {len(failures)} failed; "
        f"{done / took_s:.1f} seeds/s, {simulated_s / took_s:,.0f} s simulated per s; "
        f"{sum(r.tasks for r in reports):,} tasks, "
        f"{sum(r.acknowledged for r in reports):,} acknowledgements, "
        f"{sum(r.frames for r in reports):,} frames, {sum(r.flushes for r in reports):,} commits, "
        f"{sum(r.crashes for r in reports):,} crashes"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
