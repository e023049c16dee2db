"""The agent stream's session on real actors, with the store in memory and no socket."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from meterd.actors.keyring import Principal
from meterd.core.task import Plausibility, Task
from meterd.web.agent_session import AgentSession
from meterd.web.agent_stream import AgentGate
from meterd.web.stream_transport import (
    HttpRejected,
    Outbox,
    StreamClose,
    StreamRejected,
    StreamRequest,
)
from tests.served import ADMIN_KEY, World, open_world


@attrs.define
class Line:
    """One open session, its outbox, and what a client would see."""

    session: AgentSession
    outbox: Outbox
    frames: list[Any] = attrs.field(factory=list)

    def say(self, *messages: object) -> None:
        """Send each message as its own frame."""
        for message in messages:
            self.session.on_texts([json.dumps(message).encode()])

    def read(self) -> list[dict[str, Any]]:
        """Return every message that is in the outbox now."""
        heard: list[dict[str, Any]] = []
        for payload in self.outbox.take(10**9):
            content = json.loads(payload)
            self.frames.append(content)
            heard += content if isinstance(content, list) else [content]
        return heard

    async def hear(self, kind: str) -> dict[str, Any]:
        """Wait for the next message of a kind; the others are dropped."""
        with trio.fail_after(30):
            while True:
                for message in self.read():
                    if message["type"] == kind:
                        return message
                await self.outbox.wait_ready()

    async def settle(self) -> list[dict[str, Any]]:
        """Wait until everything is answered, and return it."""
        with trio.fail_after(30):
            await self.session.settled()
        return self.read()


@asynccontextmanager
async def open_line(world: World, key: str | None = None) -> AsyncIterator[Line]:
    """Open a session through the gate, as a carrier does."""
    request = StreamRequest(
        path="/v1/agents/stream",
        query="",
        headers=[("authorization", f"Bearer {key or await world.key('agent')}")],
        client_address="127.0.0.1",
    )
    opener = await AgentGate(world.services, lambda: world.nursery).admit(request)
    assert callable(opener), opener
    outbox = Outbox(items_max=10_000, bytes_max=10**8)
    session = opener(outbox)
    assert isinstance(session, AgentSession)
    try:
        yield Line(session, outbox)
    finally:
        outbox.end()
        session.on_end(1000)


@pytest.fixture
async def world(autojump_clock: trio.abc.Clock) -> AsyncIterator[World]:
    """Give a meterd with one Starter organization, in virtual time."""
    async with open_world() as world:
        await world.add()
        yield world


START = {"type": "start", "task_id": "t", "agent_id": "a"}


def beat(elapsed_ms: int, task_id: str = "t", **fields: object) -> dict[str, object]:
    """Return a heartbeat."""
    return {"type": "heartbeat", "task_id": task_id, "elapsed_ms": elapsed_ms, **fields}


def finish(elapsed_ms: int, task_id: str = "t", **fields: object) -> dict[str, object]:
    """Return a successful finish."""
    message = {"type": "finish", "task_id": task_id, "elapsed_ms": elapsed_ms}
    return {**message, "outcome": "succeeded", **fields}


async def test_a_task_from_start_to_finish_is_answered_exactly_as_promised(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """The shapes of contract §7."""
    async with open_line(world) as line:
        line.say(START | {"ref": "s"})
        [started] = await line.settle()
        line.say(beat(61_000, ref=2))
        [ack] = await line.settle()
        line.say(finish(62_000, ref="f"))
        [finished] = await line.settle()
        line.say(finish(62_000), START)
        again = await line.settle()

    quota = started.pop("quota")
    assert started == {
        "type": "started",
        "task_id": "t",
        "heartbeat_interval_ms": 10_000,
        "elapsed_ms": 0,
        "ref": "s",
    }
    assert (quota["organization_id"], quota["agents"]) == ("org_1", {"active": 1, "limit": 5})
    assert ack == {
        "type": "ack",
        "task_id": "t",
        "elapsed_ms": 61_000,
        "metered_ms": 61_000,
        "quota": {"state": "ok", "used_ms": 61_000, "remaining_ms": 1_100 * 60_000 - 61_000},
        "ref": 2,
    }
    done = {"type": "finished", "task_id": "t", "metered_ms": 62_000, "outcome": "succeeded"}
    assert finished == done | {"ref": "f"}
    assert again == [done, done]


async def test_an_unknown_task_and_a_conflict_are_errors_with_the_ref(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """The client then sends `start`, or learns that the id is taken."""
    async with open_line(world) as line:
        line.say(START)
        await line.settle()
        line.say(beat(1, "nope", ref=1), finish(1, "nope", ref=2), START | {"agent_id": "b"})
        answers = await line.settle()

    assert [(one["type"], one["code"], one.get("ref")) for one in answers] == [
        ("error", "task_conflict", None),
        ("error", "task_unknown", 1),
        ("error", "task_unknown", 2),
    ]


async def test_a_start_past_the_limit_is_denied_with_code_message_and_quota(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """The sixth agent of Starter."""
    async with open_line(world) as line:
        line.say(*[START | {"task_id": f"t{n}", "agent_id": f"a{n}"} for n in range(5)])
        await line.settle()
        line.say(START | {"task_id": "t5", "agent_id": "a5", "ref": "x"})
        [denied] = await line.settle()

    assert denied.pop("quota")["code"] == "agent_limit_reached"
    assert denied == {
        "type": "denied",
        "task_id": "t5",
        "code": "agent_limit_reached",
        "message": "Agent limit reached. Upgrade to run more agents at once.",
        "upgrade_url": "https://example.com/upgrade",
        "ref": "x",
    }


async def test_nothing_is_acknowledged_before_the_store_has_it(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """While the store is away acknowledgements wait; none is lost when it returns."""
    async with open_line(world) as line:
        line.say(START)
        await line.settle()
        world.store.is_away = True
        line.say(beat(1_000), beat(2_000, ref="r"), beat(3_000))
        await trio.sleep(20)
        assert line.read() == []

        world.store.is_away = False
        answers = await line.settle()

    assert [(one["type"], one["elapsed_ms"], one.get("ref")) for one in answers] == [
        ("ack", 2_000, "r"),
        ("ack", 3_000, None),
    ]


async def test_facts_the_store_refuses_are_errors_and_are_counted_once_when_sent_again(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """The client is told to send again; cumulative reports make that harmless."""
    async with open_line(world) as line:
        line.say(START)
        await line.settle()
        world.store.refuses = True
        line.say(beat(1_000, ref="lost"))
        error = await line.hear("error")
        world.store.refuses = False
        line.say(beat(1_000, ref="again"))
        ack = await line.hear("ack")

    assert (error["type"], error["code"], error["ref"]) == ("error", "actor_crashed", "lost")
    assert (ack["type"], ack["metered_ms"], ack["quota"]["used_ms"]) == ("ack", 1_000, 1_000)


async def test_frames_behind_a_start_that_has_to_wait_are_served_at_once(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """A slow look-up of one task holds up neither other tasks nor checks."""
    async with open_line(world) as line:
        line.say(START)
        await line.settle()
        recall, gate = world.store.recall_task, trio.Event()

        async def slow_recall(organization_id: str, task_id: str) -> Task | None:
            await gate.wait()
            return await recall(organization_id, task_id)

        world.store.recall_task = slow_recall  # type: ignore[method-assign]
        slow = START | {"task_id": "slow"}
        line.say(slow, beat(500, "slow"), beat(1_000), {"type": "check"})
        await trio.sleep(0.1)
        before = [(one["type"], one.get("task_id")) for one in line.read()]
        gate.set()
        after = [(one["type"], one.get("task_id")) for one in await line.settle()]

    assert sorted(before, key=str) == [("ack", "t"), ("quota", None)]
    assert after == [("started", "slow"), ("ack", "slow")]


async def test_a_slot_goes_to_the_start_that_came_first_whatever_the_store_answers_first(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """Starts are looked up together and decided in their order, also behind a finish."""
    await world.add("org_2", plan="free")
    recall, asked = world.store.recall_task, 0

    async def ever_quicker_recall(organization_id: str, task_id: str) -> Task | None:
        nonlocal asked
        asked += 1
        await trio.sleep(1 - asked / 100)
        return await recall(organization_id, task_id)

    world.store.recall_task = ever_quicker_recall  # type: ignore[method-assign]
    async with open_line(world) as line:
        began_s = trio.current_time()
        line.say([START | {"task_id": f"t{n}", "agent_id": f"a{n}", "ref": n} for n in range(9)])
        answers = {one["ref"]: one["type"] for one in await line.settle()}
        took_s = trio.current_time() - began_s
    async with open_line(world, await world.key("agent", organization_id="org_2")) as line:
        line.say(START, finish(5), START | {"task_id": "u", "agent_id": "b"})
        one_slot = [one["type"] for one in await line.settle()]

    assert [answers[n] for n in range(9)] == ["started"] * 5 + ["denied"] * 4
    assert took_s < 2, "the look-ups did not wait for each other"
    assert sorted(one_slot) == ["finished", "started", "started"]


async def test_a_start_whose_turn_comes_late_asks_the_store_again(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """What was looked up a minute ago may be wrong: the task ran and ended on another stream."""
    recall = world.store.recall_task
    asked: list[str] = []

    async def slow_for_one(organization_id: str, task_id: str) -> Task | None:
        asked.append(task_id)
        found = await recall(organization_id, task_id)
        if task_id == "slow":
            await trio.sleep(4.9)
        return found

    world.store.recall_task = slow_for_one  # type: ignore[method-assign]
    async with open_line(world) as line, open_line(world) as other:
        # Twenty reports of a task that nobody knows: each is looked up, one after the other.
        line.say([beat(1, "slow")] * 20 + [START])
        await trio.sleep(1)
        other.say(START, finish(7))
        await other.hear("finished")
        await trio.sleep(80)
        await world.services.organizations.cells.tidy()  # the ended task leaves the memory
        await trio.sleep(40)
        answers = await line.settle()

    assert asked.count("t") == 3
    assert [one["type"] for one in answers if one.get("task_id") == "t"] == ["finished"]


async def test_a_stream_that_closes_leaves_nobody_waiting_for_a_turn(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """A start that was sent is decided even so; its task is found when the agent returns."""
    recall, gate = world.store.recall_task, trio.Event()

    async def first_is_stuck(organization_id: str, task_id: str) -> Task | None:
        if task_id == "t":
            await gate.wait()
        return await recall(organization_id, task_id)

    world.store.recall_task = first_is_stuck  # type: ignore[method-assign]
    async with open_line(world) as line:
        line.say(START, START | {"task_id": "u", "agent_id": "b"})
        await trio.sleep(0.1)
        assert line.read() == []
    async with open_line(world) as line:
        line.say(beat(5, "u"))
        ack = await line.hear("ack")
    gate.set()

    assert ack["metered_ms"] == 5


async def test_a_thousand_starts_in_one_frame_are_all_answered(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """A batch is answered in batches, and each answer has its ref."""
    async with open_line(world) as line:
        starts = [START | {"task_id": f"t{n}", "agent_id": f"a{n}", "ref": n} for n in range(1_000)]
        line.say(starts)
        answers = await line.settle()

    kinds = [one["type"] for one in answers]
    assert sorted(one["ref"] for one in answers) == list(range(1_000))
    assert (kinds.count("started"), kinds.count("denied")) == (5, 995)
    assert {one["ref"] for one in answers if one["type"] == "started"} == set(range(5))


async def test_only_a_client_that_sends_arrays_is_sent_arrays(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """The simplest client parses every frame as one object."""
    tasks = [f"t{n}" for n in range(5)]
    async with open_line(world) as line:
        line.say(*[START | {"task_id": task} for task in tasks])
        line.say(*[beat(1_000, task) for task in tasks])
        await line.settle()
        assert all(isinstance(frame, dict) for frame in line.frames)

        line.frames.clear()
        line.say([beat(2_000, task) for task in tasks])
        await line.settle()
        assert [len(frame) for frame in line.frames] == [5]


async def test_stop_is_pushed_when_the_quota_runs_out_without_any_heartbeat(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """The actor knows the instant; quota pushes tell of 80, 100 and 110 % on the way."""
    await world.add("org_2", plan="free")
    await world.admin(
        "POST",
        "/admin/v1/organizations/org_2/adjustments",
        content={"agent_ms": 78 * 60_000, "reason": "close to the limit"},
    )
    async with open_line(world, await world.key("agent", organization_id="org_2")) as line:
        line.say(START)
        await line.settle()
        states = []
        heard: dict[str, Any] = {}
        for minute in range(1, 40):
            await trio.sleep(60 - 0.05)
            line.say(beat(minute * 60_000))
            await trio.sleep(0.05)
            for message in line.read():
                if message["type"] == "quota":
                    states.append(message["state"])
                heard[message["type"]] = message
            if "stop" in heard:
                break
        line.say(beat(minute * 60_000 + 5))
        after = await line.settle()

    assert states == ["warning", "grace", "exceeded"]
    assert heard["stop"] == {
        "type": "stop",
        "task_id": "t",
        "code": "plan_limit_reached",
        "message": "Plan limit reached. Upgrade to continue.",
    }
    assert sorted({one["type"] for one in after}) == ["ack", "stop"]


async def test_a_stop_never_overtakes_the_started_of_its_task(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """`started` waits to be durable; a limit reached meanwhile is told right behind it."""
    await world.add("org_2", plan="free")
    await world.admin(
        "POST",
        "/admin/v1/organizations/org_2/adjustments",
        content={"agent_ms": 110 * 60_000 - 5, "reason": "five milliseconds are left"},
    )
    async with open_line(world, await world.key("agent", organization_id="org_2")) as line:
        line.say({"type": "check"})
        await line.settle()
        world.store.holds_flushes = True
        line.say(START)
        await trio.sleep(2)
        before = [one["type"] for one in line.read()]
        world.store.holds_flushes = False
        after = [one["type"] for one in await line.settle()]

    assert "stop" not in before
    assert [kind for kind in after if kind in ("started", "stop")] == ["started", "stop"]


async def test_a_suspension_stops_this_streams_tasks_and_not_others(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """`stop` goes to the connection that runs the task; the quota goes to all."""
    async with open_line(world) as runs, open_line(world) as idles:
        runs.say(START)
        await runs.settle()
        await world.admin(
            "PATCH", "/admin/v1/organizations/org_1", content={"suspended": True, "reason": "x"}
        )
        heard, other = runs.read(), idles.read()

    assert {one["type"] for one in heard} == {"quota", "stop"}
    assert [one["message"] for one in heard if one["type"] == "stop"] == [
        "Organization suspended. Contact support."
    ]
    assert {one["type"] for one in other} == {"quota"}
    assert other[0]["state"] == "suspended"


async def test_a_heartbeat_of_a_finished_task_changes_nothing_and_says_stop(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """An agent that missed its own end must not run on."""
    async with open_line(world) as line:
        line.say(START, finish(1_000))
        await line.settle()
        line.say(beat(9_000))
        answers = await line.settle()

    assert [(one["type"], one.get("elapsed_ms"), one.get("code")) for one in answers] == [
        ("stop", None, "task_closed"),
        ("ack", 1_000, None),
    ]


async def test_twenty_mistakes_in_a_row_close_the_stream_and_a_good_message_forgives(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """Each is answered first; the connection stays open until the twentieth."""
    async with open_line(world) as line:
        line.say(*["nonsense"] * 19, {"type": "check"}, *["nonsense"] * 19)
        assert line.outbox.is_open
        line.session.on_binary(b"x")
        answers = line.read()
        line.say({"type": "check"})

    assert [one["type"] for one in answers].count("error") == 39
    assert {one["code"] for one in answers if one["type"] == "error"} == {"bad_frame"}
    assert line.outbox.closing == StreamClose(code=1008, reason="too many errors in a row")


async def test_unknown_tasks_are_no_mistakes(autojump_clock: trio.abc.Clock, world: World) -> None:
    """A client that resumes a hundred tasks after a loss speaks the protocol perfectly."""
    async with open_line(world) as line:
        line.say([beat(1, f"t{n}") for n in range(100)])
        answers = await line.settle()

        assert [one["code"] for one in answers] == ["task_unknown"] * 100
        assert line.outbox.is_open


async def test_a_revoked_key_closes_its_streams_with_4401(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """Within a second, and only its own."""
    key, other = await world.key("agent"), await world.key("agent")
    async with open_line(world, key) as line, open_line(world, other) as stays:
        principal = world.services.keyring.authenticate_nowait(key)
        assert isinstance(principal, Principal)
        now_ms = world.services.clock.now_ms()
        await world.store.revoke_key("org_1", principal.key_id, at_ms=now_ms)
        await trio.sleep(1)

        assert line.outbox.closing is not None
        assert line.outbox.closing.code == 4401
        assert stays.outbox.is_open


async def test_an_ended_stream_leaves_nothing_behind_and_ends_no_task(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """Closing a connection is not a finish."""
    organizations, keyring = world.services.organizations, world.services.keyring
    async with open_line(world) as line:
        line.say(START)
        await line.settle()
        line.say(beat(1_000))
    snapshot = await organizations.snapshot("org_1")

    assert snapshot.running_tasks == 1
    assert organizations.acknowledgements.listeners("org_1") == ()
    assert keyring._on_revoked == {}


async def test_a_stream_reconnects_and_sends_its_latest_time_which_is_the_whole_resume(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """The second connection reports for a task that the first one started."""
    async with open_line(world) as line:
        line.say(START)
        await line.settle()
        line.say(beat(1_000))
    async with open_line(world) as line:
        line.say(beat(5_000), beat(3_000))
        answers = await line.settle()

    assert [(one["type"], one["elapsed_ms"]) for one in answers] == [("ack", 5_000)]


@pytest.mark.parametrize(
    ("bearer", "code"),
    [
        (None, 4401),
        ("mk_live_wrong", 4401),
        (ADMIN_KEY, 4403),
    ],
    ids=["no key", "wrong key", "an operator's key"],
)
async def test_the_gate_says_by_close_code_who_may_not_enter(
    autojump_clock: trio.abc.Clock,
    world: World,
    bearer: str | None,
    code: int,
) -> None:
    """Most clients never see the status of a failed handshake."""
    headers = [] if bearer is None else [("authorization", f"Bearer {bearer}")]
    request = StreamRequest(path="", query="", headers=headers, client_address="")
    verdict = await AgentGate(world.services, lambda: world.nursery).admit(request)

    assert isinstance(verdict, StreamRejected)
    assert verdict.close.code == code


async def test_a_reader_may_not_open_the_stream(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """Scope `agent` it takes, 4403 otherwise."""
    key = await world.key("read", "manage")
    request = StreamRequest(
        path="", query="", headers=[("authorization", f"Bearer {key}")], client_address=""
    )
    verdict = await AgentGate(world.services, lambda: world.nursery).admit(request)

    assert isinstance(verdict, StreamRejected)
    assert verdict.close.code == 4403


async def test_the_gate_answers_503_when_only_the_store_could_tell(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """The key may be good: come again."""
    key = await world.key("agent")
    world.store.is_away = True
    request = StreamRequest(
        path="", query="", headers=[("authorization", f"Bearer {key}")], client_address=""
    )
    verdict = await AgentGate(world.services, lambda: world.nursery).admit(request)

    assert isinstance(verdict, HttpRejected)
    assert verdict.status == 503
    assert json.loads(verdict.body)["code"] == "store_unavailable"
    assert dict(verdict.headers)["retry-after"] == "1"


async def test_what_fails_in_a_session_costs_that_stream_only(
    autojump_clock: trio.abc.Clock, world: World
) -> None:
    """A bug behind one stream must not end the server's tasks."""
    async with open_line(world) as line, open_line(world) as stays:

        async def fail(organization_id: str, task_id: str) -> Task | None:
            raise RuntimeError("planted")

        world.store.recall_task = fail  # type: ignore[method-assign]
        line.say(START)
        await trio.sleep(0.1)
        stays.say({"type": "check"})

        assert line.outbox.closing is not None
        assert line.outbox.closing.code == 1011
        assert [one["type"] for one in await stays.settle()] == ["quota"]


