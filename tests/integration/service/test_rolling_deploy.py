"""A deploy under load: the old process stops, the next one takes over, nobody loses anything."""

from __future__ import annotations

import signal
import socket

import pytest
import trio

import meterd.client.trio as meterd_trio
from tests.integration.service.books import assert_books_are_right, query
from tests.integration.service.harness import running_meterd


pytestmark = pytest.mark.slow

TAKEOVER_S_MAX = 2.0
AGENTS = 8


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_the_next_instance_takes_over_and_clients_only_reconnect(database_url: str) -> None:
    """The new process waits for the lock; from SIGTERM to its first answer under two seconds.

    Agents of the client library run through it. Each ends with everything it ran metered, and
    none of them saw an error.
    """
    where = ("--database-url", database_url)
    port = free_port()
    ended: list[tuple[int, int]] = []
    async with running_meterd(*where, port=port) as old:
        key = await old.organization("acme", "enterprise")
        half_way = trio.Event()
        finish = trio.Event()
        begun = 0

        async def agent(client: meterd_trio.Meterd, number: int) -> None:
            nonlocal begun
            async with client.task(agent_id=f"agent-{number}") as task:
                begun += 1
                if begun == AGENTS:
                    half_way.set()
                await finish.wait()
            assert task.is_settled
            ended.append((task.elapsed_ms, task.metered_ms))

        async with meterd_trio.Meterd(old.url, key) as client, trio.open_nursery() as agents:
            for number in range(AGENTS):
                agents.start_soon(agent, client, number)
            await half_way.wait()
            async with trio.open_nursery() as nursery:

                async def next_instance() -> None:
                    options = (*where, "--owner-wait-ms", "60000")
                    async with running_meterd(*options, port=port) as new:
                        took_s.append(trio.current_time() - began_s[0])
                        assert (await new.http.get("/readyz")).status_code == 200
                        await trio.sleep(0.5)
                        finish.set()
                        with trio.fail_after(30):
                            while len(ended) < AGENTS:  # noqa: ASYNC110  # several must end
                                await trio.sleep(0.05)
                        assert await new.stop() == 0

                took_s: list[float] = []
                began_s: list[float] = []
                nursery.start_soon(next_instance)
                with trio.fail_after(30):
                    while not await _somebody_waits(database_url):  # noqa: ASYNC110
                        await trio.sleep(0.05)
                began_s.append(trio.current_time())
                old.process.send_signal(signal.SIGTERM)
                with trio.fail_after(20):
                    code = await old.process.wait()

    assert code == 0
    assert took_s[0] < TAKEOVER_S_MAX
    assert len(ended) == AGENTS
    assert all(metered_ms == elapsed_ms > 500 for elapsed_ms, metered_ms in ended)
    [total] = await query(
        database_url,
        "SELECT sum(quantity_ms)::bigint AS ms FROM usage_records"
        " WHERE resource_type = 'agent_minute'",
    )
    assert total["ms"] == sum(metered_ms for _, metered_ms in ended)
    await assert_books_are_right(*where)


async def _somebody_waits(database_url: str) -> bool:
    """Tell whether a second session of an owner is there, trying for the lock."""
    [found] = await query(
        database_url,
        "SELECT count(*) AS n FROM pg_stat_activity"
        " WHERE application_name = 'meterd owner' AND datname = current_database()",
    )
    return int(found["n"]) >= 2


async def test_a_service_manager_hears_ready_and_stopping(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What `Type=notify` waits for, from a real process."""
    path = str(tmp_path_factory.mktemp("notify") / "socket")
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        await listener.bind(path)
        settings = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "3000000"}
        async with running_meterd("--database-url", database_url, settings=settings) as service:
            with trio.fail_after(20):
                first = await listener.recv(4_096)
                while not first.startswith(b"READY=1"):
                    first = await listener.recv(4_096)
                fed = await listener.recv(4_096)
            service.process.send_signal(signal.SIGTERM)
            with trio.fail_after(20):
                last = fed
                while not last.startswith(b"STOPPING=1"):
                    last = await listener.recv(4_096)
                assert await service.process.wait() == 0

    assert fed == b"WATCHDOG=1"
