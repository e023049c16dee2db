"""The commands of docs/how-to/send-events.md, typed against a real service."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.integration.docs.pages import Reader, steps_of
from tests.integration.service.books import assert_books_are_right
from tests.integration.service.harness import running_meterd


pytestmark = pytest.mark.slow


async def test_the_events_page_does_what_it_says(database_url: str, data_dir: Path) -> None:
    """Who connects a gateway copies these requests."""
    steps = [
        (block, printed)
        for block, printed in steps_of("how-to/send-events.md")
        if block.language == "sh" and "METERD_KEY=mk_live_" not in block.text
    ]
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("acme", "starter")
        reader = Reader(data_dir, {"METERD_URL": service.url, "METERD_KEY": key})
        reader.port = int(service.url.rpartition(":")[2])
        for block, printed in steps:
            await trio.to_thread.run_sync(reader.do, block, printed)
        async with service.client(key) as http:
            usage = (await http.get("/v1/usage")).json()
        assert await service.stop() == 0

    assert len(steps) == 5
    assert usage["api_calls"] == {"used": 3}
    assert usage["websocket_minutes"]["used"] == 12
    await assert_books_are_right("--database-url", database_url)
