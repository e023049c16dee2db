"""Secrets are planted in every input of a running meterd, and everything is made to fail.

Nothing that it writes may hold one of them: log at its lowest level, metrics, answers, commands.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import attrs
import httpx
import pytest
import trio
import websockets.exceptions

from meterd.testing.fake_stripe import FakeStripe, open_fake_stripe
from meterd.web.openapi_routes import ROUTES
from tests.conftest import execute
from tests.integration.cli.programs import meterd
from tests.integration.service.harness import ADMIN_KEY, Service, running_meterd
from tests.integration.service.stream import open_stream
from tests.integration.service.test_webhooks import customer


pytestmark = pytest.mark.slow

PLANTED = {
    "admin key": ADMIN_KEY,
    "pepper": "canary pepper of at least thirty-two characters",
    "Stripe key": "sk_test_CanaryStripeKey0123456789",
    "webhook secret": "whsec_CanaryWebhookSecret0123456789",
    "older webhook secret": "canary-webhook-secret-without-a-shape",
    "database password": "CanaryDatabasePassword1",
    "Redis password": "CanaryRedisPassword2",
    "session token": "eyJhbGciOiJSUzI1NiIsImtpZCI6ImsifQ.eyJzdWIiOiJ1c2VyXzEifQ.CanarySignature",
    "cookie": "canary-cookie-value-0123456789",
    "wrong key": "mk_live_CanaryWrongKey0123456789012345678901",
    "password in a message": "CanaryPasswordInAMessage",
}

ITS_OWN = ("GET /v1/tasks 200", "GET /v1/tasks/t 200")
"""A customer is given back the metadata of its own tasks, whatever it wrote there."""

CONTENT = "canary words of a customer"
"""What a message says is nobody's business either, but its owner and operators may read it."""


@attrs.define
class Gathered:
    """All that came out, by where."""

    texts: list[tuple[str, str]] = attrs.Factory(list)

    def keep(self, where: str, text: str) -> None:
        """Keep one text."""
        self.texts.append((where, text))

    async def ask(self, http: httpx.AsyncClient, method: str, path: str, **rest: Any) -> None:
        """Ask, and keep everything of the answer."""
        answer = await http.request(method, path, **rest)
        self.keep(f"{method} {path} {answer.status_code}", f"{answer.headers} {answer.text}")

    def leaks(self, secrets: dict[str, str]) -> Iterator[str]:
        """Yield where which secret turned up."""
        for where, text in self.texts:
            if where in ITS_OWN:
                continue
            for name, secret in secrets.items():
                if secret in text or json.dumps(secret)[1:-1] in text:
                    yield f"{name} in {where}"


def plant(path: str) -> str:
    """Return a path of the document with something in its place holders."""
    for name, value in (
        ("organization_id", "acme"),
        ("task_id", "t"),
        ("address", "service/ledger"),
    ):
        path = path.replace("{" + name + "}", value)
    while "{" in path:
        path = path[: path.index("{")] + PLANTED["wrong key"] + path[path.index("}") + 1 :]
    return path


@contextlib.asynccontextmanager
async def planted_meterd(
    service_url: str, fake: FakeStripe
) -> AsyncIterator[tuple[Service, dict[str, str]]]:
    """Run meterd with a secret in every setting that may hold one, and log everything."""
    user, _, host = service_url.removeprefix("postgresql://").partition("@")
    role = user.partition(":")[0]
    url = f"postgresql://{role}:{PLANTED['database password']}@{host}"
    settings = {
        "METERD_DATABASE_URL": url,
        "METERD_KEY_PEPPER": PLANTED["pepper"],
        "METERD_STRIPE_API_KEY": PLANTED["Stripe key"],
        "METERD_STRIPE_API_BASE": fake.url,
        "METERD_STRIPE_WEBHOOK_SECRETS": (
            f"{PLANTED['older webhook secret']},{PLANTED['webhook secret']}"
        ),
        "METERD_REDIS_URL": f"redis://:{PLANTED['Redis password']}@127.0.0.1:1/0",
        "METERD_CLERK_ISSUER": "http://127.0.0.1:1",
        "METERD_CLERK_AUTHORIZED_PARTIES": "http://app.test",
        "METERD_WEBHOOKS_PRIVATE_ALLOWED": "true",
        "METERD_LOG_LEVEL": "debug",
    }
    async with running_meterd(settings=settings) as service:
        yield service, settings


async def ask_everything(gathered: Gathered, service: Service, keys: list[str]) -> None:
    """Ask every route with every kind of key, with bodies that mean nothing and hold secrets."""
    body = {
        "note": CONTENT,
        "password": PLANTED["password in a message"],
        "authorization": f"Bearer {PLANTED['wrong key']}",
        "url": f"https://user:{PLANTED['password in a message']}@example.com/",
    }
    for key in keys:
        headers = {
            "authorization": f"Bearer {key}",
            "cookie": f"__session={PLANTED['cookie']}",
            "stripe-signature": f"t=1,v1={'0a' * 32}{PLANTED['older webhook secret']}",
            "idempotency-key": PLANTED["cookie"],
        }
        async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=30) as http:
            for route in ROUTES:
                path = plant(route.path)
                if route.method == "GET":
                    await gathered.ask(http, "GET", path)
                    query = {"token": PLANTED["wrong key"], "cursor": PLANTED["cookie"]}
                    await gathered.ask(http, "GET", path, params=query)
                elif route.method != "DELETE" or "wrong" in path:
                    await gathered.ask(http, route.method, path, json=body)
                    broken = json.dumps(body)[:-1].encode()
                    await gathered.ask(http, route.method, path, content=broken)
    raw = await trio.open_tcp_stream("127.0.0.1", int(service.url.rpartition(":")[2]))
    async with raw:
        head = f"GET /{PLANTED['wrong key']} HTTP/1.1\r\nAuthorization Basic {ADMIN_KEY}\r\n\r\n"
        await raw.send_all(head.encode())
        with trio.move_on_after(2):
            gathered.keep("malformed head", (await raw.receive_some()).decode())


