"""kill -9 at named points: of a flush, a period's end, a migration, a push, a delivery."""

from __future__ import annotations

import signal
import subprocess
import sys
from random import Random

import pytest
import stripe
import trio

from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.postgres.migrate import Migrations
from meterd.testing.fake_stripe import open_fake_stripe
from tests.crash.failing_meterd import POINTS
from tests.crash.findings import Findings
from tests.crash.kills import free_port
from tests.crash.named_kills import LAUNCHER, kill_at_points
from tests.integration.service.books import assert_books_are_right
from tests.integration.service.harness import Service, environment, running_meterd
from tests.integration.service.test_charges import is_pushed
from tests.integration.service.test_stripe import SECRET, _stock as stocked
from tests.integration.service.test_webhooks import customer


pytestmark = [
    pytest.mark.slow,
    # The client hands httpx its body in an outdated way.
    pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning"),
]

AGENTS = 8


def failing(point: str, passes: int = 1) -> tuple[str, ...]:
    """Return the program that kills itself at this point."""
    assert point in POINTS
    return (LAUNCHER, point, str(passes), "0")


async def death_of(service: Service) -> None:
    """Wait until the process has killed itself."""
    with trio.fail_after(30):
        assert await service.process.wait() == -signal.SIGKILL


async def test_a_kill_around_a_flush_or_a_period_s_end_loses_and_doubles_nothing(
    database_url: str,
) -> None:
    """Before, while and after it commits; before and after a period's end is stored."""
    found: Findings = await kill_at_points(database_url, 1, AGENTS, Random(1))

    assert found.broken == []
    assert (found.lost_ms, found.doubled_ms) == (0, 0)
    assert found.cycles == 5
    assert found.resent > 0


@pytest.mark.parametrize("number", [1, 5])
async def test_a_meterd_killed_in_a_migration_starts_again_as_if_it_had_never_begun(
    portal: AsyncioThread, empty_database_url: str, number: int
) -> None:
    """The first that makes the tables, and one that changes them: both have not happened."""
    command = [sys.executable, "-m", *failing("during_migration", number), "serve"]
    killed = await trio.run_process(
        [*command, "--bind", "127.0.0.1:0", "--database-url", empty_database_url],
        env=environment({}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    left = await Migrations(portal, empty_database_url).current()
    async with running_meterd("--database-url", empty_database_url) as service:
        await service.organization("acme", "pro")
        assert (await service.adjust("acme", 60_000)).status_code == 201
        assert await service.stop() == 0

    assert killed.returncode == -signal.SIGKILL
    assert left == (None if number == 1 else f"{number - 1:04}")
    await assert_books_are_right("--database-url", empty_database_url)


@pytest.mark.parametrize("point", ["before_push", "after_push"])
async def test_a_kill_around_a_push_makes_one_invoice_item(database_url: str, point: str) -> None:
    """Stripe may have taken it already: it is asked again under the same key."""
    port = free_port()
    async with open_fake_stripe(seed=3) as fake:
        settings = {
            "METERD_STRIPE_API_KEY": "sk_test_x",
            "METERD_STRIPE_API_BASE": fake.url,
            "METERD_STRIPE_WEBHOOK_SECRETS": SECRET,
            "METERD_DATABASE_URL": database_url,
        }
        fake.add_endpoint(f"http://127.0.0.1:{port}/api/webhooks/stripe", secret=SECRET)
        http_client = stripe.HTTPXClient(timeout=5, allow_sync_methods=False)
        api = stripe.StripeClient(
            "sk_test_x", base_addresses={"api": fake.url}, http_client=http_client
        )
        async with running_meterd(settings=settings, port=port, program=failing(point)) as service:
            contract = {"agent_minutes": 100, "grace_percent": 100}
            await service.organization("acme", "pro", contract=contract)
            assert (await service.adjust("acme", 120 * 60_000)).status_code == 201
            shop = await stocked(fake, service, api)
            await shop.subscribe("pro")
            await death_of(service)
        before = fake.objects("invoiceitem")
        async with running_meterd(settings=settings, port=port) as service:
            shop.service = service
            await shop.until(lambda: is_pushed(shop))
            assert await service.stop() == 0
        await http_client.close_async()  # type: ignore[no-untyped-call]
        [item] = fake.objects("invoiceitem")

    assert [each["id"] for each in before] == ([] if point == "before_push" else [item["id"]])
    assert item["amount"] == 100
    await assert_books_are_right("--database-url", database_url)


@pytest.mark.parametrize("point", ["before_webhook", "after_webhook"])
async def test_a_kill_around_a_delivery_repeats_it_under_the_same_id(
    database_url: str, point: str
) -> None:
    """The customer's server hears of it at least once, and can tell a repetition by its id."""
    options = ("--database-url", database_url)
    settings = {"METERD_WEBHOOKS_PRIVATE_ALLOWED": "true"}
    async with customer() as server:
        async with running_meterd(*options, settings=settings, program=failing(point)) as service:
            key = await service.organization("acme", "starter", contract={"agent_minutes": 100})
            async with service.client(key) as http:
                body = {"url": server.url, "kinds": ["quota.grace_started"]}
                assert (await http.post("/v1/webhook-endpoints", json=body)).status_code == 201
            await service.adjust("acme", 101 * 60_000)
            await death_of(service)
        heard = len(server.received)
        async with running_meterd(*options, settings=settings) as service:
            told = await server.has("quota.grace_started", heard + 1)
            assert await service.stop() == 0

    assert heard == (0 if point == "before_webhook" else 1)
    assert len({each.headers["webhook-id"] for each in told}) == 1
