"""The commands of docs/how-to, typed against a real service."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.integration.docs.pages import Reader, blocks_of, steps_of
from tests.integration.service.harness import ADMIN_KEY, Service, running_meterd
from tests.integration.service.test_webhooks import customer


pytestmark = pytest.mark.slow


@pytest.fixture
async def service(database_url: str) -> AsyncIterator[Service]:
    """Run a meterd on a database of this test's own."""
    async with running_meterd("--database-url", database_url) as running:
        yield running


def reader_of(service: Service, directory: Path, **variables: str) -> Reader:
    """Return a reader in an empty directory for whom the service runs where the page says."""
    reader = Reader(directory, variables)
    reader.port = int(service.url.rpartition(":")[2])
    return reader


async def test_plain_http_meters_a_task(service: Service, data_dir: Path) -> None:
    """Who has no client library copies these requests."""
    key = await service.organization("acme", "starter")
    reader = reader_of(service, data_dir, METERD_URL=service.url, METERD_KEY=key)
    steps = [
        (block, printed)
        for block, printed in steps_of("how-to/meter-an-agent.md")
        if block.language == "sh" and "METERD_KEY=mk_live_" not in block.text
    ]

    for block, printed in steps:
        await trio.to_thread.run_sync(reader.do, block, printed)
    async with service.client(key) as http:
        task = (await http.get("/v1/tasks/letter-1")).json()

    assert len(steps) == 2
    assert (task["state"], task["metered_ms"]) == ("finished", 1500)


async def test_the_alerts_page_does_what_it_says_and_shows_what_is_sent(
    database_url: str, data_dir: Path
) -> None:
    """Who is to be told copies these requests, and writes code for the request that is shown."""
    blocks = blocks_of("how-to/receive-alerts.md")
    [example] = [json.loads(block.text) for block in blocks if block.language == "json"]
    settings = {"METERD_WEBHOOKS_PRIVATE_ALLOWED": "true"}
    async with (
        running_meterd("--database-url", database_url, settings=settings) as service,
        customer() as server,
    ):
        key = await service.organization("org_1", "starter")
        reader = reader_of(service, data_dir, METERD_URL=service.url, METERD_KEY=key)
        commands = [block for block in blocks if block.language == "sh"]
        for block in commands:
            await trio.to_thread.run_sync(reader.do, block, None)
        async with service.client(key) as http:
            [made] = (await http.get("/v1/webhook-endpoints")).json()["data"]
            kept = (await http.get("/v1/settings")).json()
            await http.post("/v1/webhook-endpoints", json={"url": server.url})
            assert (await service.adjust("org_1", 800 * 60_000)).status_code == 201
            told = await server.has("usage.threshold_reached", 3)

    assert (len(commands), made["url"], kept["overage_cap_usd"]) == (
        2,
        "https://example.com/meterd",
        "50.00",
    )
    shown = told[-1].content
    assert shown.keys() == example.keys()
    assert shown["data"].keys() == example["data"].keys()


async def test_an_operators_page_does_what_it_says(service: Service, data_dir: Path) -> None:
    """Operators copy these commands into a terminal on production."""
    (data_dir / "admin.key").write_text(ADMIN_KEY)
    reader = reader_of(service, data_dir)

    count = await trio.to_thread.run_sync(reader.follow, "how-to/operate-plans-and-contracts.md")

    assert count == sum(
        block.language == "sh" for block in blocks_of("how-to/operate-plans-and-contracts.md")
    )


def test_the_installation_page_names_working_commands(data_dir: Path) -> None:
    """The first commands of a newcomer."""
    assert Reader(data_dir).follow("how-to/install.md") == 2
