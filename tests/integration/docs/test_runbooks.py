"""Every runbook walked through: a service is really broken, and the page's commands are typed.

What each page promises under "It is over" is then checked. A page without a test here fails one.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import attrs
import pytest
import stripe
import trio

from meterd.testing.fault_proxy import Fault, open_fault_proxy
from tests.conftest import execute
from tests.integration.docs.pages import ROOT, blocks_of
from tests.integration.service.books import assert_books_are_right
from tests.integration.service.harness import ADMIN_KEY, Service, environment, running_meterd
from tests.integration.service.stream import open_stream
from tests.integration.service.test_stripe import SECRET, Shop, shop
from tests.integration.service.test_trouble import metric, missing, until, use
from tests.integration.service.test_webhooks import crossing, customer


__all__ = ["shop"]

pytestmark = [
    pytest.mark.slow,
    # Stripe's client hands httpx its body in an outdated way.
    pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning"),
]

RUNBOOKS = ROOT / "docs" / "runbooks"

COMMAND_S_MAX = 90


@attrs.frozen
class Typed:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str


@attrs.frozen
class Operator:
    """Somebody at a terminal of the machine, with `meterd` and `systemctl` on the path."""

    directory: Path
    variables: dict[str, str]

    async def type(self, text: str, **replaced: str) -> Typed:
        """Type commands; words of the page such as ORGANIZATION are replaced first."""
        for word, value in replaced.items():
            text = re.sub(rf"\b{word}\b", value, text)
        path = f"{self.directory}:{os.environ['PATH']}"
        with trio.fail_after(COMMAND_S_MAX):
            ran: subprocess.CompletedProcess[bytes] = await trio.run_process(
                ["bash", "-uc", text],
                env={**environment(self.variables), "PATH": path, "PYTHONPATH": str(ROOT)},
                cwd=self.directory,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        typed = Typed(ran.returncode, ran.stdout.decode(), ran.stderr.decode())
        assert "Traceback" not in typed.err, typed.err
        return typed

    async def follow(self, page: str, **replaced: str) -> list[Typed]:
        """Type every command of a page, each for itself; none may be misspelt."""
        done = []
        for block in blocks_of(f"runbooks/{page}"):
            if block.language == "sh":
                for command in block.text.strip().splitlines():
                    typed = await self.type(command, **replaced)
                    assert "Usage:" not in typed.err, typed.err
                    done.append(typed)
        assert done, page
        return done


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Give a directory with the programs an operator types."""
    program = tmp_path / "meterd"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m meterd "$@"\n')
    program.chmod(0o755)
    return tmp_path


def operator_of(desk: Path, service: Service, database_url: str = "") -> Operator:
    """Return an operator of this service."""
    variables = {"METERD_URL": service.url, "METERD_ADMIN_KEY": ADMIN_KEY}
    if database_url:
        variables["METERD_DATABASE_URL"] = database_url
    return Operator(desk, variables)


@pytest.fixture
async def service(database_url: str) -> AsyncIterator[Service]:
    """Run a meterd on a database of this test's own."""
    async with running_meterd("--database-url", database_url) as running:
        yield running


def test_every_runbook_is_walked_through_here() -> None:
    """A page that nobody has followed is a guess."""
    source = Path(__file__).read_text(encoding="utf-8")
    pages = {path.name for path in RUNBOOKS.glob("*.md")}

    assert {page for page in pages if f'{page}"' not in source} == set()


async def test_the_first_minute(service: Service, database_url: str, desk: Path) -> None:
    """What is typed before one knows what it is."""
    operator = operator_of(desk, service, database_url)
    ready, top, services, letters = await operator.follow("README.md")

    assert '"ready"' in ready.out
    assert [each.code for each in (ready, top, services, letters)] == [0] * 4
    assert "service/ledger" in services.out


async def test_not_ready(service: Service, desk: Path) -> None:
    """A service actor is started again by hand, and the tree of tasks lands in the log."""
    operator = operator_of(desk, service)
    shown, top = await operator.follow("not-ready.md")
    restarted = await operator.type('meterd actors restart service/ledger --reason "mended"')
    await operator.type(f"kill -USR1 {service.process.pid}")

    async def is_told() -> bool:
        return any("task_tree" in line for line in service.log)

    await until(is_told)
    assert "last_error" in shown.out
    assert "RESTARTS" in top.out
    assert restarted.out == "service/ledger is ready\n"
    assert await missing(service.http) == []
    assert await metric(service.http, "meterd_ready") == 1