async def test_a_task_lost_a_day_ago_is_closed_to_a_new_start_too(
    autojump_clock: MockClock,
) -> None:
    """Being told `started` an agent would work on, and nothing of it could be counted."""
    async with open_world() as world:
        await world.add()
        async with open_line(world) as line:
            line.say({"type": "start", "task_id": "t", "agent_id": "a"})
            await line.hear("started")
            await trio.sleep(60 + 24 * 3_600 + 1)
            line.say({"type": "start", "task_id": "t", "agent_id": "a", "ref": "again"})
            error = await line.hear("error")

    assert (error["code"], error["ref"]) == ("task_closed", "again")


async def test_a_finish_that_claims_too_much_is_told_that_it_was_clamped(
    autojump_clock: MockClock,
) -> None:
    """As a heartbeat is; asked again, the answer is the same."""
    done = {"type": "finish", "task_id": "t", "elapsed_ms": 60_000, "outcome": "succeeded"}
    async with open_world(plausibility=Plausibility.ENFORCE) as world:
        await world.add()
        async with open_line(world) as line:
            line.say({"type": "start", "task_id": "t", "agent_id": "a"})
            line.say(done)
            finished = await line.hear("finished")
            line.say(done)
            again = await line.hear("finished")

    assert (finished["metered_ms"], finished["clamped"]) == (5_000, True)
    assert again == finished
