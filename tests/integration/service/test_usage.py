"""Usage on the real service: live and stored figures agree, and nobody sees another's."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.integration.service.books import assert_books_are_right
from tests.integration.service.harness import running_meterd
from tests.integration.service.stream import open_stream


pytestmark = pytest.mark.slow

MINUTE_MS = 60_000
SETTINGS = {"METERD_PLAUSIBILITY": "off"}
ROUTES = (
    "/v1/usage",
    "/v1/usage/daily",
    "/v1/usage/records",
    "/v1/usage/periods",
    "/v1/invoice/preview",
)


async def get(http: httpx.AsyncClient, path: str, **headers: str) -> Any:
    """Return an answer that must be 200."""
    answer = await http.get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json() if "csv" not in headers.get("accept", "") else answer.text


async def test_every_view_of_usage_says_the_same_while_an_agent_works(database_url: str) -> None:
    """What was acknowledged is in the next answer, whether it is in a ledger row yet or not."""
    async with running_meterd("--database-url", database_url, settings=SETTINGS) as service:
        key = await service.organization("acme", "starter")
        async with open_stream(service.stream_url, key) as stream, service.client(key) as http:
            await stream.start("t-1", "a-1", metadata={"job": "=HYPERLINK(1)"}, user_id="+cmd")
            for elapsed_ms in (3 * MINUTE_MS, 1_040 * MINUTE_MS, 1_045 * MINUTE_MS + 30_000):
                await stream.beat("t-1", elapsed_ms)
                usage = await get(http, "/v1/usage")
                daily = (await get(http, "/v1/usage/daily?days=2"))["data"]
                [period] = (await get(http, "/v1/usage/periods"))["data"]
                worked = [day for day in daily if day["resource_type"] == "agent_minute"]

                assert usage["agent_minutes"]["used_ms"] == elapsed_ms
                assert period["agent_minutes"]["used_ms"] == elapsed_ms
                # What is claimed reaches back over midnight when the test runs early in the day.
                assert worked[-1]["day"] == datetime.now(UTC).date().isoformat()
                assert sum(day["quantity_ms"] for day in worked) == elapsed_ms
                assert sum(day["quantity"] for day in worked) == elapsed_ms // MINUTE_MS
            invoice = await get(http, "/v1/invoice/preview")
            quota = await get(http, "/v1/quota")
            await stream.finish("t-1", 1_045 * MINUTE_MS + 30_000)
            done = await get(http, "/v1/usage")
            final = await get(http, "/v1/invoice/preview")
            lines = await get(http, "/v1/usage/records", accept="text/csv")
            limited = await get(http, "/v1/usage/records?limit=1", accept="text/csv")
            unknown = await http.get("/v1/usage?period=1999-01")
            nonsense = await http.get("/v1/usage?period=yesterday")
        assert await service.stop() == 0

    assert {name: usage[name] for name in quota if name not in {"as_of", "agent_minutes"}} == {
        name: quota[name] for name in quota if name not in {"as_of", "agent_minutes"}
    }
    assert usage["costs"]["total_usd"] == invoice["total_usd"]
    assert done["costs"] == {
        "base_usd": "49.00",
        "overage_usd": "2.25",
        "metered_usd": "0.00",
        "total_usd": "51.25",
    }
    assert Decimal(final["total_usd"]) == Decimal("51.25")
    assert [(line["kind"], line["quantity"]) for line in final["lines"]] == [
        ("base", 1),
        ("included", 1_000),
        ("overage", 45),
    ]
    assert done["forecast"]["agent_minutes"] >= 1_045
    assert 0 <= done["period_elapsed_percent"] <= 100
    header, *rows = list(csv.reader(io.StringIO(lines)))
    named = [dict(zip(header, row, strict=True)) for row in rows]
    assert sum(int(row["quantity_ms"]) for row in named) == 1_045 * MINUTE_MS + 30_000
    assert {row["user_id"] for row in named} == {"'+cmd"}
    assert len(limited.splitlines()) == 2
    assert unknown.status_code == 404
    assert nonsense.status_code == 422
    await assert_books_are_right("--database-url", database_url)


async def test_the_time_of_a_stream_is_metered_and_costs_nothing(database_url: str) -> None:
    """The service meters its own connections; a clean stop books the hour that had begun."""
    async with running_meterd("--database-url", database_url, settings=SETTINGS) as service:
        key = await service.organization("acme", "starter")
        async with open_stream(service.stream_url, key) as stream:
            await stream.start("t", "a")
        assert await service.stop() == 0
    async with (
        running_meterd("--database-url", database_url) as service,
        service.client(key) as http,
    ):
        usage = await get(http, "/v1/usage")
        [row] = (await get(http, "/v1/usage/records?resource_type=websocket_minute"))["data"]
        assert await service.stop() == 0

    assert row["quantity_ms"] == usage["websocket_minutes"]["used_ms"] > 0
    assert (row["kind"], row["source"], row["unit_cost"]) == ("metered", "event", "0.000000")
    await assert_books_are_right("--database-url", database_url)


async def test_no_route_shows_another_tenants_usage(database_url: str) -> None:
    """A key names the organization; a cursor or a filter of another one changes nothing."""
    async with running_meterd("--database-url", database_url, settings=SETTINGS) as service:
        acme = await service.organization("acme", "starter")
        other = await service.organization("other", "starter")
        agent = await service.key("other", "agent")
        async with open_stream(service.stream_url, acme) as stream:
            for number in range(3):
                await stream.start(f"secret-task-{number}", "secret-agent")
                await stream.finish(f"secret-task-{number}", 70_000)
        async with (
            service.client(acme) as mine,
            service.client(other) as theirs,
            service.client(agent) as unable,
        ):
            page = await get(mine, "/v1/usage/records?limit=1")
            paths = [
                *ROUTES,
                f"/v1/usage/records?cursor={page['next_cursor']}",
                "/v1/usage/records?task_id=secret-task-1",
                "/v1/usage/records?agent_id=secret-agent",
            ]
            answers = [await theirs.get(path) for path in paths]
            answers.append(await theirs.get(paths[2], headers={"accept": "text/csv"}))
            refused = [(await unable.get(path)).status_code for path in ROUTES]
            nobody = [(await httpx_get(service.url + path)).status_code for path in ROUTES]
        assert await service.stop() == 0

    assert {answer.status_code for answer in answers} == {200}
    assert not any(word in answer.text for answer in answers for word in ("secret", "acme"))
    assert answers[0].json()["agent_minutes"]["used_ms"] == 0
    assert set(refused) == {403}
    assert set(nobody) == {401}


async def httpx_get(url: str) -> httpx.Response:
    """Ask without a key."""
    async with httpx.AsyncClient() as http:
        return await http.get(url)
