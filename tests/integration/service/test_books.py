"""The books of a running meterd: jobs, reports and reconciliation over HTTP, with real agents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import trio

from tests.conftest import execute
from tests.integration.service.harness import Service, running_meterd


async def make_task(service: Service, key: str, task_id: str, *, finish: bool) -> None:
    """Run a task that says it had run for five minutes when it started."""
    async with service.client(key) as client:
        body = {"task_id": task_id, "agent_id": "agent-1", "elapsed_ms": 300_000}
        started = await client.post("/v1/tasks", json=body)
        assert started.status_code == 201, started.text
        if finish:
            end = {"elapsed_ms": 300_000, "outcome": "succeeded"}
            ended = await client.post(f"/v1/tasks/{task_id}/finish", json=end)
            assert ended.status_code == 200, ended.text


async def ended_run(service: Service, name: str) -> Mapping[str, Any]:
    """Start a job and return its run when it is over."""
    begun = await service.http.post(f"/admin/v1/jobs/{name}/run")
    assert begun.status_code == 202, begun.text
    with trio.fail_after(30):
        while True:
            answer = await service.http.get(f"/admin/v1/jobs/{name}/runs")
            [run] = [run for run in answer.json()["data"] if run["id"] == begun.json()["id"]]
            if run["outcome"] != "running":
                return dict(run)
            await trio.sleep(0.05)


async def reconciled(service: Service, *, is_dry: bool) -> Mapping[str, Any]:
    """Return what a reconciliation finds."""
    params = {"dry_run": str(is_dry).lower()}
    answer = await service.http.post("/admin/v1/reconcile/ledger", params=params)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_the_books_of_a_running_meterd(database_url: str, tmp_path: Path) -> None:
    """Every job runs, live actors agree with what is stored, and tampering is told by name."""
    reports = tmp_path / "reports"
    options = ("--database-url", database_url, "--reports-dir", str(reports))
    async with running_meterd(*options) as service:
        key = await service.organization("org_1", "starter", name="| <b> =1+1")
        await make_task(service, key, "done", finish=True)
        await make_task(service, key, "running", finish=False)

        listed = (await service.http.get("/admin/v1/jobs")).json()["data"]
        for job in listed:
            run = await ended_run(service, job["name"])
            assert run["outcome"] == "succeeded", run
        assert len(list(reports.glob("daily-revenue-*.md"))) == 1

        before = await reconciled(service, is_dry=True)
        assert (before["differences"], before["live"]) == ([], 1)
        await trio.to_thread.run_sync(
            execute, database_url, "UPDATE subscription_usage SET recorded_ms = recorded_ms - 1"
        )
        found = await reconciled(service, is_dry=False)
        kinds = {each["kind"] for each in found["differences"]}
        assert kinds >= {"ledger_difference", "live_difference"}
        await check_findings(service.http, "live_difference")
        await check_reports(service.http)


async def check_findings(http: httpx.AsyncClient, kind: str) -> None:
    """Expect the difference, with its organization, period and amount."""
    answer = await http.get("/admin/v1/findings", params={"kind": kind, "limit": 1})
    [finding] = answer.json()["data"]
    assert finding["organization_id"] == "org_1"
    assert finding["detail"]["what"] == "recorded_ms"
    assert finding["detail"]["amount"] == "1"


async def check_reports(http: httpx.AsyncClient) -> None:
    """Expect today's figures in both forms, and none of days that have not begun."""
    live = (await http.get("/admin/v1/revenue")).json()
    assert live["mrr_usd"] == "0.00"
    day = live["as_of"][:10]
    as_json = await http.get(f"/admin/v1/reports/{day}")
    assert as_json.json()["facts"]["activity"]["agent_minutes"] >= 5
    text = await http.get(f"/admin/v1/reports/{day}", headers={"accept": "text/markdown"})
    assert text.headers["content-type"] == "text/markdown; charset=utf-8"
    assert text.text.startswith(f"# Daily revenue, {day}")
    assert "<b>" not in text.text
    for unknown in ("2999-01-01", "yesterday", "2026-02-30"):
        assert (await http.get(f"/admin/v1/reports/{unknown}")).status_code == 404
    none = await http.get("/admin/v1/revenue", params={"date": "2999-01-01"})
    nonsense = await http.get("/admin/v1/revenue", params={"date": "yesterday"})
    assert (none.status_code, nonsense.status_code) == (404, 422)
    assert (await http.post("/admin/v1/jobs/nothing/run")).status_code == 404
    first = (await http.get("/admin/v1/jobs", params={"limit": 1})).json()
    others = (await http.get("/admin/v1/jobs", params={"cursor": first["next_cursor"]})).json()
    whole = (await http.get("/admin/v1/jobs")).json()
    assert first["data"] + others["data"] == whole["data"]
    assert others["next_cursor"] is None
    for no_name in ("findings?kind", "findings?organization_id", "charges?organization_id"):
        assert (await http.get(f"/admin/v1/{no_name}=%00")).status_code == 422


async def test_an_organizations_key_sees_nothing_of_the_books(database_url: str) -> None:
    """Revenue is nobody's business but the operator's."""
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("org_1", "free")
        async with service.client(key) as client:
            for path in ("jobs", "findings", "revenue", "reports/2026-02-20", "jobs/x/runs"):
                assert (await client.get(f"/admin/v1/{path}")).status_code == 403, path
            for path in ("jobs/daily_report/run", "reconcile/ledger"):
                assert (await client.post(f"/admin/v1/{path}")).status_code == 403, path