async def break_everything(service: Service, database_url: str, fake: FakeStripe) -> None:
    """Let the database end its connections, a row be poisoned, and Stripe fail."""
    secret = PLANTED["password in a message"]
    await trio.to_thread.run_sync(
        execute,
        database_url,
        "ALTER TABLE organization_terms DISABLE TRIGGER ALL",
        "UPDATE organization_terms SET contract = "  # noqa: S608  # ours
        f"""'{{"password={secret}": "{CONTENT}"}}' WHERE organization_id = 'poisoned'""",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    fake.faults.away = True
    await service.http.post("/admin/v1/actors/organization/poisoned/restart")
    await service.http.get("/admin/v1/organizations/poisoned")
    await service.http.post("/admin/v1/jobs/stripe_reconciliation/run")
    await service.http.post("/admin/v1/reconcile/stripe")


async def look_around(gathered: Gathered, service: Service, settings: dict[str, str]) -> None:
    """Read everything an operator can read, and run every command that tells something."""
    for path in (
        "actors?limit=1000",
        "actors/organization/acme",
        "actors/organization/acme/trace",
        "audit?limit=1000",
        "crashes",
        "dead-letters",
        "findings",
        "jobs",
        "organizations",
        "organizations/acme/keys",
        "stripe/events",
        "charges",
    ):
        await gathered.ask(service.http, "GET", f"/admin/v1/{path}")
    await gathered.ask(service.http, "GET", "/readyz")
    for command in (
        ("doctor",),
        ("doctor", "--json"),
        ("config",),
        ("config", "--json"),
        ("audit",),
        ("migrate", "--check"),
        ("keys", "list"),
        ("actors", "top", "--json"),
        ("actors", "show", PLANTED["wrong key"]),
        ("stripe", "setup"),
        ("reconcile", "stripe", "--dry-run"),
    ):
        ran = await meterd(*command, settings={**settings, "METERD_URL": service.url})
        gathered.keep(f"meterd {' '.join(command)}", ran.out + ran.err)
        assert "Traceback" not in ran.err, ran.err


async def test_nothing_that_meterd_writes_holds_a_secret(
    service_role: str, service_database_url: str, database_url: str
) -> None:
    """One secret in a log is a leaked key: everything is asked, broken, read and searched."""
    gathered = Gathered()
    password = PLANTED["database password"]
    execute(database_url, f"ALTER ROLE {service_role} PASSWORD '{password}'")
    async with (
        open_fake_stripe(seed=1) as fake,
        customer() as server,
        planted_meterd(service_database_url, fake) as (service, settings),
    ):
        key = await service.organization("acme", "starter", stripe_customer_id="cus_1")
        revoked = await service.key("acme", "agent")
        await service.organization("poisoned", "starter")
        metadata = {"note": CONTENT, "auth": f"Bearer {PLANTED['wrong key']}"}
        metadata["password"] = PLANTED["password in a message"]
        async with service.client(key) as http:
            made = await http.post("/v1/webhook-endpoints", json={"url": server.url})
            endpoint_secret = made.json()["secret"]
            await http.post(f"/v1/webhook-endpoints/{made.json()['id']}/test")
        await service.http.post("/admin/v1/actors/organization/acme/trace")
        async with open_stream(service.stream_url, key) as stream:
            await stream.start("t", "a", metadata=metadata)
            await stream.beat("t", 1_000)
            await stream.send({"type": PLANTED["wrong key"], "password": CONTENT})
        for wrong in (PLANTED["wrong key"], PLANTED["session token"]):
            with contextlib.suppress(websockets.exceptions.WebSocketException, OSError):
                async with open_stream(service.stream_url, wrong):
                    await trio.sleep(0.1)
        keys = [ADMIN_KEY, key, revoked, PLANTED["wrong key"], PLANTED["session token"]]
        await ask_everything(gathered, service, keys)
        await break_everything(service, database_url, fake)
        await ask_everything(gathered, service, keys[:2])
        service.process.send_signal(signal.SIGUSR1)
        await look_around(gathered, service, settings)
        metrics = (await service.http.get("/metrics")).text
        gathered.keep("metrics", metrics)
        await service.stop()
    execute(database_url, f"ALTER ROLE {service_role} PASSWORD '{service_role}'")
    for line in service.log:
        gathered.keep(f"log: {line[:200]}", line)

    secrets = {**PLANTED, "customer's key": key, "revoked key": revoked, "hook": endpoint_secret}
    assert sorted(set(gathered.leaks(secrets))) == []
    for line in [*service.log, metrics]:
        assert CONTENT not in line, line
    assert len(gathered.texts) > 500
    events = {json.loads(line).get("event") for line in service.log if line.startswith("{")}
    assert {"mirror_unavailable", "task_tree", "stripe_event_refused"} <= events, events
