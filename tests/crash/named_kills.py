"""kill -9 at named points of the code: around a flush, around the end of a period.

The process dies by itself there (failing_meterd.py), while agents work; the next one is started
on the same address, and dies at the next point. Tables are compared with acknowledgements before
each start, as in kills.py.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random

import trio

from tests.crash.agents import Ledger, working_agents
from tests.crash.findings import Findings
from tests.crash.kills import DRAIN_S, free_port
from tests.crash.outages import SETTINGS, settle
from tests.integration.service.books import query
from tests.integration.service.harness import environment, running_meterd


LAUNCHER = "tests.crash.failing_meterd"

POINTS = ("before_flush", "during_flush", "after_flush", "before_rollover", "after_rollover")

PASSES_MAX = 40
"""Flushes a life may last; several a second happen under load."""

MONTH_ENDS_IN_MS = 6_000
"""How long a life has worked when its month ends: time to start, and for tasks to run across."""

DEATH_WITHIN_S = 60


def until_month_end_ms(now_ms: int) -> int:
    """Return the milliseconds until the calendar month ends."""
    now = datetime.fromtimestamp(now_ms / 1_000, UTC)
    year, month = now.year + now.month // 12, now.month % 12 + 1
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp() * 1_000) - now_ms


async def kill_at_points(database_url: str, rounds: int, agents: int, random: Random) -> Findings:
    """Die once at each named point, `rounds` times; compare before anybody can repair."""
    found, ledger, port = Findings(), Ledger(), free_port()
    options = ("--database-url", database_url)
    ahead_ms = 0
    async with trio.open_nursery() as nursery:
        is_over, is_settled = trio.Event(), trio.Event()

        async def work(url: str, key: str) -> None:
            async with working_agents(url, key, ledger, agents):
                await is_over.wait()
            is_settled.set()

        async with running_meterd(*options, settings=SETTINGS, port=port) as service:
            key = await service.organization("load", "enterprise")
            nursery.start_soon(work, service.url, key)
            await ledger.recovery_s(trio.current_time())
            service.kill()
        for point in POINTS * rounds:
            passes = 1 if "rollover" in point else random.randint(2, PASSES_MAX)
            if point == "before_rollover":
                now_ms = int(time.time() * 1_000) + ahead_ms
                ahead_ms += until_month_end_ms(now_ms) - MONTH_ENDS_IN_MS
            program = (LAUNCHER, point, str(passes), str(ahead_ms))
            await _live_and_die(found, program, port, options)
            await trio.sleep(DRAIN_S)
            await found.compare_acknowledged(database_url, dict(ledger.acknowledged_ms))
            found.cycles += 1
        began_s = trio.current_time()
        program = (LAUNCHER, "never", "1", str(ahead_ms))
        async with running_meterd(
            *options, settings=SETTINGS, port=port, program=program
        ) as service:
            found.recoveries_s.append(await ledger.recovery_s(began_s))
            is_over.set()
            await is_settled.wait()
            await settle(found, database_url, ledger)
            await _compare_periods(found, database_url, rounds)
            found.expect(await service.stop() == 0, "SIGTERM did not end in exit 0")
    return found


async def _live_and_die(
    found: Findings, program: Sequence[str], port: int, options: Sequence[str]
) -> None:
    """Run meterd until it kills itself, which may be before it was ready."""
    serve = ["serve", "--bind", f"127.0.0.1:{port}", *options]
    code = None
    with trio.move_on_after(DEATH_WITHIN_S):
        ended = await trio.run_process(
            [sys.executable, "-m", *program, *serve],
            env=environment(SETTINGS),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        code = ended.returncode
    found.expect(code == -signal.SIGKILL, f"{program[1]}: ended with {code}, not by its own kill")


async def _compare_periods(found: Findings, database_url: str, rounds: int) -> None:
    """See that a period that ended around a crash ended once, without a gap to the next."""
    periods = await query(
        database_url,
        "SELECT period_start, period_end, closed FROM subscription_usage "
        "WHERE organization_id = 'load' ORDER BY period_start",
    )
    found.expect(len(periods) == rounds + 1, f"{len(periods)} periods after {rounds} month ends")
    for ended, begun in itertools.pairwise(periods):
        found.expect(
            ended["closed"] and ended["period_end"] == begun["period_start"],
            f"a period does not end where the next begins: {ended}, {begun}",
        )
