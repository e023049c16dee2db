"""Somebody sets the clock of the machine while agents work: back and forth, a little and a lot.

meterd must go on with time of its own: nothing is lost, nothing counts twice, no task is cut and
no billing period ends. Agents measure what they ran with a clock that nobody sets.

Rule: libfaketime answers meterd's process in the system's place, and no other process; the
monotonic clock stays true. That every step arrived is seen in what meterd says of its clock.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
import trio

from tests.crash.agents import Ledger, working_agents
from tests.crash.findings import Findings, NotHereError
from tests.crash.outages import SETTINGS, settle
from tests.integration.service.books import query
from tests.integration.service.harness import Service, running_meterd


SECOND_MS, HOUR_MS, DAY_MS = 1_000, 3_600_000, 86_400_000

YEAR_MS = 365 * DAY_MS

STEPS_MS = (
    *(-40 * SECOND_MS, 50 * SECOND_MS, -HOUR_MS),
    *(DAY_MS, -DAY_MS, 10 * YEAR_MS, -10 * YEAR_MS, 0),
)
"""What the clock is ahead after each step; the last puts it right."""

JUMP_MS = 60_000
"""A step up to here is followed slowly; meterd reports a longer one and does not follow it."""

SLEWED_S_MAX = 5
"""What meterd may have followed of the small steps when it reports a large one."""

BETWEEN_S = 2.0
"""meterd looks at the system clock every second."""

LIBRARIES = ("lib/*/faketime", "lib/faketime", "lib64/faketime", "local/lib/faketime")
"""Where distributions and `make install` put libfaketime, below /usr."""


@attrs.frozen
class MachineClock:
    """The system clock, as a process sees it that was started with `environment`."""

    preload: Path
    file: Path

    @property
    def environment(self) -> dict[str, str]:
        """Return what puts libfaketime before a process's calls for the time."""
        return {
            "LD_PRELOAD": str(self.preload),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Its own remedy for hanging waits ends them early: a thread would spin for the GIL.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            "NO_FAKE_STAT": "1",
        }

    def set(self, ahead_ms: int) -> None:
        """Set the clock this far ahead of the real one."""
        written = self.file.with_suffix(".new")
        written.write_text(f"{ahead_ms / 1_000:+.3f}")
        written.rename(self.file)  # whoever reads it meanwhile sees one or the other


def machine_clock(directory: Path) -> MachineClock:
    """Return a clock that is right and can be set. Errors: NotHereError."""
    for pattern in LIBRARIES:
        for library in Path("/usr").glob(f"{pattern}/libfaketimeMT.so.1"):
            clock = MachineClock(library, directory / "clock")
            clock.set(0)
            return clock
    raise NotHereError("no libfaketime; Debian and Ubuntu: apt install libfaketime")


async def jump_s(service: Service) -> float:
    """Return how far the system clock is from meterd's, by its own words."""
    metrics = (await service.http.get("/metrics")).text
    (value,) = re.findall(r"^meterd_clock_jump_seconds (\S+)$", metrics, re.MULTILINE)
    return float(value)


async def step_clock(database_url: str, steps_ms: Sequence[int], agents: int) -> Findings:
    """Set the clock of a running meterd to each of these. Errors: NotHereError."""
    found, ledger = Findings(), Ledger()
    with tempfile.TemporaryDirectory() as directory:
        clock = machine_clock(Path(directory))
        settings = SETTINGS | clock.environment
        async with running_meterd("--database-url", database_url, settings=settings) as service:
            key = await service.organization("load", "enterprise")
            async with working_agents(service.url, key, ledger, agents):
                for ahead_ms in steps_ms:
                    await ledger.recovery_s(trio.current_time())
                    clock.set(ahead_ms)
                    stepped_s = trio.current_time()
                    await trio.sleep(BETWEEN_S)
                    found.recoveries_s.append(await ledger.recovery_s(stepped_s))
                    expected_s = ahead_ms / 1_000 if abs(ahead_ms) > JUMP_MS else 0
                    seen_s = await jump_s(service)
                    found.expect(
                        abs(seen_s - expected_s) <= SLEWED_S_MAX,
                        f"the clock is {expected_s} s ahead, meterd says {seen_s}",
                    )
                    found.cycles += 1
            await settle(found, database_url, ledger)
            periods = await query(database_url, "SELECT period_start FROM subscription_usage")
            found.expect(len(periods) == 1, f"the clock ended {len(periods) - 1} periods")
            found.expect(await service.stop() == 0, "SIGTERM did not end in exit 0")
    return found
