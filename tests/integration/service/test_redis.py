"""Quotas in a real Redis that these tests start themselves: there, slow, wiped, poisoned, away.

Whatever Redis does, agents' work goes on and is acknowledged; what it missed it has soon after.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import redis
import trio

from tests.conftest import missing_service
from tests.integration.docs.pages import blocks_of
from tests.integration.service.harness import Service, running_meterd


KEY = "meterd:quota:org_1"


@attrs.define(eq=False)
class Redis:
    """A Redis on a port of its own."""

    port: int
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it empty and wait until it answers."""
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""],
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
        )
        for _ in range(200):
            with contextlib.suppress(redis.ConnectionError):
                if self.client().ping():
                    return
            self.process.poll()
        raise AssertionError("redis-server does not answer")

    def stop(self) -> None:
        """Kill it."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()

    def signal(self, number: int) -> None:
        """Stop or continue the process."""
        assert self.process is not None
        self.process.send_signal(number)

    def client(self) -> Any:
        """Return a client that waits a little for a connection."""
        retry = redis.retry.Retry(redis.backoff.ConstantBackoff(0.05), 3)
        return redis.Redis(port=self.port, retry=retry, socket_timeout=5)


@pytest.fixture
def server() -> Any:
    """Give a running Redis."""
    if shutil.which("redis-server") is None:
        missing_service("no redis-server for this test")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        found = Redis(port, Path(directory))
        found.start()
        yield found
        found.stop()


@contextlib.asynccontextmanager
async def mirrored(database_url: str, url: str) -> AsyncIterator[tuple[Service, str]]:
    """Run meterd beside a Redis, with one organization of 100 minutes; give a key, too."""
    settings = {"METERD_DATABASE_URL": database_url, "METERD_REDIS_URL": url}
    async with running_meterd(settings=settings) as service:
        yield (
            service,
            await service.organization("org_1", "starter", contract={"agent_minutes": 100}),
        )


async def until(found: Callable[[], Any], *, within_s: float = 10) -> Any:
    """Return what a look finds, once it finds something."""
    with trio.fail_after(within_s):
        while True:
            with contextlib.suppress(redis.RedisError, KeyError):
                if value := found():
                    return value
            await trio.sleep(0.05)


def minutes(client: Any, count: int) -> Callable[[], Any]:
    """Return a look for a quota with so many minutes used."""

    def look() -> Any:
        raw = client.get(KEY)
        quota = json.loads(raw) if raw else None
        return quota if quota and quota["agent_minutes"]["used"] == count else None

    return look


async def breaker(service: Service) -> Any:
    """Return the mirror's figures as an operator sees them."""
    answer = await service.http.get("/admin/v1/actors/service/mirror")
    assert answer.status_code == 200, answer.text
    return answer.json()["state"]


async def work(service: Service) -> float:
    """Book a minute, durably; return the seconds it took."""
    began = trio.current_time()
    assert (await service.adjust("org_1", 60_000)).status_code == 201
    return trio.current_time() - began


def what_the_page_decides(port: int) -> Any:
    """Run the Python of docs/how-to/read-quotas-from-redis.md; return whether org_1 may go on."""
    [block] = [b for b in blocks_of("how-to/read-quotas-from-redis.md") if b.language == "python"]
    found: dict[str, Any] = {}
    exec(block.text.replace("redis.Redis()", f"redis.Redis(port={port})"), found)  # noqa: S102  # our page
    return found["may_go_on"]


