"""A broken service says so: in metrics, in `/readyz` or an alert, and in `meterd actors top`.

One test for each kind of trouble; each ends with the trouble over and nothing left of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
import stripe
import trio
from typed_settings import Secret

from meterd.config import Config
from meterd.core.commands import Adjust, Command, Decision
from meterd.core.decide import decide
from meterd.core.organization import OrganizationState
from meterd.setting import Address
from meterd.system import run_meterd
from meterd.testing.fault_proxy import Fault, open_fault_proxy
from tests.conftest import execute
from tests.crash.outages import embedded_url
from tests.integration.cli.programs import meterd
from tests.integration.service.harness import ADMIN_KEY, Service, running_meterd
from tests.integration.service.test_stripe import SECRET, Shop, shop
from tests.integration.service.test_webhooks import crossing, customer


__all__ = ["shop"]

pytestmark = [
    pytest.mark.slow,
    # Stripe's client hands httpx its body in an outdated way.
    pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning"),
]

WITHIN_S = 15


async def until(holds: Callable[[], Awaitable[Any]], within_s: float = WITHIN_S) -> Any:
    """Return what a look finds, once it finds something."""
    with trio.fail_after(within_s):
        while True:
            if found := await holds():
                return found
            await trio.sleep(0.1)


async def metric(http: httpx.AsyncClient, name: str) -> float:
    """Return the value of a metric, named as Prometheus shows it; 0 if it is not there."""
    text = (await http.get("/metrics")).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def top(url: str, *options: str) -> dict[str, dict[str, Any]]:
    """Return what `meterd actors top` shows, by address."""
    ran = await meterd("actors", "top", "--json", *options, settings={"METERD_URL": url})
    assert ran.code == 0, ran.err
    return {actor["address"]: actor for actor in json.loads(ran.out)}


async def missing(http: httpx.AsyncClient) -> list[str]:
    """Return what `/readyz` misses."""
    found: list[str] = (await http.get("/readyz")).json().get("missing", [])
    return found


async def use(service: Service, organization_id: str) -> int:
    """Book a minute and return the status of the answer."""
    return (await service.adjust(organization_id, 60_000)).status_code


async def test_a_slow_database_and_the_actors_that_wait_for_it(database_url: str) -> None:
    """Nothing comes back from PostgreSQL: who is stuck, on what, and since when."""
    parts = urlsplit(database_url)
    settings = {"METERD_ACK_TIMEOUT_MS": "1000"}
    async with open_fault_proxy(parts.hostname or "", parts.port or 5432) as proxy:
        account = parts.netloc.rpartition("@")[0]
        url = urlunsplit(parts._replace(netloc=f"{account}@127.0.0.1:{proxy.port}"))
        async with running_meterd("--database-url", url, settings=settings) as service:
            for name in ("awake", "asleep"):
                await service.organization(name, "enterprise")
            await service.adjust("awake", 60_000)
            await service.http.post("/admin/v1/actors/organization/asleep/passivate")
            proxy.set_fault(Fault.BLACK_HOLE)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(use, service, "awake")
                    nursery.start_soon(use, service, "asleep")
                    nursery.start_soon(use, service, "asleep")

                    async def is_seen() -> bool:
                        return await metric(service.http, 'meterd_actors{phase="loading"}') == 1

                    await until(is_seen)
                    stuck = await top(service.url, "--sort", "backlog")
                    waiting = await metric(service.http, "meterd_mailbox_depth")

                async def is_unready() -> bool:
                    return "store" in await missing(service.http)

                await until(is_unready, within_s=45)
                failing = await top(service.url, "--kind", "service")
                oldest_s = await metric(service.http, "meterd_oldest_unflushed_seconds")
                unflushed = await metric(service.http, "meterd_unflushed_facts")
            finally:
                proxy.set_fault(Fault.NONE)

            async def is_well() -> bool:
                return not await missing(service.http) and await use(service, "asleep") == 201

            await until(is_well, within_s=45)
            after = await top(service.url)

    assert stuck["organization/asleep"]["phase"] == "loading"
    assert stuck["organization/asleep"]["mailbox"]["depth"] >= 1
    assert waiting >= 1
    assert failing["service/ledger"]["unflushed"] >= 1
    assert "answer" in failing["service/ledger"]["last_error"]
    assert (oldest_s > 2, unflushed >= 1) == (True, True)
    assert after["organization/asleep"]["phase"] == "ready"
    assert after["service/ledger"]["last_error"] is None


async def test_a_decision_that_takes_too_long_is_seen_as_lateness(database_url: str) -> None:
    """One actor that computes for a second holds up everybody: the pulse tells."""

    def decide_slowly(state: OrganizationState, command: Command, now_ms: int) -> Decision:
        if state.organization_id == "slow" and isinstance(command, Adjust):
            time.sleep(1)  # the defect that is planted
        return decide(state, command, now_ms)

    config = Config(
        database_url=Secret(database_url), bind=Address("127.0.0.1", 0), admin_key=Secret(ADMIN_KEY)
    )
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[Any]) -> None:
            await run_meterd(
                config, say=lambda _: None, decide_with=decide_slowly, task_status=task_status
            )

        running = await nursery.start(run)
        async with httpx.AsyncClient(base_url=running.url, headers=headers, timeout=30) as http:
            body: dict[str, Any] = {"id": "slow", "name": "Slow", "plan": "enterprise"}
            await http.post("/admin/v1/organizations", json=body)
            adjustment = {"agent_ms": 60_000, "reason": "x"}
            await http.post("/admin/v1/organizations/slow/adjustments", json=adjustment)
            pulse = (await top(running.url, "--kind", "service"))["service/pulse"]
            late = await metric(http, "meterd_loop_lateness_seconds_count") - await metric(
                http, 'meterd_loop_lateness_seconds_bucket{le="0.5"}'
            )
        running.stop()

    assert pulse["state"]["peak_ms"] >= 500  # the pulse beats while it is held up
    assert late >= 1


async def test_a_poisoned_row_costs_its_own_organization_alone(database_url: str) -> None:
    """Terms that make no sense: one customer is quarantined and named, the others are read."""
    async with running_meterd("--database-url", database_url) as service:
        names = ["poisoned", *(f"sound-{number}" for number in range(5))]
        for name in names:
            await service.organization(name, "enterprise")
        await trio.to_thread.run_sync(
            execute,
            database_url,
            "ALTER TABLE organization_terms DISABLE TRIGGER ALL",
            "UPDATE organization_terms SET limits = '{}' WHERE organization_id = 'poisoned'",
        )
        for name in names:
            await service.http.post(f"/admin/v1/actors/organization/{name}/passivate")
        statuses: dict[str, int] = {}

        async def use_it(name: str) -> None:
            statuses[name] = await use(service, name)

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(use_it, name)

        async def is_quarantined() -> bool:
            await use(service, "poisoned")
            return await metric(service.http, 'meterd_actors{phase="quarantined"}') == 1

        await until(is_quarantined)
        shown = await top(service.url, "--sort", "strikes")
        assert await missing(service.http) == []
        assert await service.stop() == 0

    assert statuses.pop("poisoned") == 503
    assert set(statuses.values()) == {201}
    assert next(iter(shown)) == "organization/poisoned"
    assert shown["organization/poisoned"]["phase"] == "quarantined"
    assert shown["organization/poisoned"]["last_error"]
    assert shown["service/activation"]["restarts"] == 0


async def test_an_event_of_stripe_that_is_given_up(shop: Shop, database_url: str) -> None:
    """Dead in the inbox, counted, shown at its actor, and gone when an operator has mended it."""
    payload = json.dumps(
        {
            "id": "evt_dead",
            "object": "event",
            "type": "customer.subscription.updated",
            "created": int(time.time()),
            "livemode": False,
            "data": {"object": {"id": "sub_nobody_knows", "object": "subscription"}},
        }
    )
    at_s = int(time.time())
    signed = stripe.WebhookSignature._compute_signature(f"{at_s}.{payload}", SECRET)
    headers = {"stripe-signature": f"t={at_s},v1={signed}"}
    http = shop.service.http
    shop.fake.faults.away = True
    taken = await http.post("/api/webhooks/stripe", content=payload, headers=headers)
    assert taken.status_code == 200, taken.text

    async def is_dead() -> bool:
        await trio.to_thread.run_sync(
            execute,
            database_url,
            "UPDATE stripe_events SET attempts = 11, next_attempt_at = now(),"
            " received_at = now() - interval '8 days'"
            " WHERE id = 'evt_dead' AND state = 'pending'",
        )
        return await metric(http, "meterd_stripe_inbox_dead") == 1

    await until(is_dead, within_s=60)
    shop.fake.faults.away = False
    actor = (await top(shop.service.url, "--kind", "service"))["service/stripe"]
    ran = await meterd("stripe", "events", settings={"METERD_URL": shop.service.url})

    assert actor["state"]["dead"] == 1
    assert "Stripe failed to" in actor["last_error"]
    assert await metric(http, 'meterd_stripe_events_total{outcome="dead"}') == 1
    assert "evt_dead" in ran.out


async def test_an_endpoint_of_a_customer_that_is_down(database_url: str) -> None:
    """Attempts that failed are counted, and the publisher says what the customer answered."""
    settings = {"METERD_DATABASE_URL": database_url, "METERD_WEBHOOKS_PRIVATE_ALLOWED": "true"}
    async with customer() as server, running_meterd(settings=settings) as service:
        server.status = 500
        key = await service.organization("org_1", "starter", contract={"agent_minutes": 100})
        async with service.client(key) as http:
            made = await http.post("/v1/webhook-endpoints", json={"url": server.url})
            assert made.status_code == 201, made.text
        await crossing(service, "org_1")
        name = 'meterd_webhook_attempts_total{outcome="retried"}'

        async def is_counted() -> bool:
            return await metric(service.http, name) >= 1

        await until(is_counted)
        actor = (await top(service.url, "--kind", "service"))["service/publisher"]

    assert "500" in actor["last_error"]


@pytest.fixture
def small_disk(data_dir: Path) -> Iterator[Path]:
    """Give a directory on a file system of its own that holds little."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m,mode=755", "tmpfs", str(data_dir)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    yield data_dir
    subprocess.run(["umount", "--lazy", str(data_dir)], check=True)


