"""Somebody sets the clock of the machine while agents work: back and forth, a little and a lot.

meterd must go on with time of its own: nothing is lost, nothing counts twice, no task is cut and
no billing period ends. Agents measure what they ran with a clock that nobody sets.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio

from tests.crash.agents import Ledger, working_agents
from tests.crash.findings import Findings
from tests.crash.named_kills import LAUNCHER
from tests.crash.outages import SETTINGS, settle
from tests.integration.service.books import query
from tests.integration.service.harness import running_meterd


SECOND_MS, HOUR_MS, DAY_MS = 1_000, 3_600_000, 86_400_000

STEPS_MS = (-40 * SECOND_MS, 50 * SECOND_MS, -HOUR_MS, 40 * DAY_MS, -3_650 * DAY_MS, 0)
"""What the clock is ahead after each step; the last puts it right."""

BETWEEN_S = 2.0
"""meterd looks at the system clock every second."""


async def step_clock(database_url: str, steps_ms: Sequence[int], agents: int) -> Findings:
    """Set the clock of a running meterd to each of these."""
    found, ledger = Findings(), Ledger()
    with tempfile.TemporaryDirectory() as directory:
        ahead = Path(directory) / "ahead_ms"

        def step(ahead_ms: int) -> None:
            written = ahead.with_suffix(".new")
            written.write_text(str(ahead_ms))
            written.rename(ahead)  # whoever reads it meanwhile sees one or the other

        step(0)
        program = (LAUNCHER, "never", "1", str(ahead))
        async with running_meterd(
            "--database-url", database_url, settings=SETTINGS, program=program
        ) as service:
            key = await service.organization("load", "enterprise")
            async with working_agents(service.url, key, ledger, agents):
                for ahead_ms in steps_ms:
                    await ledger.recovery_s(trio.current_time())
                    step(ahead_ms)
                    stepped_s = trio.current_time()
                    await trio.sleep(BETWEEN_S)
                    found.recoveries_s.append(await ledger.recovery_s(stepped_s))
                    found.cycles += 1
            await settle(found, database_url, ledger)
            periods = await query(database_url, "SELECT period_start FROM subscription_usage")
            found.expect(len(periods) == 1, f"the clock ended {len(periods) - 1} periods")
            found.expect(await service.stop() == 0, "SIGTERM did not end in exit 0")
    return found