async def test_a_quota_is_a_key_with_a_time_to_live_and_a_message(
    database_url: str, server: Redis
) -> None:
    """What `GET /v1/quota` shows, for whoever reads Redis or listens to it."""
    client = server.client()
    listener = client.pubsub()
    listener.psubscribe("meterd:quota:*")
    async with mirrored(database_url, server.url) as (service, key), service.client(key) as http:
        await work(service)
        quota = await until(minutes(client, 1))
        asked = (await http.get("/v1/quota")).json()
        assert {**quota, "as_of": 0} == {**asked, "as_of": 0}
        assert 500_000 < client.pttl(KEY) <= 600_000
        assert what_the_page_decides(server.port) is True

        def heard() -> Any:
            message = listener.get_message(ignore_subscribe_messages=True, timeout=0.01)
            return message and json.loads(message["data"])["agent_minutes"]["used"] == 1

        await until(heard)
        await service.adjust("org_1", 110 * 60_000 - 60_000)
        stopped = await until(minutes(client, 110))
        assert (stopped["allowed"], stopped["code"]) == (False, "plan_limit_reached")


async def test_changes_are_coalesced(database_url: str, server: Redis) -> None:
    """A hundred changes in a second are a handful of writings."""
    async with mirrored(database_url, server.url) as (service, _):
        before = (await breaker(service))["written"]
        began = trio.current_time()
        for _ in range(50):
            await work(service)
        await until(minutes(server.client(), 50))
        seconds = trio.current_time() - began
        assert (await breaker(service))["written"] - before <= 2 + seconds * 4


async def test_work_goes_on_while_redis_is_away_and_it_catches_up(
    database_url: str, server: Redis
) -> None:
    """From the start on, too: the breaker and the metrics say so, nobody waits."""
    server.stop()
    async with mirrored(database_url, server.url) as (service, _):
        for _ in range(20):
            assert await work(service) < 2

        async def is_open() -> bool:
            return bool((await breaker(service))["breaker"] == "open")

        with trio.fail_after(20):
            while not await is_open():  # noqa: ASYNC110 - another process
                await trio.sleep(0.1)
        text = (await service.http.get("/metrics")).text
        assert "meterd_mirror_breaker_open 1" in text
        assert (await service.http.get("/readyz")).status_code == 200
        server.start()
        await until(minutes(server.client(), 20), within_s=45)
        assert (await breaker(service))["breaker"] == "closed"


async def test_a_redis_that_hangs_holds_nobody_up(database_url: str, server: Redis) -> None:
    """Frozen in the middle of the work; what changed meanwhile is there when it thaws."""
    async with mirrored(database_url, server.url) as (service, _):
        await work(service)
        await until(minutes(server.client(), 1))
        server.signal(signal.SIGSTOP)
        for _ in range(20):
            assert await work(service) < 2
        await trio.sleep(3)
        server.signal(signal.SIGCONT)
        await until(minutes(server.client(), 21), within_s=30)


async def test_a_wiped_or_poisoned_redis_is_put_right_by_the_next_change(
    database_url: str, server: Redis
) -> None:
    """What others write under our keys is overwritten, whatever its type; nothing is believed."""
    client = server.client()
    async with mirrored(database_url, server.url) as (service, key), service.client(key) as http:
        await work(service)
        await until(minutes(client, 1))
        client.flushall()
        await work(service)
        await until(minutes(client, 2))
        client.delete(KEY)
        client.lpush(KEY, "poison")
        await work(service)
        assert (await http.get("/v1/quota")).json()["agent_minutes"]["used"] == 3

        def is_text() -> Any:
            return client.type(KEY) == b"string"

        await until(is_text)
        client.set(KEY, b'{"allowed":true,"agent_minutes":{"used":-1}}')
        assert (await http.get("/v1/quota/check")).json()["agent_minutes"]["used"] == 3


async def test_a_redis_that_refuses_to_write_is_like_one_away(
    database_url: str, server: Redis
) -> None:
    """Out of memory or read-only: an error of its own, and no work of ours fails."""
    client = server.client()
    client.config_set("maxmemory", "1")
    async with mirrored(database_url, server.url) as (service, _):
        assert await work(service) < 2

        async def refused() -> bool:
            return "OutOfMemory" in ((await breaker(service))["last_error"] or "")

        with trio.fail_after(15):
            while not await refused():  # noqa: ASYNC110 - another process
                await trio.sleep(0.1)
        client.config_set("maxmemory", "0")
        await until(minutes(client, 1), within_s=45)