async def test_database_full_or_slow(database_url: str, desk: Path) -> None:
    """While it is away the ledger says so in PostgreSQL's words; doctor says what to do."""
    parts = urlsplit(database_url)
    async with open_fault_proxy(parts.hostname or "", parts.port or 5432) as proxy:
        account = parts.netloc.rpartition("@")[0]
        url = urlunsplit(parts._replace(netloc=f"{account}@127.0.0.1:{proxy.port}"))
        settings = {"METERD_ACK_TIMEOUT_MS": "1000"}
        async with running_meterd("--database-url", url, settings=settings) as service:
            operator = operator_of(desk, service, url)
            await service.organization("acme", "enterprise")
            await use(service, "acme")
            proxy.set_fault(Fault.REFUSE)
            proxy.reset()
            assert await use(service, "acme") == 503
            doctor, ledger, owner = await operator.follow("database-full-or-slow.md")
            proxy.set_fault(Fault.NONE)

            async def is_over() -> bool:
                failing_s = await metric(service.http, "meterd_store_failing_seconds")
                oldest_s = await metric(service.http, "meterd_oldest_unflushed_seconds")
                return failing_s == 0 and oldest_s < 1 and not await missing(service.http)

            await until(is_over, within_s=45)

    assert doctor.code == 1
    assert "start PostgreSQL" in doctor.out
    assert "breaker: open" in ledger.out
    assert "pools" in owner.out
    await assert_books_are_right("--database-url", database_url)


async def test_quarantined_organization(service: Service, database_url: str, desk: Path) -> None:
    """Found by its strikes, mended in the database, and released by hand."""
    operator = operator_of(desk, service, database_url)
    await service.organization("acme", "enterprise")
    table = "organization_terms"
    await trio.to_thread.run_sync(
        execute,
        database_url,
        f"CREATE TABLE kept AS SELECT limits FROM {table} WHERE organization_id = 'acme'",  # noqa: S608  # ours
        f"ALTER TABLE {table} DISABLE TRIGGER ALL",
        f"UPDATE {table} SET limits = '{{}}' WHERE organization_id = 'acme'",  # noqa: S608  # ours
    )
    await operator.type("meterd actors passivate acme")

    async def is_kept_apart() -> bool:
        await use(service, "acme")
        return await metric(service.http, 'meterd_actors{phase="quarantined"}') == 1

    await until(is_kept_apart)
    top, shown, _ = await operator.follow("quarantined-organization.md", ORGANIZATION="acme")
    await trio.to_thread.run_sync(
        execute,
        database_url,
        f"UPDATE {table} SET limits = (SELECT limits FROM kept) WHERE organization_id = 'acme'",  # noqa: S608  # ours
        f"ALTER TABLE {table} ENABLE TRIGGER ALL",
        "DROP TABLE kept",
    )
    sound = await operator.type("meterd audit --organization acme")
    released = await operator.type('meterd actors release acme --reason "mended"')
    await use(service, "acme")
    after = json.loads((await operator.type("meterd actors show acme --json")).out)

    assert top.out.splitlines()[1].startswith("organization/acme")
    assert "phase: quarantined" in shown.out
    assert "makes no sense" in shown.out
    assert (sound.code, released.code) == (0, 0)
    assert (after["phase"], after["strikes"]) == ("ready", 0)


async def test_limit_refused_wrongly(service: Service, database_url: str, desk: Path) -> None:
    """Why it was refused is on the screen, and a credit lets work go on."""
    operator = operator_of(desk, service, database_url)
    contract = {"agent_minutes": 100, "grace_percent": 0}
    key = await service.organization("acme", "pro", contract=contract)
    assert (await service.adjust("acme", 100 * 60_000)).status_code == 201
    async with service.client(key) as http:
        refused = await http.get("/v1/quota/check")
        orgs, audit, trail = await operator.follow("limit-refused-wrongly.md", ORGANIZATION="acme")
        assert (await service.adjust("acme", -10 * 60_000)).status_code == 201
        allowed = (await http.get("/v1/quota/check")).json()

    assert refused.json()["code"] == "plan_limit_reached"
    quota = json.loads(orgs.out)["quota"]["agent_minutes"]
    assert quota["used_ms"] == quota["hard_limit"] * 60_000 == 6_000_000
    assert audit.code == 0
    assert "organization.create" in trail.out
    assert allowed["allowed"] is True


