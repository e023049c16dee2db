from __future__ import annotations

import pytest

from meterd.client.errors import (
    AgentLimitReached,
    Forbidden,
    PlanLimitReached,
    RequestRejected,
    Suspended,
    TaskClosed,
    TaskConflict,
    TooManyTasks,
    Unauthorized,
    Unreachable,
)
from meterd.client.policy import FailClosed, FailOpen
from meterd.client.wire import TaskRequest
from tests.unit.client.world import World


def running_world(**options: object) -> World:
    """Give a world whose task `t` was started a moment ago."""
    world = World(**options)  # type: ignore[arg-type]
    world.start()
    world.connect()
    world.flow()
    return world


def test_a_task_is_started_reported_and_settled_with_exactly_the_time_its_body_ran() -> None:
    """The ordinary life: the clock runs from the verdict to the end of the body."""
    world = World()
    world.start()
    world.advance(700)
    world.connect()
    world.advance(300)
    world.flow()
    world.advance(25_000)
    world.flow()
    world.finish(outcome="failed")
    world.flow()

    assert world.runs["t"].settled_ms == 25_000
    assert world.sent("type", "elapsed_ms", "outcome") == [
        ("start", None, None),
        ("heartbeat", 10_000, None),
        ("heartbeat", 20_000, None),
        ("finish", 25_000, "failed"),
    ]
    assert world.session.task_count == 0


def test_heartbeats_follow_the_interval_the_server_names() -> None:
    """The server may shorten it (task_timeout / 3); an own default would lose tasks."""
    world = World()
    world.book.heartbeat_interval_ms = 1_000
    world.start()
    world.connect()
    world.flow()
    for _ in range(3):
        world.advance(1_000)
        world.flow()

    assert world.sent("elapsed_ms")[1:] == [(1_000,), (2_000,), (3_000,)]


def test_a_thousand_tasks_report_in_one_frame() -> None:
    """Batching is what lets one connection carry many agents."""
    world = World()
    for number in range(1_000):
        world.start(f"t{number}")
    world.connect()
    world.flow()
    world.frames.clear()
    world.advance(10_000)

    assert len(world.frames) == 1
    assert len(world.outgoing) == 1_000


def test_a_refusal_before_the_start_is_of_the_kind_its_code_names() -> None:
    """An application reacts to the kind: it queues work for one, asks to upgrade for another."""
    world = World()
    world.book.refusal = ("plan_limit_reached", "Plan limit reached. Upgrade to continue.")
    run = world.start()
    world.connect()
    world.flow()

    assert isinstance(run.error, PlanLimitReached)
    assert not run.error.stopped
    assert run.error.quota is not None
    assert run.error.quota.agent_minutes.hard_limit == 1_100
    assert run.begun_at_ms is None
    assert world.session.task_count == 0


def test_an_unknown_refusal_is_still_a_refusal_with_its_code_and_upgrade_address() -> None:
    """A newer meterd may refuse for reasons this client has no class for."""
    world = World()
    run = world.start()
    world.connect()
    world.receive(
        {
            "type": "denied",
            "task_id": "t",
            "code": "budget_frozen",
            "message": "No.",
            "upgrade_url": "https://example.com/upgrade",
        }
    )

    assert run.error is not None
    assert (run.error.code, str(run.error)) == ("budget_frozen", "No.")
    assert getattr(run.error, "upgrade_url", None) == "https://example.com/upgrade"


def test_a_stop_is_told_once_however_often_the_server_repeats_it() -> None:
    """`stop` comes again with every heartbeat of a task that works on."""
    world = running_world()
    stop = {"type": "stop", "task_id": "t", "code": "suspended", "message": "Suspended."}
    world.receive(stop)
    first = world.runs["t"].stop
    world.receive(stop)

    assert isinstance(first, Suspended)
    assert first.stopped
    assert world.runs["t"].stop is first


def test_a_stop_that_overtakes_the_verdict_ends_the_body_as_soon_as_it_begins() -> None:
    """With a millisecond of quota left the limit is reached before `started` is durable."""
    world = World()
    world.start()
    world.connect()
    stop = {"type": "stop", "task_id": "t", "code": "plan_limit_reached", "message": "No more."}
    world.receive(stop)
    world.flow()

    assert isinstance(world.runs["t"].stop, PlanLimitReached)
    assert world.runs["t"].stop.stopped


