"""A person's data is exported and erased; sums, bills and the audit stay what they were."""

from __future__ import annotations

import json

import asyncpg
import pytest
import trio

from tests.conftest import execute
from tests.integration.service.books import assert_books_are_right, query
from tests.integration.service.harness import running_meterd
from tests.integration.service.stream import open_stream


pytestmark = pytest.mark.slow

PERSON = "jane@example.com"


async def test_a_person_is_exported_erased_and_found_nowhere_any_more(database_url: str) -> None:
    """Everything under the name, then nothing: in rows, tasks, memory, audit log and answers."""
    where = ("--database-url", database_url)
    async with running_meterd(*where) as service:
        key = await service.organization("acme", "enterprise")
        async with open_stream(service.stream_url, key) as stream:
            await stream.start("mine", "a", user_id=PERSON, metadata={"note": "of Jane"})
            running = await service.http.delete(f"/admin/v1/users/acme/{PERSON}")
            await stream.finish("mine", 4_000)
            await stream.start("other", "b", user_id="joe")
            await stream.finish("other", 3_000)
        before = (await service.http.get("/admin/v1/organizations/acme")).json()["quota"]
        export = await service.http.get(f"/admin/v1/users/acme/{PERSON}")
        erased = await service.http.delete(f"/admin/v1/users/acme/{PERSON}")
        again = await service.http.get(f"/admin/v1/users/acme/{PERSON}")
        after = (await service.http.get("/admin/v1/organizations/acme")).json()["quota"]
        async with service.client(key) as client:
            task = (await client.get("/v1/tasks/mine")).json()
            records = (await client.get("/v1/usage/records")).text
        refused = await service.http.delete("/admin/v1/users/nobody/x")
        audit = (await service.http.get("/admin/v1/audit?action=user.erase")).json()["data"]
        assert await service.stop() == 0

    assert (running.status_code, running.json()["code"]) == (409, "user_active")
    assert [one["task_id"] for one in export.json()["tasks"]] == ["mine"]
    assert sum(one["quantity_ms"] for one in export.json()["records"]) == 4_000
    assert export.json()["tasks"][0]["metadata"] == {"note": "of Jane"}
    assert erased.status_code == 200
    assert (again.json()["tasks"], again.json()["records"]) == ([], [])
    assert after["agent_minutes"]["used_ms"] == before["agent_minutes"]["used_ms"] == 7_000
    assert task["user_id"] == erased.json()["pseudonym"]
    assert refused.status_code == 404
    assert len(audit) == 1
    assert "joe" in records
    assert PERSON not in records + json.dumps(task) + json.dumps(audit) + "".join(service.log)
    for table in ("usage_records", "tasks", "audit_log"):
        rows = await query(database_url, f"SELECT to_jsonb(t)::text AS row FROM {table} t")  # noqa: S608
        assert not [row for row in rows if PERSON in row["row"] or "of Jane" in row["row"]]
    await assert_books_are_right(*where)


@pytest.mark.parametrize(
    "change",
    [
        "quantity_ms = 1",
        "user_id = 'somebody else'",
        "user_id = 'erased_1', metadata = '{}', quantity = 7",
        "metadata = '{}'",
    ],
)
async def test_the_ledger_refuses_every_other_change(database_url: str, change: str) -> None:
    """Even with the switch of the erasing function on: a person may go, an amount may not."""
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("acme", "enterprise")
        async with open_stream(service.stream_url, key) as stream:
            await stream.start("t", "a", user_id=PERSON, metadata={"a": 1})
            await stream.finish("t", 90_000)

    assert await _refusal(database_url, change) == "23001"


async def _refusal(database_url: str, change: str) -> str | None:
    """Return the SQLSTATE with which a change of the ledger is refused, None when it is not."""

    def attempt() -> str | None:
        try:
            execute(
                database_url,
                f"SET meterd.erasing = 'on'; UPDATE usage_records SET {change}",  # noqa: S608
            )
        except asyncpg.PostgresError as error:
            return str(error.sqlstate)
        return None

    return await trio.to_thread.run_sync(attempt)