async def test_disputed_bill(database_url: str, desk: Path) -> None:
    """Every row of a task in one command; a counter that is wrong is found and put right."""
    where = ("--database-url", database_url)
    async with running_meterd(*where) as service:
        operator = operator_of(desk, service, database_url)
        key = await service.organization("acme", "enterprise")
        async with open_stream(service.stream_url, key) as stream:
            await stream.start("t", "a")
            await stream.finish("t", 90_000)
        (shown,) = await operator.follow("disputed-bill.md", ORGANIZATION="acme", TASK="t")
        await trio.to_thread.run_sync(
            execute, database_url, "UPDATE subscription_usage SET used_ms = used_ms + 60000"
        )
        wrong = await operator.type("meterd audit --organization acme")
        told = await operator.type("meterd reconcile ledger")
        assert await service.stop() == 0
    rebuilt = await operator.type("meterd reconcile ledger --rebuild")

    assert shown.code == 0
    assert "metered_ms" in shown.out
    assert "rec_" in shown.out
    assert (wrong.code, told.code, rebuilt.code) == (1, 1, 0)
    assert (await operator.type("meterd audit --organization acme")).code == 0


async def test_stripe_out_of_sync(shop: Shop, desk: Path, database_url: str) -> None:
    """A dead event is found, its cause mended, and worked off again."""
    operator = operator_of(desk, shop.service, database_url)
    made = await shop.subscribe("starter")
    await shop.until_quiet()
    at_s = int(time.time())
    payload = json.dumps(
        {
            "id": "evt_late",
            "object": "event",
            "type": "customer.subscription.updated",
            "created": at_s,
            "livemode": False,
            "data": {"object": {"id": made.id, "object": "subscription"}},
        }
    )
    signed = stripe.WebhookSignature._compute_signature(f"{at_s}.{payload}", SECRET)
    headers = {"stripe-signature": f"t={at_s},v1={signed}"}
    await shop.service.http.post("/api/webhooks/stripe", content=payload, headers=headers)
    await shop.until_quiet()
    await trio.to_thread.run_sync(
        execute,
        database_url,
        "UPDATE stripe_events SET state = 'dead', last_error = 'refused' WHERE id = 'evt_late'",
    )
    dead, pending, actor, charges, organization = await operator.follow(
        "stripe-out-of-sync.md", ORGANIZATION="acme"
    )
    retried = await operator.type("meterd stripe retry evt_late")
    await shop.until_quiet()
    dry = await operator.type("meterd reconcile stripe --dry-run")

    assert "evt_late" in dead.out
    assert "evt_late" not in pending.out
    assert "waiting" in actor.out
    assert "away: False" in charges.out
    assert json.loads(organization.out)["plan"] == "starter"
    assert retried.code == 0
    assert await shop.events("dead") == []
    assert dry.code == 0, dry.out + dry.err


async def test_webhooks_not_delivered(database_url: str, desk: Path) -> None:
    """The customer's answer is on the screen; when its server is well again a test arrives."""
    settings = {"METERD_DATABASE_URL": database_url, "METERD_WEBHOOKS_PRIVATE_ALLOWED": "true"}
    async with customer() as server, running_meterd(settings=settings) as service:
        server.status = 500
        key = await service.organization("acme", "starter", contract={"agent_minutes": 100})
        async with service.client(key) as http:
            endpoint = (await http.post("/v1/webhook-endpoints", json={"url": server.url})).json()
            await crossing(service, "acme")
            await server.has("usage.threshold_reached")

            async def is_seen() -> str:
                (shown,) = await operator_of(desk, service).follow("webhooks-not-delivered.md")
                return shown.out if "500" in shown.out else ""

            shown = await until(is_seen)
            server.status = 200
            await http.post(f"/v1/webhook-endpoints/{endpoint['id']}/test")
            await server.has("webhook.test")

    assert "retried" in shown


async def test_overloaded(database_url: str, desk: Path) -> None:
    """Who is turned away is counted by its reason; nothing is refused any more after it."""
    settings = {"METERD_CONNECTIONS_MAX": "6"}
    async with running_meterd("--database-url", database_url, settings=settings) as service:
        port = int(service.url.rpartition(":")[2])
        name = 'meterd_connections_ended_total{reason="total"}'
        idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(10)]
        await trio.sleep(0.2)
        for stream in idle:
            await stream.aclose()

        async def is_counted() -> bool:
            return await metric(service.http, name) >= 1

        await until(is_counted)
        before = await metric(service.http, name)
        rate, backlog, pulse = await operator_of(desk, service).follow("overloaded.md")

        assert [each.code for each in (rate, backlog, pulse)] == [0] * 3
        assert "peak_ms" in pulse.out
        assert await metric(service.http, name) == before