def test_a_task_that_works_on_after_a_stop_is_still_reported() -> None:
    """Finishing a step takes time, and that time is metered like any other."""
    world = running_world()
    world.receive({"type": "stop", "task_id": "t", "code": "plan_limit_reached", "message": "."})
    world.advance(12_000)
    world.flow()
    world.finish()
    world.flow()

    assert world.book.tasks["t"].elapsed_ms == 12_000


@pytest.mark.parametrize("code", [1006, 1011, 1012, 4408, 4508])
def test_after_a_lost_connection_the_latest_cumulative_value_is_sent_at_once(code: int) -> None:
    """That is the whole resume protocol, a restart of the server included."""
    world = running_world()
    world.advance(3_000)
    world.cut(code)
    world.advance(1_000)
    world.connect()

    assert [(s.message["type"], s.message["elapsed_ms"]) for s in world.outgoing] == [
        ("heartbeat", 4_000)
    ]


def test_a_start_without_an_answer_is_said_again_word_for_word() -> None:
    """The server may have booked it: other words would be a conflict."""
    world = World()
    world.start()
    world.connect()
    world.deliver()
    world.cut()
    world.advance(1_000)
    world.connect()
    world.flow()

    assert world.runs["t"].begun_at_ms == world.now_ms
    assert world.sent("type", "elapsed_ms") == [("start", None)] * 2


def test_a_task_the_server_forgot_is_declared_again_with_what_it_ran() -> None:
    """A restored database may lack the task; the agent still holds its time."""
    world = running_world()
    world.advance(7_000)
    world.book.tasks.clear()
    world.advance(3_000)
    world.flow()
    world.finish()
    world.flow()

    assert world.sent("type", "elapsed_ms")[1:] == [
        ("heartbeat", 10_000),
        ("start", 10_000),
        ("finish", 10_000),
    ]
    assert world.runs["t"].settled_ms == 10_000


def test_a_task_id_used_before_goes_on_from_what_an_earlier_process_reported() -> None:
    """A worker that was restarted resumes its task; its values must go on growing."""
    world = running_world()
    world.advance(8_000)
    world.finish()
    world.session.finish("t", "succeeded", world.now_ms)
    earlier = world.book
    earlier.tasks["t"].outcome, earlier.tasks["t"].elapsed_ms = None, 8_000
    later = World()
    later.now_ms = world.now_ms + 60_000
    later.book = earlier
    later.start()
    later.connect()
    later.flow()
    later.advance(2_000)
    later.finish()
    later.flow()

    assert later.runs["t"].settled_ms == 10_000


def test_a_task_that_has_ended_cannot_begin_again() -> None:
    """`finished` in answer to a start: whatever ran now could not be metered."""
    world = running_world()
    world.finish()
    world.flow()
    run = world.start()
    world.flow()

    assert isinstance(run.error, TaskClosed)


def test_fail_closed_refuses_a_start_that_nobody_answered_and_frees_the_slot_later() -> None:
    """The lost `started` may have taken a slot: it is given back as soon as meterd answers."""
    world = World(unreachable=FailClosed(), start_timeout_ms=10_000)
    run = world.start()
    world.connect()
    world.deliver()
    world.cut()
    world.advance(10_000)
    begun_at_ms, error = run.begun_at_ms, run.error
    world.connect()
    world.flow()

    assert isinstance(error, Unreachable)
    assert begun_at_ms is None
    assert (world.book.tasks["t"].elapsed_ms, world.book.tasks["t"].outcome) == (0, "cancelled")
    assert world.session.task_count == 0


def test_fail_open_starts_without_an_answer_and_declares_what_it_ran_later() -> None:
    """The agent works through an outage, and none of its time is lost."""
    world = World(unreachable=FailOpen(minutes=5), start_timeout_ms=10_000)
    run = world.start()
    world.advance(10_000)
    began_local = run.is_local
    world.advance(40_000)
    world.connect()
    world.flow()
    was_local = run.is_local
    world.advance(5_000)
    world.finish()
    world.flow()

    assert (began_local, was_local) == (True, False)
    assert run.settled_ms == 45_000
    assert world.sent("type", "elapsed_ms") == [
        ("start", 40_000),
        ("finish", 45_000),
    ]


