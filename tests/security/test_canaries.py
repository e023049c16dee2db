"""Two tenants who write their own mark wherever they may: nobody reads the other's, anywhere.

Both do everything there is to do at once. What one of them receives - answers, frames, the live
feed, exports, webhooks - and what is kept for it - rows, its place in Redis - must not hold a
word of the other's. The log and the metrics are the operator's and hold nobody's words.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import httpx
import pytest
import trio
from websockets.trio.client import connect

from meterd.web.openapi_customer import CUSTOMER_ROUTES
from tests.integration.service.books import query
from tests.integration.service.harness import ADMIN_KEY, Service, running_meterd
from tests.integration.service.stream import Stream, open_stream
from tests.integration.service.test_redis import Redis, server
from tests.integration.service.test_webhooks import Customer, customer
from tests.security.test_every_route import path_of


__all__ = ["server"]

pytestmark = pytest.mark.slow

MARKS = ("canary-7c41-a", "canary-7c41-b")

TABLES_WITH_MARKS = {
    "api_keys",
    "audit_log",
    "tasks",
    "usage_events",
    "usage_records",
    "webhook_endpoints",
}
"""Where a tenant's words are kept: without them here, their absence elsewhere shows nothing."""


@attrs.define(eq=False)
class Tenant:
    """One of the two, with everything it has received."""

    mark: str
    key: str
    key_id: str
    hook: Customer
    seen: list[str] = attrs.Factory(list)

    @property
    def organization_id(self) -> str:
        """Return the one name that may stand anywhere: operators need it."""
        return f"org_{self.mark[-1]}"

    async def ask(self, http: httpx.AsyncClient, method: str, path: str, **options: Any) -> Any:
        """Send a request and keep all of the answer."""
        headers = {"authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        answer = await http.request(method, path, headers=headers, **options)
        self.seen += [answer.text, str(answer.headers)]
        return answer

    def hear(self, stream: Stream) -> None:
        """Keep what a stream has brought."""
        self.seen += [json.dumps(message) for message in stream.received]


async def open_tenant(service: Service, hook: Customer, mark: str) -> Tenant:
    """Make an organization whose every word is its mark."""
    organization_id = f"org_{mark[-1]}"
    body: dict[str, Any] = {"id": organization_id, "name": mark, "plan": "starter"}
    body |= {"contract": {"agent_minutes": 100}, "stripe_customer_id": f"cus_{mark}"}
    made = await service.http.post("/admin/v1/organizations", json=body)
    assert made.status_code == 201, made.text
    path = f"/admin/v1/organizations/{organization_id}"
    scopes = ["agent", "read", "manage"]
    key = (await service.http.post(f"{path}/keys", json={"scopes": scopes, "name": mark})).json()
    return Tenant(mark, key["key"], key["id"], hook)


async def work(service: Service, tenant: Tenant) -> None:
    """Do everything a customer can do, with the mark in every field that takes text."""
    mark = tenant.mark
    note = {"note": mark, mark: [mark]}
    async with (
        httpx.AsyncClient(base_url=service.url, timeout=30) as http,
        open_stream(service.stream_url, tenant.key) as stream,
        watching(service, tenant),
    ):
        hook = {"url": f"{tenant.hook.url}/{mark}", "description": mark}
        made = await tenant.ask(http, "POST", "/v1/webhook-endpoints", json=hook)
        endpoint_id = made.json()["id"]
        start = {"task_id": mark, "agent_id": mark, "user_id": mark, "metadata": note}
        headers = {"idempotency-key": mark}
        for _ in range(2):
            await tenant.ask(http, "POST", "/v1/tasks", json=start, headers=headers)
        await stream.start(f"{mark}-2", mark, user_id=mark, metadata=note)
        await stream.beat(f"{mark}-2", 50)
        event = {"id": mark, "source": mark, "resource_type": "api_call", "agent_id": mark}
        await tenant.ask(http, "POST", "/v1/events", json={**event, "metadata": note})
        await tenant.ask(http, "POST", "/v1/keys", json={"scopes": ["read"], "name": mark})
        adjustment = {"agent_ms": 92 * 60_000, "reason": mark}
        path = f"/admin/v1/organizations/{tenant.organization_id}"
        assert (await service.http.post(f"{path}/adjustments", json=adjustment)).is_success
        await tenant.hook.has("usage.threshold_reached")
        ids = {
            "task_id": mark,
            "event_id": mark,
            "key_id": tenant.key_id,
            "endpoint_id": endpoint_id,
            "delivery_id": "dlv_1",
        }
        for route in CUSTOMER_ROUTES:
            if route.method == "GET":
                await tenant.ask(http, "GET", path_of(route, ids))
        csv = {"accept": "text/csv"}
        await tenant.ask(http, "GET", "/v1/usage/records", headers=csv)
        await everything_wrong(http, tenant, stream)
        await tenant.ask(http, "POST", f"/v1/events/{mark}/void", json={"reason": mark})
        suspend = {"suspended": True, "reason": mark}
        assert (await service.http.patch(path, json=suspend)).is_success
        await tenant.ask(http, "POST", "/v1/tasks", json={"agent_id": mark})
        await stream.expect("stop", task_id=f"{mark}-2")
        await stream.finish(f"{mark}-2", 60)
        tenant.hear(stream)
    tenant.seen += [each.body.decode() + str(each.headers) for each in tenant.hook.received]


async def everything_wrong(http: httpx.AsyncClient, tenant: Tenant, stream: Stream) -> None:
    """Make mistakes with the mark in them: what is refused is not repeated in a log either."""
    mark = tenant.mark
    for body in (
        {"agent_id": mark, mark: mark},
        {"task_id": mark, "agent_id": f"{mark}-other"},
        mark,
    ):
        await tenant.ask(http, "POST", "/v1/tasks", json=body)
    for path in (f"/v1/{mark}", f"/v1/tasks/{mark}-none", f"/v1/usage?period={mark}",
                 f"/v1/tasks?{mark}={mark}", f"/{mark}/../v1/quota"):  # fmt: skip
        await tenant.ask(http, "GET", path, headers={f"x-{mark}": mark, "cookie": mark})
    await tenant.ask(http, "POST", "/api/webhooks/stripe", content=mark.encode())
    await tenant.ask(http, "GET", "/v1/quota", headers={"authorization": f"Bearer {mark}"})
    await stream.send({"type": mark, "task_id": mark, "ref": mark})
    await stream.send({"type": "heartbeat", "task_id": f"{mark}-none", "elapsed_ms": 1})
    await stream.expect("error", code="task_unknown")


@asynccontextmanager
async def watching(service: Service, tenant: Tenant) -> AsyncIterator[None]:
    """Keep what the live feed shows while the tenant works."""
    url = service.url.replace("http", "ws") + "/v1/usage/live"
    headers = {"authorization": f"Bearer {tenant.key}"}

    async with connect(url, additional_headers=headers) as socket, trio.open_nursery() as nursery:

        async def read() -> None:
            async for frame in socket:
                tenant.seen.append(str(frame))

        nursery.start_soon(read)
        yield
        nursery.cancel_scope.cancel()


async def rows_of(database_url: str, organization_id: str) -> dict[str, str]:
    """Return every row that belongs to an organization, by table."""
    tables = await query(
        database_url,
        "SELECT table_name AS name FROM information_schema.columns "
        "WHERE column_name = 'organization_id' AND table_schema = 'public'",
    )
    found = {}
    for table in tables:
        rows = await query(
            database_url,
            f"SELECT t::text AS row FROM {table['name']} t WHERE organization_id = $1",  # noqa: S608
            organization_id,
        )
        found[table["name"]] = "\n".join(row["row"] for row in rows)
    return found


async def test_nobody_reads_a_word_of_another_tenant(database_url: str, server: Redis) -> None:
    """Not in an answer, a frame, a webhook, an export, a row or Redis; the log has no words."""
    settings = {
        "METERD_DATABASE_URL": database_url,
        "METERD_REDIS_URL": server.url,
        "METERD_WEBHOOKS_PRIVATE_ALLOWED": "true",
        "METERD_LOG_LEVEL": "debug",
    }
    async with customer() as hook_a, customer() as hook_b:
        async with running_meterd(settings=settings) as service:
            tenants = [
                await open_tenant(service, hook, mark)
                for hook, mark in zip((hook_a, hook_b), MARKS, strict=True)
            ]
            async with trio.open_nursery() as nursery:
                for tenant in tenants:
                    nursery.start_soon(work, service, tenant)
            metrics = (await service.http.get("/metrics")).text
            kept = {
                tenant.mark: str(server.client().get(f"meterd:quota:{tenant.organization_id}"))
                for tenant in tenants
            }
            assert await service.stop() == 0
        log = "\n".join(service.log)

    for tenant, other in (tenants, tenants[::-1]):
        rows = await rows_of(database_url, tenant.organization_id)
        received = "\n".join(tenant.seen)
        assert other.mark not in received
        assert other.organization_id not in received
        assert other.mark not in "\n".join(rows.values())
        assert other.mark not in kept[tenant.mark]
        assert tenant.mark not in metrics
        assert tenant.mark not in log, next(x for x in service.log if tenant.mark in x)
        assert tenant.key not in log
        # And it was all there to be found.
        assert len(tenant.seen) > 60
        assert tenant.mark in received
        assert {name for name, text in rows.items() if tenant.mark in text} >= TABLES_WITH_MARKS
        assert tenant.organization_id in kept[tenant.mark]
    assert ADMIN_KEY not in log
