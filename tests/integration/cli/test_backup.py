"""A backup taken while agents run, restored elsewhere: nothing is counted twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from tests.integration.cli.programs import meterd
from tests.integration.service.books import assert_books_are_right
from tests.integration.service.harness import running_meterd
from tests.integration.service.stream import open_stream


pytestmark = pytest.mark.slow


async def test_restored_books_and_agents_that_send_again_count_everything_once(
    data_dir: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The running task comes back with its whole time, the finished one is not billed again."""
    old, new = data_dir, data_dir.with_name(f"{data_dir.name}-new")
    file = tmp_path / "meterd.dump"
    request.addfinalizer(lambda: shutil.rmtree(new, ignore_errors=True))
    async with running_meterd("--data-dir", str(old)) as service:
        key = await service.organization("acme", "enterprise")
        async with open_stream(service.stream_url, key) as stream:
            await stream.start("done", "a")
            await stream.finish("done", 4_000)
            await stream.start("running", "b")
            await stream.beat("running", 1_000)
            backed_up = await meterd("backup", str(file), "--data-dir", str(old))
            again = await meterd("backup", str(file), "--data-dir", str(old))
            await stream.beat("running", 2_000)
            await stream.start("later", "c")
            await stream.beat("later", 500)
    restored = await meterd("restore", str(file), "--data-dir", str(new))
    twice = await meterd("restore", str(file), "--data-dir", str(new))
    async with running_meterd("--data-dir", str(new)) as service:
        async with open_stream(service.stream_url, key) as stream:
            finished = await stream.finish("done", 4_000)
            await stream.beat("running", 2_500)
            await stream.send({"type": "heartbeat", "task_id": "later", "elapsed_ms": 700})
            unknown = await stream.expect("error")
            start = {"type": "start", "task_id": "later", "agent_id": "c", "elapsed_ms": 700}
            await stream.send(start)
            await stream.expect("started", task_id="later")
            for task_id, elapsed_ms in (("running", 3_000), ("later", 900)):
                await stream.finish(task_id, elapsed_ms)
        quota = await service.http.get("/admin/v1/organizations/acme")
        assert await service.stop() == 0

    assert backed_up.code == 0, backed_up.err
    assert file.stat().st_mode & 0o077 == 0
    assert (again.code, "exists" in again.err) == (2, True)
    assert (restored.code, restored.out) == (0, "restored; 0 differences in the books\n")
    assert (twice.code, "not empty" in twice.err) == (2, True)
    assert finished["metered_ms"] == 4_000
    assert unknown["code"] == "task_unknown"
    assert quota.json()["quota"]["agent_minutes"]["used_ms"] == 4_000 + 3_000 + 900
    await assert_books_are_right("--data-dir", str(new))


async def test_a_backup_of_a_database_by_url_goes_into_an_empty_one(
    database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    """The password is in no argument, and a database with tables is left alone."""
    file = tmp_path / "meterd.dump"
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("acme", "starter")
        async with service.client(key) as client:
            body = {"task_id": "t", "agent_id": "a"}
            assert (await client.post("/v1/tasks", json=body)).status_code == 201
            await trio.sleep(0.1)
    backed_up = await meterd("backup", str(file), "--database-url", database_url)
    refused = await meterd("restore", str(file), "--database-url", database_url)
    restored = await meterd("restore", str(file), "--database-url", empty_database_url)

    assert backed_up.code == 0, backed_up.err
    assert (refused.code, "empty one" in refused.err) == (2, True)
    assert restored.code == 0, restored.err
    await assert_books_are_right("--database-url", empty_database_url)