def test_a_task_that_ran_and_ended_without_meterd_is_declared_and_settled_later() -> None:
    """Nobody waits for it any more, but the organization has used the time."""
    world = World(unreachable=FailOpen())
    run = world.start()
    world.advance(10_000)
    world.advance(30_000)
    world.finish()
    world.advance(600_000)
    world.connect()
    world.flow()

    assert run.settled_ms == 30_000


def test_fail_open_stops_a_task_that_meterd_could_no_longer_meter() -> None:
    """A start may declare 5 minutes; past them the time would be free."""
    world = World(unreachable=FailOpen(minutes=5))
    run = world.start()
    world.advance(10_000)
    world.advance(299_999)
    before = run.stop
    world.advance(1)

    assert before is None
    assert isinstance(run.stop, Unreachable)


def test_a_fail_open_task_that_is_denied_when_declared_is_told_to_stop() -> None:
    """It should not have started; the body learns it as soon as meterd can say so."""
    world = World(unreachable=FailOpen())
    run = world.start()
    world.advance(20_000)
    world.book.refusal = ("agent_limit_reached", "Agent limit reached.")
    world.connect()
    world.flow()
    world.finish(outcome="cancelled")
    world.flow()

    assert isinstance(run.stop, AgentLimitReached)
    assert run.stop.stopped
    assert run.gave_up is run.stop
    assert world.session.task_count == 0


def test_a_running_task_stops_when_nothing_is_acknowledged_for_as_long_as_was_declared() -> None:
    """Enforcement is blind during an outage; how long is the application's choice."""
    world = running_world(unreachable=FailClosed(running_minutes=2))
    world.cut()
    world.advance(119_999)
    before = world.runs["t"].stop
    world.advance(1)

    assert before is None
    assert isinstance(world.runs["t"].stop, Unreachable)


def test_a_running_task_goes_on_while_acknowledgements_come() -> None:
    """Each acknowledgement begins the declared patience anew."""
    world = running_world(unreachable=FailClosed(running_minutes=1))
    for _ in range(20):
        world.advance(10_000)
        world.flow()

    assert world.runs["t"].stop is None


@pytest.mark.parametrize(("code", "kind"), [(4401, Unauthorized), (4403, Forbidden)])
def test_a_rejected_key_ends_every_task_and_all_trying(code: int, kind: type[Exception]) -> None:
    """A reconnect loop with a revoked key is an attack on one's own server."""
    world = running_world()
    starting = world.start("starting")
    world.cut(code)

    assert isinstance(world.runs["t"].stop, kind)
    assert isinstance(starting.error, kind)
    assert world.session.connect_at_ms() is None
    with pytest.raises(kind):
        world.start("later")


@pytest.mark.parametrize(("status", "kind"), [(401, Unauthorized), (403, Forbidden)])
def test_a_key_refused_in_the_handshake_is_rejected_too(status: int, kind: type[Exception]) -> None:
    """Which of the two ways the server says it makes no difference."""
    world = World(unreachable=FailOpen())
    run = world.start()
    world.refuse(status)

    assert isinstance(run.error, kind)
    assert world.session.connect_at_ms() is None


def test_reconnects_back_off_with_doubling_ceilings_and_full_jitter() -> None:
    """The middle of each range here: 250 ms, 500 ms, … and never above half of the ceiling."""
    world = World(unreachable=FailOpen())
    world.start()
    waits_ms = []
    for _ in range(8):
        world.refuse()
        connect_at_ms = world.session.connect_at_ms()
        assert connect_at_ms is not None
        waits_ms.append(connect_at_ms - world.now_ms)
        world.now_ms = connect_at_ms

    assert waits_ms == [250, 500, 1_000, 2_000, 4_000, 5_000, 5_000, 5_000]


def test_a_server_that_accepts_and_closes_does_not_reset_the_back_off() -> None:
    """Only a word of the server proves that the connection was of use."""
    world = World(unreachable=FailOpen())
    world.start()
    waits_ms = []
    for _ in range(4):
        world.connect()
        world.cut(4429)
        connect_at_ms = world.session.connect_at_ms()
        assert connect_at_ms is not None
        waits_ms.append(connect_at_ms - world.now_ms)
        world.now_ms = connect_at_ms

    assert waits_ms == [5_000] * 4


def test_a_retry_after_is_waited_for() -> None:
    """An overloaded server says how long; jitter comes on top, never instead."""
    world = World(unreachable=FailOpen())
    world.start()
    world.refuse(503, retry_after_ms=20_000)

    assert world.session.connect_at_ms() == world.now_ms + 20_250


