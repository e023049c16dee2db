"""Frames of many reports: what the session asks for together, and what each report is told."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from meterd.web.agent_session import MISTAKES_MAX
from tests.served import World, open_world
from tests.unit.web.test_agent_session import Line, beat, finish, open_line


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Give a meterd with one Starter organization, in the time of the test."""
    async with open_world() as world:
        await world.add()
        yield world


async def started(line: Line, *task_ids: str) -> None:
    """Start tasks, wait until they are durable, and let ten seconds pass."""
    send(line, *({"type": "start", "task_id": name, "agent_id": name} for name in task_ids))
    await line.settle()
    await trio.sleep(10)


def send(line: Line, *messages: object) -> None:
    """Send the messages as one frame."""
    line.session.on_texts([json.dumps(messages).encode()])


def acks(heard: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return (task, elapsed, metered, ref) of each acknowledgement."""
    return [
        (one["task_id"], one["elapsed_ms"], one["metered_ms"], one.get("ref"))
        for one in heard
        if one["type"] == "ack"
    ]


async def test_plain_reports_share_an_acknowledgement_and_a_ref_gets_its_own(
    world: World, autojump_clock: trio.abc.Clock
) -> None:
    """Each with the metered time that its report led to."""
    async with open_line(world) as line:
        await started(line, "t", "u")
        send(line, beat(1_000), beat(2_000, ref=7), beat(500, "u"), beat(3_000), beat(4_000, ref=8))

        assert line.read() == []  # nothing is durable yet
        assert sorted(acks(await line.settle()), key=str) == [
            ("t", 2_000, 2_000, 7),
            ("t", 3_000, 3_000, None),
            ("t", 4_000, 4_000, 8),
            ("u", 500, 500, None),
        ]


async def test_odd_reports_in_the_midst_are_told_what_they_would_be_alone(
    world: World, autojump_clock: trio.abc.Clock
) -> None:
    """A leap, an unknown task refused, a repeat acknowledged; the others count."""
    async with open_line(world) as line:
        await started(line, "t", "u")
        send(
            line,
            beat(1_000),
            beat(500_000, ref="leap"),
            beat(1_000, "u"),
            beat(5, "nobody", ref="unknown"),
            beat(1_000, "u", ref="repeat"),
            beat(2_000, "u"),
            finish(3_000, "u", ref="end"),
            beat(3_000, "u", ref="late"),
        )
        heard = {one.get("ref"): one for one in await line.settle()}

        assert heard["leap"]["elapsed_ms"] == 500_000
        assert heard["unknown"]["code"] == "task_unknown"
        assert heard["repeat"]["metered_ms"] == 1_000
        assert heard["end"]["metered_ms"] == 3_000
        assert heard["late"]["metered_ms"] == 3_000


async def test_a_frame_of_reports_is_one_fact_in_the_journal(
    world: World, autojump_clock: trio.abc.Clock
) -> None:
    """That is what makes frames cheap; four facts would be four."""
    async with open_line(world) as line:
        await started(line, "t", "u")
        before = world.services.organizations.ledger.unflushed
        send(line, beat(1), beat(1, "u"), beat(2), beat(2, "u"))

        assert world.services.organizations.ledger.unflushed == before + 1


async def test_reports_that_reach_the_limit_stop_every_task(
    world: World, autojump_clock: trio.abc.Clock
) -> None:
    """The frame is taken up to the limit and told about it; past it nothing is billed."""
    await world.admin(
        "POST",
        "/admin/v1/organizations/org_1/adjustments",
        content={"agent_ms": 1_100 * 60_000 - 25_000, "reason": "close to the limit"},
    )
    async with open_line(world) as line:
        await started(line, "t", "u")
        send(line, beat(4_000), beat(8_000, "u"), beat(14_000), beat(14_000, "u", ref="last"))
        heard = await line.settle()

        assert {one["task_id"] for one in heard if one["type"] == "stop"} == {"t", "u"}
        billed_ms = {task_id: metered_ms for task_id, _, metered_ms, _ in acks(heard)}
        assert billed_ms == {"t": 14_000, "u": 11_000}


async def test_single_frames_that_arrive_together_are_decided_together(
    world: World, autojump_clock: trio.abc.Clock
) -> None:
    """One fact for all of them, and an acknowledgement for each that has a `ref`."""
    async with open_line(world) as line:
        await started(line, "t", "u")
        facts = world.services.organizations.ledger.last_seq("org_1")
        frames = [beat(1_000, ref=1), beat(1_000, "u", ref=2), beat(2_000, ref=3)]
        line.session.on_texts([json.dumps(frame).encode() for frame in frames])

        assert world.services.organizations.ledger.last_seq("org_1") == facts + 1
        assert acks(await line.settle()) == [
            ("t", 1_000, 1_000, 1),
            ("u", 1_000, 1_000, 2),
            ("t", 2_000, 2_000, 3),
        ]


async def test_nothing_is_taken_after_the_message_that_closed_the_stream(
    world: World, autojump_clock: trio.abc.Clock
) -> None:
    """Also when it arrived in the same read."""
    async with open_line(world) as line:
        await started(line, "t")
        nonsense = [b"nonsense"] * MISTAKES_MAX
        line.session.on_texts([*nonsense, json.dumps(beat(5_000)).encode()])
        heard = await line.settle()

        assert [one["type"] for one in heard] == ["error"] * MISTAKES_MAX
        state = world.services.organizations.cells.get("org_1")
        assert state is not None
        assert state.state is not None
        assert state.state.running["t"].elapsed_ms == 0