async def test_clock_jumped(database_url: str, desk: Path) -> None:
    """A clock behind the last record refuses to start; an operator who knows better says so."""
    where = ("--database-url", database_url)
    async with running_meterd(*where) as service:
        key = await service.organization("acme", "enterprise")
        async with open_stream(service.stream_url, key) as stream:
            await stream.start("t", "a")
        assert await metric(service.http, "meterd_clock_jump_seconds") == 0
        assert await service.stop() == 0
    execute(
        database_url,
        "UPDATE tasks SET last_heartbeat_at = now() + interval '2 days',"
        " metered_until = now() + interval '2 days'",
    )
    page = (RUNBOOKS / "clock-jumped.md").read_text(encoding="utf-8")
    assert "`--accept-clock`" in page
    operator = Operator(desk, {"METERD_DATABASE_URL": database_url, "METERD_BIND": "127.0.0.1:0"})
    refused = await operator.type("meterd serve")
    doctor = await operator.type("meterd doctor")
    async with running_meterd(*where, "--accept-clock") as service:
        assert (await service.http.get("/readyz")).status_code == 200

    assert refused.code == 2
    assert "--accept-clock" in refused.err
    assert "PostgreSQL's clock is" in doctor.out


async def test_lost_admin_key(service: Service, database_url: str, desk: Path) -> None:
    """Whoever reaches the database makes a key, and ends the one that is lost."""
    operator = operator_of(desk, service, database_url)
    lost = (await operator.type('meterd keys create --name "lost"')).out.strip()
    made, listed, _ = await operator.follow("lost-admin-key.md", KEY_ID="key_none")
    (lost_id,) = re.findall(r"^(key_\S+) .* lost$", listed.out, re.MULTILINE)
    revoked = await operator.type(f"meterd keys revoke {lost_id}")
    new = Operator(desk, {**operator.variables, "METERD_ADMIN_KEY": made.out.strip()})
    old = Operator(desk, {**operator.variables, "METERD_ADMIN_KEY": lost})

    async def is_refused() -> bool:
        return (await old.type("meterd orgs")).code != 0

    await until(is_refused)
    assert re.fullmatch(r"mk_live_\w+\n", made.out)
    assert revoked.code == 0
    assert (await new.type("meterd orgs")).code == 0
    audit = (await service.http.get("/admin/v1/audit?action=key.revoke")).json()["data"]
    assert [entry["actor"] for entry in audit] == ["meterd keys"]


async def test_leaked_key(service: Service, database_url: str, desk: Path) -> None:
    """Refused within a second, its stream closed, and what it did is in the audit log."""
    operator = operator_of(desk, service, database_url)
    key = await service.organization("acme", "starter")
    listed = await operator.type("meterd keys list --organization acme --json")
    (key_id,) = (each["id"] for each in json.loads(listed.out))
    async with open_stream(service.stream_url, key) as stream:
        await stream.start("t", "a")
        steps = await operator.type(
            blocks_of("runbooks/leaked-key.md")[0].text, ORGANIZATION="acme", KEY_ID=key_id
        )

        async def is_closed() -> bool:
            return stream.socket.close_code is not None

        await until(is_closed, within_s=5)
        code = stream.socket.close_code
    async with service.client(key) as http:
        refused = await http.get("/v1/quota")
    trail = await operator.type(
        blocks_of("runbooks/leaked-key.md")[1].text.splitlines()[1], ORGANIZATION="acme"
    )

    assert steps.code == 0, steps.err
    assert code == 4401
    assert refused.status_code == 401
    assert key_id in trail.out


@pytest.fixture
def backed_up(data_dir: Path) -> Iterator[Path]:
    """Give a data directory, and room beside it for another."""
    yield data_dir
    shutil.rmtree(data_dir.with_name(data_dir.name + "-new"), ignore_errors=True)


async def test_restoring(backed_up: Path, desk: Path) -> None:
    """From a backup alone: stop, restore, audit, and serve from the new directory."""
    new = f"{backed_up}-new"
    backup = desk / "meterd.dump"
    async with running_meterd("--data-dir", str(backed_up)) as service:
        await service.organization("acme", "enterprise")
        assert await use(service, "acme") == 201
        operator = operator_of(desk, service)
        taken = await operator.type(f"meterd backup {backup} --data-dir {backed_up}")
        stop = desk / "systemctl"
        stop.write_text(f"#!/bin/sh\nkill -TERM {service.process.pid}\n")
        stop.chmod(0o755)
        page = blocks_of("runbooks/restoring.md")[0].text
        text = page.replace("/var/lib/meterd-new", new)
        restored = await operator.type(text, BACKUP=str(backup))
        with trio.fail_after(30):
            await service.process.wait()
    async with running_meterd("--data-dir", new) as service:
        assert (await service.http.get("/readyz")).status_code == 200
        found = (await service.http.get("/admin/v1/organizations/acme")).json()

    assert (taken.code, restored.code) == (0, 0), restored.err
    assert found["quota"]["agent_minutes"]["used_ms"] == 60_000