def test_no_connection_is_opened_without_a_task() -> None:
    """A client used for quota checks only holds no stream; an idle close is no reason to return."""
    world = running_world()
    world.finish()
    world.flow()
    world.cut(4408)

    assert World().session.connect_at_ms() is None
    assert world.session.connect_at_ms() is None


def test_a_passing_error_is_tried_again_until_the_policy_decides() -> None:
    """`store_unavailable` is meterd saying: not now."""
    world = World(unreachable=FailClosed(), start_timeout_ms=10_000)
    world.book.error = "store_unavailable"
    patient, run = world.start("patient"), world.start()
    world.connect()
    world.flow()
    world.advance(2_000)
    world.book.error = None
    world.flow()
    world.book.error = "store_unavailable"
    late = world.start("late")
    world.flow()
    world.run_until(lambda: late.error is not None)

    assert patient.begun_at_ms is not None
    assert run.begun_at_ms is not None
    assert isinstance(late.error, Unreachable)
    assert late.error.code == "store_unavailable"


def test_an_error_that_will_not_pass_refuses_the_start() -> None:
    """A request the server finds wrong is not sent for ever."""
    world = World()
    world.book.error = "invalid_metadata"
    run = world.start()
    world.connect()
    world.flow()

    assert isinstance(run.error, RequestRejected)
    assert run.error.code == "invalid_metadata"


def test_a_finish_the_server_never_takes_is_given_up_and_forgotten() -> None:
    """Memory and traffic are bounded also against a server that errs for ever."""
    world = running_world()
    world.book.error = "broken"
    world.finish()
    world.run_until(lambda: world.session.task_count == 0)

    assert world.runs["t"].gave_up is not None
    assert len(world.book.received) < 20


def test_a_finish_is_repeated_while_the_error_passes_however_long() -> None:
    """An outage of the store of an hour loses nothing."""
    world = running_world()
    world.advance(5_000)
    world.book.error = "store_unavailable"
    world.finish()
    for _ in range(3_600):
        world.flow()
        world.advance(1_000)
    world.book.error = None
    world.run_until(lambda: world.session.task_count == 0)

    assert world.runs["t"].settled_ms == 5_000


def test_a_long_outage_of_the_store_does_not_use_up_the_patience_with_an_undeclared_task() -> None:
    """Only errors that waiting cannot cure count towards giving up."""
    world = World(unreachable=FailOpen())
    world.book.error = "store_unavailable"
    world.start()
    world.connect()
    for _ in range(600):
        world.flow()
        world.advance(100)
    world.finish()
    for _ in range(600):
        world.flow()
        world.advance(1_000)
    world.cut()
    world.book.error = None
    world.run_until(lambda: world.session.task_count == 0)
    run = world.runs["t"]

    assert run.gave_up is None
    assert run.settled_ms == run.ran_ms == 50_000


def test_a_conflict_of_the_first_start_is_raised() -> None:
    """The id names another task: metering under it would bill the wrong one."""
    world = running_world()
    other = World()
    other.book = world.book
    run = other.start("t", agent_id="another agent")
    other.connect()
    other.flow()

    assert isinstance(run.error, TaskConflict)


def test_a_start_given_up_before_the_verdict_frees_its_slot() -> None:
    """The application was cancelled while it waited; nothing ran."""
    world = World()
    world.start()
    world.connect()
    world.deliver()
    world.finish()
    world.flow()

    assert (world.book.tasks["t"].elapsed_ms, world.book.tasks["t"].outcome) == (0, "cancelled")
    assert world.runs["t"].begun_at_ms is None
    assert world.session.task_count == 0


