"""`Idempotency-Key` on the real service: sent again is answered again, and never done again."""

from __future__ import annotations

import collections

import pytest
import trio

from tests.integration.service.books import assert_books_are_right, query
from tests.integration.service.harness import running_meterd


pytestmark = pytest.mark.slow

HEADER = "idempotency-key"

HOOK = {"url": "https://example.com/hook"}


async def test_the_same_request_is_answered_again_and_another_body_is_refused(
    database_url: str,
) -> None:
    """A client that lost the answer gets it, also from a new process; what failed is not kept."""
    start = {"agent_id": "a", "metadata": {"n": 1}}
    headers = {HEADER: "k-1"}
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("acme", "free")
        other = await service.organization("other", "free")
        async with service.client(key) as http, service.client(other) as elsewhere:
            first = await http.post("/v1/tasks", json=start, headers=headers)
            again = await http.post("/v1/tasks", json=start, headers=headers)
            changed = await http.post("/v1/tasks", json={"agent_id": "b"}, headers=headers)
            theirs = await elsewhere.post("/v1/tasks", json=start, headers=headers)
            refused = await http.post("/v1/tasks", json={"agent_id": "b"}, headers={HEADER: "k-2"})
            wrong = await http.post("/v1/tasks", json={"agent": "a"}, headers={HEADER: "k-3"})
            corrected = await http.post(
                "/v1/tasks", json={"agent_id": "b"}, headers={HEADER: "k-3"}
            )
            long = await http.post("/v1/tasks", json=start, headers={HEADER: "k" * 256})
            task_id = first.json()["task_id"]
            beats = [
                await http.post(
                    f"/v1/tasks/{task_id}/heartbeat", json={"elapsed_ms": ms}, headers=headers
                )
                for ms in (1_000, 2_000)
            ]
        service.kill()
    async with (
        running_meterd("--database-url", database_url) as service,
        service.client(key) as http,
    ):
        later = await http.post("/v1/tasks", json=start, headers=headers)
        assert await service.stop() == 0

    assert (first.status_code, again.status_code, later.status_code) == (201, 201, 201)
    assert again.content == later.content == first.content
    assert [one.headers.get("idempotency-replayed") for one in (first, again, later)] == [
        None,
        "true",
        "true",
    ]
    assert again.headers["location"] == first.headers["location"]
    assert (changed.status_code, changed.json()["code"]) == (422, "idempotency_key_reused")
    assert theirs.json()["task_id"] != task_id
    assert refused.status_code == 429
    assert (wrong.status_code, corrected.json()["code"]) == (422, "agent_limit_reached")
    assert (long.status_code, long.json()["code"]) == (422, "idempotency_key_invalid")
    assert [beat.json()["task"]["elapsed_ms"] for beat in beats] == [1_000, 2_000]


async def test_parallel_requests_under_one_key_have_one_effect(database_url: str) -> None:
    """A double click is one adjustment; who comes while it is in flight is told so."""
    path = "/admin/v1/organizations/acme/adjustments"
    body = {"agent_ms": 60_000, "reason": "once"}
    told: collections.Counter[int] = collections.Counter()
    async with running_meterd("--database-url", database_url) as service:
        await service.organization("acme", "starter")
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                answer = await service.http.post(path, json=body, headers={HEADER: "once"})
                told[answer.status_code] += 1

            for _ in range(20):
                nursery.start_soon(send)
        assert await service.stop() == 0

    assert told[201] >= 1
    assert told.keys() <= {201, 409}
    assert len(await query(database_url, "SELECT id FROM usage_records")) == 1


async def test_a_request_whose_answer_was_never_kept_is_found_and_not_doubled(
    database_url: str,
) -> None:
    """A process that dies between the effect and the keeping leaves a request without an answer."""
    base = "/admin/v1/organizations"
    requests = {
        "org": (base, {"id": "second", "name": "Second", "plan": "free"}),
        "adjust": (f"{base}/acme/adjustments", {"agent_ms": 90_000, "reason": "once"}),
        "key": (f"{base}/acme/keys", {"scopes": ["read"], "name": "dashboard"}),
    }
    async with running_meterd("--database-url", database_url) as service:
        agent = await service.organization("acme", "starter")
        async with service.client(agent) as http:
            task = await http.post("/v1/tasks", json={"agent_id": "a"}, headers={HEADER: "t"})
            hook = await http.post("/v1/webhook-endpoints", json=HOOK, headers={HEADER: "w"})
        first = {
            name: await service.http.post(path, json=body, headers={HEADER: name})
            for name, (path, body) in requests.items()
        }
        service.kill()
    await query(database_url, "UPDATE idempotency_keys SET status = NULL, sealed = NULL")
    async with running_meterd("--database-url", database_url) as service:
        again = {
            name: await service.http.post(path, json=body, headers={HEADER: name})
            for name, (path, body) in requests.items()
        }
        async with service.client(agent) as http:
            same = await http.post("/v1/tasks", json={"agent_id": "a"}, headers={HEADER: "t"})
            same_hook = await http.post("/v1/webhook-endpoints", json=HOOK, headers={HEADER: "w"})
        old_key = service.client(first["key"].json()["key"])
        new_key = service.client(again["key"].json()["key"])
        async with old_key, new_key:
            dead, alive = await old_key.get("/v1/quota"), await new_key.get("/v1/quota")
        assert await service.stop() == 0

    assert {name: answer.status_code for name, answer in again.items()} == dict.fromkeys(first, 201)
    assert again["adjust"].json() == first["adjust"].json()
    assert again["org"].json()["id"] == "second"
    assert same.json()["task_id"] == task.json()["task_id"]
    assert (hook.status_code, same_hook.json()) == (201, hook.json())
    [stored] = await query(database_url, "SELECT secret FROM webhook_endpoints")
    assert hook.json()["secret"] not in stored["secret"]
    assert (dead.status_code, alive.status_code) == (401, 200)
    assert len(await query(database_url, "SELECT id FROM usage_records")) == 1
    await assert_books_are_right("--database-url", database_url)


async def test_kept_answers_are_unreadable_in_the_database(database_url: str) -> None:
    """A key is shown once and stored as a hash: a kept answer must not undo that."""
    body = {"scopes": ["read"]}
    async with running_meterd("--database-url", database_url) as service:
        await service.organization("acme", "starter")
        path = "/admin/v1/organizations/acme/keys"
        made = await service.http.post(path, json=body, headers={HEADER: "k"})
        again = await service.http.post(path, json=body, headers={HEADER: "k"})
        assert await service.stop() == 0

    [kept] = await query(database_url, "SELECT sealed FROM idempotency_keys")
    assert again.json() == made.json()
    assert made.json()["key"].encode() not in kept["sealed"]
