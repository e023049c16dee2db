"""Schemathesis makes requests from the OpenAPI document and holds every answer to it.

`schemathesis.toml` says what it is told of the service, `schemathesis_hooks.py` what it cannot
know. SCHEMATHESIS_EXAMPLES and SCHEMATHESIS_SEED let it look longer and elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.integration.service.books import query
from tests.integration.service.harness import ADMIN_KEY
from tests.integration.service.test_charges import charges, is_pushed, use_and_subscribe
from tests.integration.service.test_stripe import SECRET, Shop, shop


__all__ = ["shop"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),  # half a minute on a quiet machine
    # The client hands httpx its body in an outdated way.
    pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning"),
]

HERE = Path(__file__).parent
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "3")
SEED = os.environ.get("SCHEMATHESIS_SEED", "20261123")

Known = dict[str, dict[str, str]]
"""Parts of paths that name something, by who asks."""


async def furnish(shop: Shop, database_url: str) -> tuple[str, Known]:
    """Let every list of the service hold something; return a customer's key, and what is there."""
    service, http = shop.service, shop.service.http
    await use_and_subscribe(shop)
    await shop.until(lambda: is_pushed(shop))
    key = await service.organization("globex", "enterprise")
    async with service.client(key) as customer:
        for task_id in ("t-1", "t-2"):
            body = {"task_id": task_id, "agent_id": "a", "user_id": task_id.replace("t", "u")}
            assert (await customer.post("/v1/tasks", json=body)).status_code == 201
        end = {"elapsed_ms": 1, "outcome": "failed"}
        assert (await customer.post("/v1/tasks/t-2/finish", json=end)).status_code == 200
        body = {"id": "e-1", "resource_type": "api_call", "user_id": "u-2"}
        assert (await customer.post("/v1/events", json=body)).status_code == 200
        hook = await customer.post("/v1/webhook-endpoints", json={"url": "https://example.com/"})
        endpoint_id = hook.json()["id"]
        sent = await customer.post(f"/v1/webhook-endpoints/{endpoint_id}/test")
    assert (await http.post("/admin/v1/actors/organization/acme/trace")).status_code == 200
    assert (await http.post("/admin/v1/jobs/ledger_reconciliation/run")).status_code == 202
    await query(
        database_url,
        "WITH letter AS (INSERT INTO dead_letters (id, at, address, kind, error) "
        "VALUES ('dl_1', now(), 'organization/acme', 'message', 'planted')) "
        "INSERT INTO findings (id, at, kind, organization_id) VALUES ('fnd_1', now(), 'x', 'acme')",
    )
    (day,) = await query(database_url, "SELECT (now() AT TIME ZONE 'UTC')::date::text AS day")
    known = {
        "operator": {
            "organization_id": "globex",
            "user_id": "u-2",
            "key_id": await _key_id(shop, "acme"),
            "address": "organization/acme",
            "charge_id": (await charges(service))[0]["id"],
            "name": "ledger_reconciliation",
            "date": day["day"],
            "event_id": (await shop.events("done"))[0]["id"],
        },
        "customer": {
            "task_id": "t-1",
            "event_id": "e-1",
            "key_id": await _key_id(shop, "globex"),
            "endpoint_id": endpoint_id,
            "delivery_id": sent.json()["id"],
        },
    }
    return key, known


async def _key_id(shop: Shop, organization_id: str) -> str:
    path = f"/admin/v1/organizations/{organization_id}/keys"
    made = await shop.service.http.post(path, json={"scopes": ["read"]})
    key_id: str = made.json()["id"]
    return key_id


async def schemathesis(shop: Shop, report: Path, **settings: str) -> tuple[str, dict[str, Any]]:
    """Run Schemathesis on the service; return what it said and its report."""
    command = [sys.executable, "-m", "schemathesis.cli"]
    command += ["--config-file", str(HERE / "schemathesis.toml"), "run"]
    command += [f"{shop.service.url}/openapi.json", "--checks", "all", "--seed", SEED]
    command += ["--phases", "coverage,fuzzing,stateful", "--max-examples", EXAMPLES]
    command += ["--no-color", "--report", "json", "--report-json-path", str(report)]
    done = await trio.run_process(
        command,
        cwd=report.parent,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": str(HERE / "schemathesis_hooks.py"),
            "STRIPE_WEBHOOK_SECRET": SECRET,
            **settings,
        },
        stdin=subprocess.DEVNULL,
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )
    said = done.stdout.decode()
    assert await trio.Path(report).exists(), said
    return said, json.loads(await trio.Path(report).read_text())


async def test_schemathesis_finds_nothing(shop: Shop, database_url: str, tmp_path: Path) -> None:
    """Nothing sent is answered with an undocumented status, type or body, or with a 5xx.

    Each operation is asked with a key that may, without a key and with a wrong one.
    """
    key, known = await furnish(shop, database_url)

    said, report = await schemathesis(
        shop,
        tmp_path / "report.json",
        CUSTOMER_KEY=key,
        ADMIN_KEY=ADMIN_KEY,
        KNOWN=json.dumps(known),
    )
    crashes = (await shop.service.http.get("/admin/v1/crashes")).json()["data"]

    assert report["exit_code"] == 0, said
    assert report["complete"], said
    assert report["operations"]["tested"] == report["operations"]["total"], said
    assert crashes == []
    await shop.until_quiet()
