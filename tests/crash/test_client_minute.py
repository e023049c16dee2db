"""The hour of `tests/simulation/hour.py`, with real processes and sockets, in under a minute."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
import trio

from meterd.testing.fault_proxy import Fault, FaultProxy, open_fault_proxy
from tests.crash.kills import free_port
from tests.crash.named_kills import LAUNCHER
from tests.crash.programs import PROGRAMS, Diary
from tests.integration.service.books import assert_books_are_right, query
from tests.integration.service.harness import Service, running_meterd


pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SETTINGS = {"METERD_TASK_TIMEOUT_MS": "3000"}

LATE_MS = 1_000
"""By how much a body's own clock and its client's may differ on a busy machine."""

CALM_S = 1.2
"""Between two mishaps: long enough for everybody to reconnect and report."""


@attrs.define(eq=False)
class Machine:
    """A meterd that is started again when it was killed, on a machine whose clock can be set."""

    database_url: str
    clock_file: Path
    nursery: trio.Nursery
    port: int = attrs.Factory(free_port)
    kills: int = 0
    _service: Service | None = None

    @property
    def service(self) -> Service:
        """Return the process that runs now."""
        assert self._service is not None, "not started"
        return self._service

    async def start(self) -> None:
        """Start meterd and wait until it is ready."""

        async def live(task_status: trio.TaskStatus[Service]) -> None:
            program = (LAUNCHER, "never", "1", str(self.clock_file))
            options = ("--database-url", self.database_url)
            async with running_meterd(
                *options, settings=SETTINGS, port=self.port, program=program
            ) as service:
                task_status.started(service)
                await service.process.wait()

        self._service = await self.nursery.start(live)

    async def kill(self, away_s: float) -> None:
        """End meterd with SIGKILL, and start it again after a while."""
        self.service.kill()
        await self.service.process.wait()
        self.kills += 1
        await trio.sleep(away_s)
        await self.start()

    def set_clock(self, offset_ms: int) -> None:
        """Set the system clock wrong by so much."""
        written = self.clock_file.with_suffix(".new")
        written.write_text(str(offset_ms), encoding="ascii")
        written.rename(self.clock_file)  # whoever reads it meanwhile sees one or the other


@contextlib.asynccontextmanager
async def running_machine(database_url: str, clock_file: Path) -> AsyncIterator[Machine]:
    """Run a machine for the length of the block."""
    async with trio.open_nursery() as nursery:
        machine = Machine(database_url, clock_file, nursery)
        machine.set_clock(0)
        await machine.start()
        yield machine
        nursery.cancel_scope.cancel()


async def break_things(machine: Machine, proxy: FaultProxy) -> None:
    """Live through the script, which is that of the simulated hour in small."""

    async def partition(seconds: float, fault: Fault = Fault.BLACK_HOLE) -> None:
        proxy.set_fault(fault)
        await trio.sleep(seconds)
        proxy.reset()
        proxy.set_fault(Fault.NONE)
        await trio.sleep(CALM_S)

    await trio.sleep(CALM_S)
    await machine.kill(away_s=0)
    await partition(0.5)
    await partition(4.5)  # longer than a task may be silent: all are lost, and come again
    machine.set_clock(20_000)  # slewed
    await trio.sleep(CALM_S)
    await machine.kill(away_s=3.5)
    machine.set_clock(-25_000)  # held back
    await partition(0.8, Fault.REFUSE)
    machine.set_clock(3_600_000)  # a jump: reported, not followed
    await partition(1.0, Fault.TRICKLE)
    machine.set_clock(600_000)
    await trio.sleep(CALM_S)
    await machine.kill(away_s=0.2)  # the restart believes the clock
    proxy.set_fault(Fault.BLACK_HOLE)
    await machine.kill(away_s=0)
    await partition(1.0)
    proxy.reset()
    await trio.sleep(CALM_S)


async def test_three_programs_are_billed_what_they_ran_whatever_breaks(
    database_url: str, tmp_path: Path
) -> None:
    """Kills, partitions and clock steps: to the millisecond what each client said it ran.

    And what it said is what the body took, on a clock of the body's own (both round down).
    """
    diary = Diary()
    async with running_machine(database_url, tmp_path / "clock") as machine:
        key = await machine.service.organization("acme", "enterprise")
        async with open_fault_proxy("127.0.0.1", machine.port) as proxy:
            url = f"http://127.0.0.1:{proxy.port}"
            async with trio.open_nursery() as nursery:
                for run_program in PROGRAMS.values():
                    nursery.start_soon(run_program, url, key, diary)
                try:
                    await break_things(machine, proxy)
                finally:
                    diary.is_over.set()
        assert await machine.service.stop() == 0

    rows = await query(
        database_url,
        "SELECT task_id, sum(quantity_ms)::bigint AS ms FROM usage_records "
        "WHERE resource_type = 'agent_minute' GROUP BY task_id",
    )
    billed = {row["task_id"]: row["ms"] for row in rows}
    tasks = [task for program in PROGRAMS for task in diary.ran[program]]
    assert machine.kills == 4
    assert min(len(diary.ran[program]) for program in PROGRAMS) > 5
    assert billed == {task.task_id: task.said_ms for task in tasks}
    assert [task for task in tasks if task.settled_ms != task.said_ms] == []
    assert [task for task in tasks if not -1 <= task.said_ms - task.ran_ms <= LATE_MS] == []
    await assert_books_are_right("--database-url", database_url)