def test_an_id_in_use_and_a_full_client_are_refused_on_the_spot() -> None:
    """Memory is bounded by the number of tasks, and one id is one task."""
    world = World(tasks_max=1)
    world.start()

    with pytest.raises(TaskConflict):
        world.start()
    with pytest.raises(TooManyTasks):
        world.start("another")


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "{",
        "null",
        "[[]]",
        "[" * 100_000,
        '{"type":5}',
        '{"type":"started"}',
        '{"type":"ack","task_id":"t","elapsed_ms":"many","metered_ms":null}',
        '{"type":"ack","task_id":["t"]}',
        '{"type":"started","task_id":"t","elapsed_ms":-1,"heartbeat_interval_ms":true}',
        '{"type":"error","ref":"1.x"}',
        '{"type":"error","ref":"999.1","code":"task_unknown"}',
        '{"type":"error","ref":"\\u0661.1","code":7}',
        '{"type":"quota","agent_minutes":{"used":"many"}}',
        '{"type":"denied","task_id":"gone","quota":[]}',
        '{"type":"later_invention","task_id":"t"}',
        b"\xff\xfe",
    ],
)
def test_what_cannot_be_understood_changes_nothing(frame: str | bytes) -> None:
    """A confused or newer server must not bring the application down."""
    world = running_world()
    world.session.receive(frame, world.now_ms)
    world.settle_events()
    world.advance(10_000)
    world.flow()
    world.finish()
    world.flow()

    assert world.runs["t"].settled_ms == 10_000
    assert world.runs["t"].stop is None


def test_memory_does_not_grow_with_the_tasks_that_have_ended() -> None:
    """A worker runs for months."""
    world = World()
    for number in range(2_000):
        world.start(f"t{number}")
        world.connect()
        world.flow()
        world.advance(50)
        world.finish(f"t{number}")
        world.flow()
    session = world.session
    heaps = [len(t._heap) for t in (session._deadlines, session._reports, session._urgent)]

    assert session.task_count == 0
    assert max(heaps) <= 64


@pytest.mark.parametrize(
    "request_fields",
    [
        {"task_id": "", "agent_id": "a"},
        {"task_id": "t", "agent_id": "a" * 129},
        {"task_id": "t", "agent_id": "a\n"},
        {"task_id": "t", "agent_id": "a", "metadata": {"text": "x" * 5_000}},
        {"task_id": "t", "agent_id": "a", "metadata": {"number": float("nan")}},
    ],
)
def test_a_request_meterd_could_only_refuse_is_refused_here(
    request_fields: dict[str, object],
) -> None:
    """The mistake shows where it was made, with the value in the message."""
    with pytest.raises(ValueError):  # noqa: PT011 - each message names its own field
        TaskRequest(**request_fields)  # type: ignore[arg-type]


def local_world() -> World:
    """Give a world whose task runs without meterd, its first start lost on the way."""
    world = World(unreachable=FailOpen())
    world.start()
    world.connect()
    world.outgoing.clear()
    world.advance(12_000)
    world.cut()
    world.advance(1_000)
    world.connect()
    return world


def test_a_start_that_may_have_arrived_is_probed_by_a_report_and_not_said_differently() -> None:
    """With more time on it, it would be another request under the same id: a conflict."""
    world = local_world()
    probed = [sent.message["type"] for sent in world.outgoing]
    world.flow()

    assert probed == ["heartbeat"]
    assert world.sent("type", "elapsed_ms") == [("heartbeat", 3_000), ("start", 3_000)]


def test_a_conflict_with_its_own_earlier_start_does_not_stop_a_task() -> None:
    """The first start was only slow: the server knows the task after all."""
    world = World(unreachable=FailOpen())
    run = world.start()
    world.advance(12_000)
    world.connect()
    slow = world.outgoing.pop()
    world.cut()
    world.advance(1_000)
    world.connect()
    world.deliver()
    world.answer()
    world.outgoing.insert(0, slow)
    world.flow()
    world.advance(4_000)
    world.finish()
    world.flow()

    assert world.sent("type") == [
        ("heartbeat",),
        ("start",),
        ("start",),
        ("heartbeat",),
        ("finish",),
    ]
    assert run.stop is None
    assert run.settled_ms == run.ran_ms == 7_000


def test_an_answer_to_an_older_message_is_not_taken_for_one_to_a_newer() -> None:
    """`task_unknown` about the probe says nothing once the task has been declared."""
    world = local_world()
    world.deliver()
    world.answer(again=True)
    world.deliver()
    world.answer(1)
    world.answer()
    world.advance(2_000)
    world.flow()
    world.finish()
    world.flow()

    assert world.sent("type") == [("heartbeat",), ("start",), ("finish",)]


def test_a_given_up_start_that_never_arrived_is_not_declared_for_the_sake_of_ending_it() -> None:
    """Nothing ran, and meterd knows nothing of it: both sides agree already."""
    world = World()
    world.start()
    world.connect()
    world.outgoing.clear()
    world.finish()
    world.flow()

    assert world.book.tasks == {}
    assert world.sent("type") == [("finish",)]
    assert world.session.task_count == 0
