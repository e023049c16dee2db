"""The client library through a scripted hour of kills, partitions and clock steps, simulated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog

from tests.simulation.auditor import limits
from tests.simulation.determinism import seeded_run
from tests.simulation.hour import AGENTS, SCRIPT, Hour


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hour() -> Hour:
    """Live through the hour once; every test looks at another side of what it left."""
    lived = Hour()
    with _quiet_log():
        seeded_run(0, lived.live)
    return lived


@contextmanager
def _quiet_log() -> Iterator[None]:
    def drop(_logger: object, _name: str, _event: object) -> Any:
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[drop])
    try:
        yield
    finally:
        structlog.configure(**before)


def billed_ms(hour: Hour, organization_id: str) -> dict[str, int]:
    """Return per task the time in ledger rows."""
    billed: dict[str, int] = defaultdict(int)
    for row in hour.record(organization_id).rows.values():
        assert row.task_id is not None
        billed[row.task_id] += row.quantity_ms
    return dict(billed)


def test_the_hour_was_as_bad_as_its_script(hour: Hour) -> None:
    """A script that broke nothing would prove nothing."""
    mishaps = [type(mishap).__name__ for _, mishap in SCRIPT]

    assert hour.deaths >= mishaps.count("Kill") + mishaps.count("Replace")
    for name, program in hour.programs.items():
        assert program.transport.connections > mishaps.count("Kill"), name
        assert len(program.tasks) > AGENTS[name] * 20


@pytest.mark.parametrize("organization_id", ["steady", "hopeful"])
def test_the_bill_of_every_task_is_what_it_ran(hour: Hour, organization_id: str) -> None:
    """To the millisecond: nothing lost in an outage, nothing counted twice after one."""
    tasks = hour.programs[organization_id].tasks

    ran = {task.task_id: task.ran_ms for task in tasks.values()}
    billed = billed_ms(hour, organization_id)

    assert {task_id: billed.get(task_id, 0) for task_id in ran} == ran
    assert billed.keys() <= ran.keys()
    assert {task.task_id: task.settled_ms for task in tasks.values()} == ran
    assert not any(task.was_clamped or task.was_stopped for task in tasks.values())


def test_the_hard_cases_were_among_them(hour: Hour) -> None:
    """A silence past the time-out, a start nobody heard, and a task that lived through it all."""
    assert len(hour.lost & hour.programs["steady"].tasks.keys()) > 1
    assert any(task.was_local for task in hour.programs["hopeful"].tasks.values())
    for name in ("steady", "hopeful"):
        assert max(task.ran_ms for task in hour.programs[name].tasks.values()) == 3_600_000


def test_a_tight_plan_is_billed_to_its_limit_and_not_past_it(hour: Hour) -> None:
    """In both months the work runs into the limit; what ran past it is known and not billed."""
    record, program = hour.record("tight"), hour.programs["tight"]
    _, _, hard_ms, _, _ = limits(record.terms[max(record.terms)])

    billed = billed_ms(hour, "tight")

    assert [period.used_ms for _, period in record.periods.values()] == [hard_ms, hard_ms]
    for ran in program.tasks.values():
        stored = record.tasks[ran.task_id]
        assert stored.elapsed_ms == ran.ran_ms
        assert stored.metered_ms == billed.get(ran.task_id, 0) <= ran.ran_ms
    assert any(task.was_stopped for task in program.tasks.values())
    assert "plan_limit_reached" in program.refusals
