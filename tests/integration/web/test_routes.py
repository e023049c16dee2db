"""Every route on a real application: statuses, bodies, tenancy, and what may not leak."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from meterd.core.task import Plausibility
from meterd.errors import StoreRejectedError
from tests.served import ADMIN_KEY, Seen, World, open_world


ORGANIZATIONS = "/admin/v1/organizations"
TASK = {"task_id": "t", "agent_id": "a"}
CANARY = "canary-7f3a"


@pytest.fixture
async def world(autojump_clock: MockClock) -> AsyncIterator[World]:
    """Give a meterd with two organizations."""
    async with open_world() as world:
        await world.add("org_1")
        await world.add("org_2")
        yield world


def is_problem(answer: Seen, status: int, code: str) -> bool:
    """Tell whether an answer is this problem, complete and of the right type."""
    body = answer.data
    assert answer.headers["content-type"] == "application/problem+json", answer
    assert {"type", "title", "status", "detail", "instance", "code", "request_id"} <= body.keys()
    assert body["instance"] == f"urn:uuid:{body['request_id']}"
    assert answer.headers["x-request-id"] == body["request_id"]
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code), body
    return True


async def test_a_start_is_201_then_200_and_a_different_one_409(
    autojump_clock: MockClock, world: World
) -> None:
    """Repeating is safe, also after the task has ended; reusing an id is not."""
    key = await world.key()
    body = {**TASK, "user_id": "u", "metadata": {"b": 1, "a": [1.5]}}
    first = await world.ask("POST", "/v1/tasks", key, content=body)
    again = await world.ask("POST", "/v1/tasks", key, content=body)
    await world.ask(
        "POST", "/v1/tasks/t/finish", key, content={"elapsed_ms": 1, "outcome": "cancelled"}
    )
    ended = await world.ask("POST", "/v1/tasks", key, content=body)
    other = await world.ask("POST", "/v1/tasks", key, content={**body, "agent_id": "b"})

    assert (first.status_code, again.status_code, ended.status_code) == (201, 200, 200)
    assert first.data == again.data
    assert first.data["metadata"] == {"a": [1.5], "b": 1}
    assert first.headers["location"] == "/v1/tasks/t"
    assert (ended.data["state"], ended.data["outcome"]) == ("finished", "cancelled")
    assert is_problem(other, 409, "task_conflict")


async def test_a_task_without_id_gets_one(autojump_clock: MockClock, world: World) -> None:
    """The id comes back and can be reported on."""
    key = await world.key()
    started = await world.ask("POST", "/v1/tasks", key, content={"agent_id": "a", "elapsed_ms": 5})
    task_id = started.data["task_id"]
    beat = await world.ask("POST", f"/v1/tasks/{task_id}/heartbeat", key, content={"elapsed_ms": 9})

    assert task_id.startswith("task_")
    assert beat.data["task"]["elapsed_ms"] == 9


async def test_a_heartbeat_answers_task_quota_command_and_clamped(
    autojump_clock: MockClock, world: World
) -> None:
    """On a finished task nothing changes and the command is `stop`."""
    key = await world.key()
    await world.ask("POST", "/v1/tasks", key, content=TASK)
    beat = await world.ask("POST", "/v1/tasks/t/heartbeat", key, content={"elapsed_ms": 60_000})
    smaller = await world.ask("POST", "/v1/tasks/t/heartbeat", key, content={"elapsed_ms": 10})
    done = {"elapsed_ms": 61_000, "outcome": "succeeded"}
    finished = await world.ask("POST", "/v1/tasks/t/finish", key, content=done)
    repeated = await world.ask("POST", "/v1/tasks/t/finish", key, content=done)
    late = await world.ask("POST", "/v1/tasks/t/heartbeat", key, content={"elapsed_ms": 99_000})

    assert beat.data.keys() == {"task", "quota", "command", "clamped"}
    assert (beat.data["command"], beat.data["clamped"]) == ("continue", False)
    assert beat.data["quota"]["agent_minutes"]["used"] == 1
    assert smaller.data["task"]["elapsed_ms"] == 60_000
    assert finished.data == repeated.data
    assert late.data["task"] == finished.data
    assert late.data["command"] == "stop"
    assert all("ratelimit" in answer.headers for answer in (beat, finished, late))


async def test_lists_page_by_cursor_and_filter_by_state(
    autojump_clock: MockClock, world: World
) -> None:
    """Newest start first, each task on exactly one page, reading one's own writes."""
    key = await world.key()
    for number in range(5):
        await world.ask(
            "POST", "/v1/tasks", key, content={"task_id": f"t{number}", "agent_id": "a"}
        )
        await trio.sleep(1)
    done = {"elapsed_ms": 0, "outcome": "succeeded"}
    await world.ask("POST", "/v1/tasks/t3/finish", key, content=done)
    seen, cursor = [], ""
    while True:
        page = await world.ask("GET", f"/v1/tasks?limit=2{cursor}", key)
        seen += [task["task_id"] for task in page.data["data"]]
        if page.data["next_cursor"] is None:
            break
        cursor = f"&cursor={page.data['next_cursor']}"
    running = await world.ask("GET", "/v1/tasks?state=running", key)

    assert seen == ["t4", "t3", "t2", "t1", "t0"]
    assert [task["task_id"] for task in running.data["data"]] == ["t4", "t2", "t1", "t0"]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=1e9", "limit=", "limit=%F0", "state=x", "cursor=x",
     "cursor=WzFd", "cursor=bnVsbA", "cursor=WzEsImFcdTAwMDAiXQ", "cursor=WzEsIlx1ZDgwMCJd",
     "cursor=Wzk5OTk5OTk5OTk5OTk5OTk5OSwiYSJd", "cursor=Wy0xLCJhIl0", "x=1",
     "limit=1&limit=1", "cursor=" + "A" * 5_000],
)  # fmt: skip
async def test_a_query_is_checked_like_a_body(
    autojump_clock: MockClock, world: World, query: str
) -> None:
    """A misspelt filter must not silently list everything."""
    answer = await world.ask("GET", f"/v1/tasks?{query}", await world.key())

    assert is_problem(answer, 422, "invalid_request")


