"""More than a stream may have waiting is refused in words: each message has its answer."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from meterd.core.journal import StoredOrganization
from meterd.core.task import Task
from meterd.web.agent_session import WAITING_MESSAGES_MAX
from tests.served import World
from tests.unit.web.test_agent_session import START, Line, beat, open_line, world


__all__ = ["world"]

TOO_MANY = 7


async def answers(line: Line, count: int) -> list[dict[str, Any]]:
    """Return what comes until so many messages are answered."""
    found: list[dict[str, Any]] = []
    with trio.fail_after(30):
        while len([one for one in found if "ref" in one]) < count:
            await trio.sleep(0.01)
            found += line.read()
    return found


async def test_reports_behind_a_start_that_waits_are_bounded_and_none_is_dropped(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """What is beyond the bound is refused at once with its ref; the rest is answered later."""
    recall, gate = world.store.recall_task, trio.Event()

    async def slow_recall(organization_id: str, task_id: str) -> Task | None:
        await gate.wait()
        return await recall(organization_id, task_id)

    world.store.recall_task = slow_recall  # type: ignore[method-assign]
    refs = range(1, WAITING_MESSAGES_MAX + TOO_MANY)
    async with open_line(world) as line:
        line.say(START | {"ref": 0})
        for first in range(1, len(refs), 1_000):
            line.say([beat(ref, ref=ref) for ref in refs[first - 1 : first + 999]])
        refused = line.read()
        gate.set()
        answered = await answers(line, WAITING_MESSAGES_MAX)

    assert [(one["type"], one["code"]) for one in refused] == [("error", "overloaded")] * TOO_MANY
    assert {one["ref"] for one in answered if "ref" in one} | {one["ref"] for one in refused} == {
        0,
        *refs,
    }


async def test_checks_that_wait_for_an_organization_are_bounded_and_none_is_dropped(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """While it is read from the store, nobody can be answered at once."""
    await world.add("org_new")
    key = await world.key("agent", organization_id="org_new")
    await world.admin("POST", "/admin/v1/actors/organization/org_new/passivate")
    load, gate = world.store.load, trio.Event()

    async def slow_load(organization_ids: Sequence[str]) -> dict[str, StoredOrganization]:
        await gate.wait()
        return await load(organization_ids)

    world.store.load = slow_load  # type: ignore[method-assign]
    refs = range(WAITING_MESSAGES_MAX + TOO_MANY)
    async with open_line(world, key) as line:
        for first in range(0, len(refs), 1_000):
            line.say([{"type": "check", "ref": ref} for ref in refs[first : first + 1_000]])
        at_once = line.read()
        await wait_all_tasks_blocked()
        refused = at_once + line.read()
        gate.set()
        answered = await answers(line, len(refs) - len(refused))

    assert len(at_once) == TOO_MANY
    assert {one.get("code") for one in refused} == {"overloaded"}
    assert {one["ref"] for one in answered if "ref" in one} | {one["ref"] for one in refused} == {
        *refs
    }
