"""One database has one meterd: the second waits and refuses, the fenced one cannot write."""

from __future__ import annotations

import signal
import sys

import pytest
import trio

from tests.integration.service.books import assert_books_are_right, query
from tests.integration.service.harness import environment, running_meterd
from tests.integration.service.stream import open_stream


pytestmark = pytest.mark.slow


async def test_a_second_meterd_waits_and_then_exits_3_with_a_clear_message(
    empty_database_url: str,
) -> None:
    """It says who owns the database and changes nothing; the first said only what it made."""
    options = ["--database-url", empty_database_url, "--owner-wait-ms", "300"]
    async with running_meterd("--database-url", empty_database_url) as service:
        said = [line for line in service.log if not line.startswith("meterd ready")]
        assert [line[:32] for line in said] == ["meterd: making the tables (migra"]
        second = await trio.run_process(
            [sys.executable, "-m", "meterd", "serve", "--bind", "127.0.0.1:0", *options],
            env=environment({}),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        assert (await service.http.get("/healthz")).status_code == 200
        assert await service.stop() == 0

    assert second.returncode == 3
    assert second.stdout == b""
    assert b"own" in second.stderr


async def test_a_meterd_that_lost_ownership_writes_nothing_and_ends(database_url: str) -> None:
    """Frozen while another takes over, it wakes up, is refused by the epoch and exits."""
    options = ("--database-url", database_url)
    async with running_meterd(*options) as old:
        key = await old.organization("acme", "pro")
        async with open_stream(old.stream_url, key) as stream:
            await stream.start("t", "a")
            await stream.beat("t", 10)
            old.process.send_signal(signal.SIGSTOP)
            async with running_meterd(*options, "--takeover") as new:
                await stream.send({"type": "heartbeat", "task_id": "t", "elapsed_ms": 20})
                old.process.send_signal(signal.SIGCONT)
                with trio.fail_after(20):
                    code = await old.process.wait()
                acked = [message for message in stream.received if message["type"] == "ack"]
                async with open_stream(new.stream_url, key) as again:
                    await again.beat("t", 30)
                    await again.finish("t", 30)
                assert await new.stop() == 0

    assert code != 0
    assert [message["elapsed_ms"] for message in acked] == [10]
    [total] = await query(
        database_url,
        "SELECT sum(quantity_ms)::bigint AS ms FROM usage_records "
        "WHERE resource_type = 'agent_minute'",
    )
    assert total == {"ms": 30}
    await assert_books_are_right(*options)