async def test_another_tenants_task_is_answered_like_a_missing_one(
    autojump_clock: MockClock, world: World
) -> None:
    """Same status, same body: nobody learns which ids exist elsewhere."""
    key, other = await world.key(), await world.key(organization_id="org_2")
    await world.ask("POST", "/v1/tasks", key, content=TASK)
    for method, path, body in (
        ("GET", "", None),
        ("POST", "/heartbeat", {"elapsed_ms": 1}),
        ("POST", "/finish", {"elapsed_ms": 1, "outcome": "failed"}),
    ):
        theirs = await world.ask(method, f"/v1/tasks/t{path}", other, content=body)
        missing = await world.ask(method, f"/v1/tasks/none{path}", other, content=body)
        for answer in (theirs, missing):
            assert is_problem(answer, 404, "task_unknown")
        fixed = {"type", "title", "status", "detail", "code"}
        assert {k: theirs.data[k] for k in fixed} == {k: missing.data[k] for k in fixed}
    mine = await world.ask("POST", "/v1/tasks", other, content=TASK)
    listed = await world.ask("GET", "/v1/tasks", other)

    assert mine.status_code == 201
    assert len(listed.data["data"]) == 1


ROUTES = [
    ("GET", "/v1/quota/check", "agent"),
    ("GET", "/v1/quota", "agent"),
    ("POST", "/v1/tasks", "agent"),
    ("GET", "/v1/tasks", "read"),
    ("GET", "/v1/tasks/t", "read"),
    ("POST", "/v1/tasks/t/heartbeat", "agent"),
    ("POST", "/v1/tasks/t/finish", "agent"),
    ("POST", ORGANIZATIONS, "admin"),
    ("GET", ORGANIZATIONS, "admin"),
    ("GET", f"{ORGANIZATIONS}/org_1", "admin"),
    ("PATCH", f"{ORGANIZATIONS}/org_1", "admin"),
    ("POST", f"{ORGANIZATIONS}/org_1/keys", "admin"),
    ("GET", f"{ORGANIZATIONS}/org_1/keys", "admin"),
    ("DELETE", f"{ORGANIZATIONS}/org_1/keys/key_1", "admin"),
    ("POST", f"{ORGANIZATIONS}/org_1/adjustments", "admin"),
    ("GET", "/admin/v1/actors", "admin"),
    ("GET", "/admin/v1/actors/organization/org_1", "admin"),
]


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
async def test_no_route_answers_without_the_right_key(
    autojump_clock: MockClock, world: World, method: str, path: str, scope: str
) -> None:
    """401 without a key, 403 with another scope, before anything else is looked at."""
    wrong = await world.key("manage") if scope != "admin" else await world.key()
    body = {"nonsense": CANARY} if method in ("POST", "PATCH") else None
    nobody = await world.ask(method, path, content=body)
    somebody = await world.ask(method, path, "mk_live_" + "x" * 38, content=body)
    forbidden = await world.ask(method, path, wrong, content=body)

    assert is_problem(nobody, 401, "unauthorized")
    assert is_problem(somebody, 401, "unauthorized")
    assert is_problem(forbidden, 403, "wrong_scope")
    if scope != "admin":
        assert is_problem(
            await world.ask(method, path, ADMIN_KEY, content=body), 403, "wrong_scope"
        )


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", f"/{CANARY}", 404, "not_found"),
        ("GET", "/v1/quota/check/", 404, "not_found"),
        ("GET", "/v1//quota/check", 404, "not_found"),
        ("GET", "//v1/quota/check", 404, "not_found"),
        ("GET", "//admin/v1/organizations", 404, "not_found"),
        ("GET", "/admin/v1/organizations/", 404, "not_found"),
        ("DELETE", "/v1/quota/check", 405, "method_not_allowed"),
        ("PUT", "/v1/tasks", 405, "method_not_allowed"),
        ("GET", f"/v1/tasks/{CANARY}/heartbeat", 405, "method_not_allowed"),
        ("GET", f"/v1/tasks/{CANARY}%00", 404, "task_unknown"),
        ("GET", f"/v1/tasks/{CANARY}/x", 404, "not_found"),
        ("POST", f"/v1/tasks?{CANARY}=1", 422, "invalid_request"),
    ],
)
async def test_what_is_not_there_is_a_problem_that_repeats_nothing(
    autojump_clock: MockClock, world: World, method: str, path: str, status: int, code: str
) -> None:
    """No path, no redirect, no page of the framework."""
    answer = await world.ask(method, path, await world.key())

    assert is_problem(answer, status, code)
    assert CANARY not in answer.raw.decode() + str(answer.headers)
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/tasks/t/heartbeat", {"POST", "OPTIONS"}),
        ("GET", "/v1/tasks/t/finish", {"POST", "OPTIONS"}),
        ("DELETE", "/v1/tasks", {"GET", "HEAD", "POST", "OPTIONS"}),
    ],
)
async def test_allow_names_what_this_very_path_takes(
    autojump_clock: MockClock, world: World, method: str, path: str, allowed: set[str]
) -> None:
    """A bare slash ends a task's id, an encoded one is part of it."""
    answer = await world.ask(method, path, await world.key())

    assert is_problem(answer, 405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == allowed
    told = await world.ask("OPTIONS", path)
    assert set(told.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("task_id", [".", ".."])
async def test_a_task_is_not_called_like_a_step_in_a_path(
    autojump_clock: MockClock, world: World, task_id: str
) -> None:
    """Clients and proxies would resolve it, and report on something else."""
    body = {"task_id": task_id, "agent_id": "a"}
    answer = await world.ask("POST", "/v1/tasks", await world.key(), content=body)

    assert is_problem(answer, 422, "invalid_request")
    assert answer.data["errors"][0]["pointer"] == "/task_id"


async def test_a_finish_that_claims_too_much_says_that_it_was_clamped(
    autojump_clock: MockClock,
) -> None:
    """Otherwise a customer would look for the missing time in vain; asked again, it is the same."""
    async with open_world(plausibility=Plausibility.ENFORCE) as world:
        await world.add()
        key = await world.key()
        await world.ask("POST", "/v1/tasks", key, content=TASK)
        done = {"elapsed_ms": 60_000, "outcome": "succeeded"}
        finished = await world.ask("POST", "/v1/tasks/t/finish", key, content=done)
        again = await world.ask("POST", "/v1/tasks/t/finish", key, content=done)
        shown = await world.ask("GET", "/v1/tasks/t", key)

    assert (finished.data["elapsed_ms"], finished.data["clamped"]) == (5_000, True)
    assert again.data == finished.data
    assert "clamped" not in shown.data


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{}", {}, 415, "unsupported_media_type"),
        (b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b"{}", {"content-type": "application/json; charset=latin-1"}, 415,
         "unsupported_media_type"),
        (b"{}", {"content-type": "application/json", "content-encoding": "gzip"}, 415,
         "unsupported_media_type"),
        (b"", {"content-type": "application/json"}, 400, "bad_json"),
        (b'{"agent_id":"\xff"}', {"content-type": "application/json"}, 400, "bad_json"),
        (b"[" * 100_000, {"content-type": "application/json"}, 400, "bad_json"),
        (b"x" * 1_048_577, {"content-type": "application/json"}, 413, "body_too_large"),
        (b"[]", {"content-type": "application/json"}, 422, "invalid_request"),
        (b'{"agent_id":"a","canary-7f3a":"canary-7f3a"}',
         {"content-type": "Application/JSON; charset=UTF-8"}, 422, "invalid_request"),
    ],
    ids=range(10),
)  # fmt: skip
async def test_a_body_is_refused_with_the_right_status(
    autojump_clock: MockClock,
    world: World,
    body: bytes,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    """415, 400, 413 and 422 are different mistakes of different people."""
    key = await world.key()
    answer = await world.ask("POST", "/v1/tasks", key, body=body, headers=headers)

    assert is_problem(answer, status, code)
    assert CANARY not in answer.raw.decode()


async def test_what_nobody_expected_is_a_500_without_a_trace(
    autojump_clock: MockClock, world: World
) -> None:
    """The log has the trace, the client a request id to name it by."""

    def fail(organization_id: str, agent_id: str | None = None) -> None:
        raise RuntimeError(CANARY)

    world.services.organizations.view_nowait = fail  # type: ignore[method-assign]
    answer = await world.ask("GET", "/v1/quota", await world.key())

    assert is_problem(answer, 500, "internal_error")
    assert CANARY not in answer.raw.decode()


async def test_what_the_store_refuses_is_logged_under_the_request_id(
    autojump_clock: MockClock, world: World
) -> None:
    """A 500 that leaves nothing in the log cannot be mended by anybody."""

    def fail(organization_id: str, agent_id: str | None = None) -> None:
        raise StoreRejectedError("read", "no such column")

    key = await world.key()
    world.services.organizations.view_nowait = fail  # type: ignore[method-assign]
    with capture_logs() as logged:
        answer = await world.ask("GET", "/v1/quota", key)

    assert is_problem(answer, 500, "internal_error")
    [entry] = [entry for entry in logged if entry["event"] == "request_failed"]
    assert (entry["log_level"], entry["request_id"]) == ("error", answer.data["request_id"])
    assert "no such column" in str(entry["exc_info"])
    assert "no such column" not in answer.raw.decode()


async def test_organizations_are_created_once_listed_and_described(
    autojump_clock: MockClock, world: World
) -> None:
    """409 for a taken id and for a taken customer; unknown ids are 404."""
    new = {"id": "org_3", "name": "Three", "plan": "enterprise", "stripe_customer_id": "cus_1"}
    new["contract"] = {"overage_usd_per_minute": "0.04", "agents": None}  # type: ignore[assignment]
    created = await world.admin("POST", ORGANIZATIONS, content=new)
    again = await world.admin("POST", ORGANIZATIONS, content=new)
    taken = await world.admin("POST", ORGANIZATIONS, content={**new, "id": "org_4"})
    page = await world.admin("GET", f"{ORGANIZATIONS}?limit=2")
    rest = await world.admin("GET", f"{ORGANIZATIONS}?limit=2&cursor={page.data['next_cursor']}")
    shown = await world.admin("GET", f"{ORGANIZATIONS}/org_3")

    assert created.status_code == 201
    assert created.data["contract"] == {"agents": None, "overage_usd_per_minute": "0.04"}
    assert is_problem(again, 409, "organization_exists")
    assert is_problem(taken, 409, "customer_taken")
    assert [one["id"] for one in page.data["data"] + rest.data["data"]] == [
        "org_1",
        "org_2",
        "org_3",
    ]
    assert (shown.data["quota"]["plan"], shown.data["quota"]["state"]) == (
        "enterprise",
        "unlimited",
    )
    assert is_problem(
        await world.admin("GET", f"{ORGANIZATIONS}/none"), 404, "organization_unknown"
    )


async def test_a_patch_changes_what_it_names_and_is_audited(
    autojump_clock: MockClock, world: World
) -> None:
    """A contract replaces the whole contract, null removes it; actor and reason are kept."""
    path = f"{ORGANIZATIONS}/org_1"
    first = await world.admin(
        "PATCH", path, content={"contract": {"agents": 9, "grace_percent": 0}}
    )
    second = await world.admin("PATCH", path, content={"contract": {"agents": 8}, "plan": "pro"})
    third = await world.admin("PATCH", path, content={"contract": None, "reason": "renegotiated"})

    assert first.data["limits"]["hard_limit_minutes"] == 1_000
    assert second.data["contract"] == {"agents": 8}
    assert (second.data["plan"], second.data["limits"]["agent_minutes"]) == ("pro", 10_000)
    assert third.data["contract"] == {}
    audits = [audit for _, audit in world.store.database.audits.values()]
    assert [(audit.actor, audit.reason) for audit in audits][-1] == (
        "key_bootstrap",
        "renegotiated",
    )


async def test_a_suspension_needs_a_reason_and_can_be_lifted(
    autojump_clock: MockClock, world: World
) -> None:
    """It works at once, for checks and for starts."""
    path, key = f"{ORGANIZATIONS}/org_1", await world.key()
    silent = await world.admin("PATCH", path, content={"suspended": True})
    empty = await world.admin("PATCH", path, content={})
    await world.admin("PATCH", path, content={"suspended": True, "reason": "fraud"})
    refused = await world.ask("POST", "/v1/tasks", key, content=TASK)
    await world.admin("PATCH", path, content={"suspended": False, "reason": "cleared"})
    started = await world.ask("POST", "/v1/tasks", key, content=TASK)

    assert is_problem(silent, 422, "invalid_request")
    assert is_problem(empty, 422, "invalid_request")
    assert is_problem(refused, 402, "suspended")
    assert started.status_code == 201


async def test_keys_are_shown_once_and_revoked_at_once(
    autojump_clock: MockClock, world: World
) -> None:
    """The list has last4 and never the key; a revoked key gets 401 in the next request."""
    path = f"{ORGANIZATIONS}/org_1/keys"
    made = await world.admin("POST", path, content={"scopes": ["read"], "name": "dashboard"})
    key, key_id = made.data["key"], made.data["id"]
    works = await world.ask("GET", "/v1/quota", key)
    listed = await world.admin("GET", path)
    elsewhere = await world.admin("DELETE", f"{ORGANIZATIONS}/org_2/keys/{key_id}")
    gone = [await world.admin("DELETE", f"{path}/{key_id}") for _ in range(2)]
    refused = await world.ask("GET", "/v1/quota", key)

    assert (made.status_code, works.status_code) == (201, 200)
    assert key not in listed.raw.decode()
    assert listed.data["data"][0]["last4"] == key[-4:] == made.data["last4"]
    assert is_problem(elsewhere, 404, "key_unknown")
    assert [answer.status_code for answer in gone] == [204, 204]
    assert is_problem(refused, 401, "unauthorized")


async def test_adjustments_answer_their_rows_or_why_not(
    autojump_clock: MockClock, world: World
) -> None:
    """Split at the line of the plan, priced to six decimals, bounded both ways."""
    path = f"{ORGANIZATIONS}/org_1/adjustments"
    added = await world.admin("POST", path, content={"agent_ms": 1_001 * 60_000, "reason": "r"})
    credit = await world.admin("POST", path, content={"agent_ms": -1_002 * 60_000, "reason": "r"})
    debit = await world.admin("POST", path, content={"agent_ms": 100 * 60_000, "reason": "r"})
    period = await world.admin(
        "POST", path, content={"agent_ms": 1, "reason": "r", "period": "1999-01"}
    )

    assert added.status_code == 201
    rows = [(row["kind"], row["quantity"], row["total_cost"]) for row in added.data["data"]]
    assert rows == [("included", 1_000, "0.000000"), ("overage", 1, "0.050000")]
    assert is_problem(credit, 422, "credit_exceeds_usage")
    assert is_problem(debit, 422, "exceeds_hard_limit")
    assert is_problem(period, 422, "invalid_request")


async def test_probes_say_what_is_missing(autojump_clock: MockClock, world: World) -> None:
    """Liveness is not readiness: a store that is away makes meterd unready, not dead."""
    key = await world.key()
    ready = await world.ask("GET", "/readyz")
    await world.ask("GET", "/v1/quota", key)
    world.store.is_away = True
    start = await world.ask("POST", "/v1/tasks", key, content=TASK)
    await trio.sleep(3)
    unready, alive = await world.ask("GET", "/readyz"), await world.ask("GET", "/healthz")

    assert (ready.status_code, alive.status_code) == (200, 200)
    assert is_problem(start, 503, "store_unavailable")
    assert start.headers["retry-after"] == "1"
    assert (unready.status_code, unready.data["missing"]) == (503, ["store"])