async def test_a_full_disk(small_disk: Path) -> None:
    """PostgreSQL cannot write: unready within seconds, in its own words; room is all it takes."""
    where = small_disk / "data"
    settings = {"METERD_ACK_TIMEOUT_MS": "1000"}
    async with running_meterd("--data-dir", str(where), settings=settings) as service:
        await service.organization("acme", "enterprise")
        assert await use(service, "acme") == 201
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
        wal = "SELECT pg_logical_emit_message(false, 'fill', repeat('x', 4000000))"

        async def is_unready() -> bool:
            with contextlib.suppress(Exception):  # the server under it may be ending
                await trio.to_thread.run_sync(execute, embedded_url(where), *[wal] * 8)
            await use(service, "acme")
            return "store" in await missing(service.http)

        await until(is_unready, within_s=60)
        ledger = (await top(service.url, "--kind", "service"))["service/ledger"]
        failing_s = await metric(service.http, "meterd_store_failing_seconds")
        doctor = await meterd("doctor", "--json", "--data-dir", str(where))
        filler.unlink()

        async def is_well() -> bool:
            return not await missing(service.http) and await use(service, "acme") == 201

        await until(is_well, within_s=60)
    found = {each["what"]: each for each in json.loads(doctor.out)["findings"]}

    assert ledger["unflushed"] >= 1
    assert ledger["last_error"]
    assert failing_s > 0
    assert (doctor.code, found["disk"]["state"]) == (1, "wrong")
    assert "make room" in found["disk"]["advice"]
