"""Events on the real service: booked once whatever happens, in the period of their time."""

from __future__ import annotations

import collections
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import trio

from tests.integration.service.books import assert_books_are_right, query
from tests.integration.service.harness import running_meterd


pytestmark = pytest.mark.slow

COPIES = 1_000
LANES = 50


def event(event_id: str, **fields: Any) -> dict[str, Any]:
    """Return one call."""
    return {"id": event_id, "resource_type": "api_call", **fields}


def ago(**length: float) -> str:
    """Return an instant before now, as RFC 3339."""
    return (datetime.now(UTC) - timedelta(**length)).isoformat()


async def post(http: httpx.AsyncClient, body: Any, media_type: str = "application/json") -> Any:
    """Send events and return the answer, which must be 200."""
    answer = await http.post("/v1/events", json=body, headers={"content-type": media_type})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_thousand_parallel_copies_of_one_event_are_one_row(database_url: str) -> None:
    """Retries of impatient senders are the normal case, and they come together."""
    told: collections.Counter[str] = collections.Counter()
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("acme", "starter")
        async with service.client(key) as http, trio.open_nursery() as nursery:

            async def send() -> None:
                for _ in range(COPIES // LANES):
                    answer = await post(http, event("e-1", quantity=7))
                    told[answer["items"][0]["status"]] += 1

            for _ in range(LANES):
                nursery.start_soon(send)
        async with service.client(key) as http:
            usage = (await http.get("/v1/usage")).json()
        assert await service.stop() == 0

    rows = await query(database_url, "SELECT quantity, source, kind FROM usage_records")
    assert rows == [{"quantity": 7, "source": "event", "kind": "metered"}]
    assert told == {"accepted": 1, "duplicate": COPIES - 1}
    assert usage["api_calls"] == {"used": 7}
    await assert_books_are_right("--database-url", database_url)


async def test_events_are_remembered_by_a_new_process_and_taken_back_once(
    database_url: str,
) -> None:
    """The store, not the memory, is what makes an event known for ever; a kill changes nothing."""
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("acme", "starter")
        async with service.client(key) as http:
            first = await post(http, [event("a", quantity=3), event("b"), event("a", quantity=3)])
            service.kill()
    async with (
        running_meterd("--database-url", database_url) as service,
        service.client(key) as http,
    ):
        again = await post(http, [event("a", quantity=3), event("b", quantity=2), event("c")])
        voided = await http.post("/v1/events/a/void", json={"reason": "sent by mistake"})
        repeated = await http.post("/v1/events/a/void", json={"reason": "again"})
        copy = await post(http, event("a", quantity=3))
        unknown = await http.post("/v1/events/zzz/void", json={"reason": "never sent"})
        usage = (await http.get("/v1/usage")).json()
        records = (await http.get("/v1/usage/records")).json()["data"]
        assert await service.stop() == 0

    assert [item["status"] for item in first["items"]] == ["accepted", "accepted", "duplicate"]
    assert [item["status"] for item in again["items"]] == ["duplicate", "rejected", "accepted"]
    assert again["items"][1]["error"]["code"] == "id_conflict"
    assert (voided.status_code, repeated.json()) == (200, voided.json())
    assert copy["duplicates"] == 1, "an event that was taken back does not come again"
    assert unknown.status_code == 404
    assert usage["api_calls"] == {"used": 2}
    assert sorted((row["source"], row["quantity"]) for row in records) == [
        ("event", 1),
        ("event", 1),
        ("event", 3),
        ("void", -3),
    ]
    await assert_books_are_right("--database-url", database_url)


async def test_an_event_is_booked_in_the_period_of_its_time(database_url: str) -> None:
    """An event of last month belongs to last month, even where nothing else happened then."""
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("acme", "starter")
        async with service.client(key) as http:
            told = await post(
                http,
                [
                    event("old", time=ago(days=34)),
                    event("too-old", time=ago(days=35, minutes=1)),
                    event("ahead", time=ago(minutes=-4)),
                    event("too-far", time=ago(minutes=-6)),
                    event("naive", time="2026-02-12T09:30:00"),
                    event("leap", time="2026-06-30T23:59:60Z"),
                    event("first", time="0001-01-01T00:00:00+14:00"),
                    event("last", time="9999-12-31T23:59:59-12:00"),
                ],
            )
            late = await http.post("/v1/events", json=event("x", time=ago(days=40)))
            periods = (await http.get("/v1/usage/periods")).json()["data"]
            month = (datetime.now(UTC) - timedelta(days=34)).strftime("%Y-%m")
            then = (await http.get(f"/v1/usage?period={month}")).json()
            daily = (await http.get("/v1/usage/daily?days=40")).json()["data"]
        assert await service.stop() == 0

    accepted = [item["id"] for item in told["items"] if item["status"] == "accepted"]
    assert accepted == ["old", "ahead"]
    assert (late.status_code, late.json()["errors"][0]["pointer"]) == (422, "/time")
    assert {period["billing_period"]: period["closed"] for period in periods}[month] is True
    assert then["api_calls"] == {"used": 1}
    assert (then["allowed"], then["code"]) == (False, "period_closed")
    assert sum(day["quantity"] for day in daily if day["resource_type"] == "api_call") == 2
    await assert_books_are_right("--database-url", database_url)


async def test_cloudevents_are_the_same_events(database_url: str) -> None:
    """A sender may move from one form to the other without being counted twice."""
    cloud = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/gateway/eu",
        "type": "websocket_minute",
        "subject": "agent-7",
        "time": ago(hours=1),
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "data": {"quantity": 12, "user_id": "u-1", "metadata": {"room": "a"}},
    }
    own = {
        "id": "e-1",
        "source": "/gateway/eu",
        "resource_type": "websocket_minute",
        "time": cloud["time"],
        "agent_id": "agent-7",
        "quantity": 12,
        "user_id": "u-1",
        "metadata": {"room": "a"},
    }
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("acme", "starter")
        async with service.client(key) as http:
            single = await post(http, cloud, "application/cloudevents+json")
            batch = await post(
                http, [cloud, {**cloud, "id": "e-2"}], "application/cloudevents-batch+json"
            )
            same = await post(http, own)
            wrong = await http.post(
                "/v1/events",
                json={**cloud, "id": "e-3", "specversion": "0.3"},
                headers={"content-type": "application/cloudevents+json"},
            )
            [row, _] = (await http.get("/v1/usage/records")).json()["data"]
            usage = (await http.get("/v1/usage")).json()
        assert await service.stop() == 0

    assert single["accepted"] == 1
    assert (batch["accepted"], batch["duplicates"]) == (1, 1)
    assert same["duplicates"] == 1
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/specversion")
    assert (row["agent_id"], row["user_id"], row["metadata"]) == ("agent-7", "u-1", {"room": "a"})
    assert (row["quantity"], row["quantity_ms"], row["unit_cost"]) == (12, 720_000, "0.000000")
    assert usage["websocket_minutes"] == {"used": 24, "used_ms": 1_440_000}
    await assert_books_are_right("--database-url", database_url)


async def test_another_tenants_events_are_neither_known_nor_voidable(database_url: str) -> None:
    """Ids are unique within an organization; what another one sent does not exist here."""
    async with running_meterd("--database-url", database_url) as service:
        acme = await service.organization("acme", "starter")
        other = await service.organization("other", "starter")
        async with service.client(acme) as mine, service.client(other) as theirs:
            await post(mine, event("e-1", quantity=5, user_id="secret-user"))
            told = await post(theirs, event("e-1", quantity=9))
            await post(mine, event("only-mine"))
            refused = await theirs.post("/v1/events/only-mine/void", json={"reason": "mine?"})
            rows = (await theirs.get("/v1/usage/records")).json()["data"]
            export = await theirs.get("/v1/usage/records", headers={"accept": "text/csv"})
            reader = service.client(await service.key("acme", "read"))
            async with reader:
                no_scope = await reader.post("/v1/events", json=event("e-9"))
        assert await service.stop() == 0

    assert told["accepted"] == 1
    assert refused.status_code == 404
    assert [row["quantity"] for row in rows] == [9]
    assert "secret-user" not in export.text
    assert len(export.text.splitlines()) == 2
    assert no_scope.status_code == 403
