"""A real service with two tenants: a victim who has one of everything, and an attacker.

Everything here waits in plain calls: attacks go through sockets, from outside of any event loop.
Whatever free text the victim may choose contains `MARK`, which nobody else may ever see.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import asyncpg
import attrs
import httpx

from tests.integration.service.harness import ADMIN_KEY, READY_PREFIX, environment
from tests.integration.web.test_sign_in import ISSUER, claims_at, key_set, signed
from tests.served import PAGE


VICTIM, ATTACKER = "org_victim", "org_attacker"
MARK = "only-for-the-victim"
OLD_PERIOD = f"""
INSERT INTO subscription_usage (
    id, organization_id, billing_period, period_start, period_end, closed, plan_tier, terms_seq,
    agent_minutes_limit, last_updated
)
SELECT 'old', organization_id, '2020-01', '2020-01-01', '2020-02-01', true, plan_tier, terms_seq,
    agent_minutes_limit, last_updated
FROM subscription_usage WHERE organization_id = '{VICTIM}'
"""  # noqa: S608  # a constant
"""A period that only the victim has had."""

ALL_SCOPES = ("agent", "read", "manage")


class Neighbour(BaseHTTPRequestHandler):
    """Publishes the issuer's keys and takes webhooks."""

    def do_GET(self) -> None:  # the library's name
        """Answer with the key set."""
        self._answer(key_set("one"))

    def do_POST(self) -> None:  # the library's name
        """Take a webhook."""
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@attrs.frozen(kw_only=True)
class Fortress:
    """The service, what the two tenants hold, and what an attacker may do to it."""

    url: str
    fetch: Callable[[str], Sequence[Any]]
    """Rows of the database, read beside the service."""
    http: httpx.Client
    keys: Mapping[str, str]
    """The victim's by their scopes; `attacker` and `revoked` besides."""
    ids: Mapping[str, str]
    """The victim's things, by the name they have in a path."""
    own: Mapping[str, str]
    """The attacker's own."""

    def ask(
        self, method: str, path: str, bearer: str | None = None, **options: Any
    ) -> httpx.Response:
        """Send one request, with a bearer or without."""
        headers = dict(options.pop("headers", {}))
        if bearer is not None:
            headers["authorization"] = f"Bearer {bearer}"
        return self.http.request(method, path, headers=headers, **options)

    def token(self, organization_id: str = VICTIM, name: str = "one", **changes: Any) -> str:
        """Return a session token of an organization's administrator."""
        now_ms = int(time.time() * 1_000)
        return signed(claims_at(now_ms, org_id=organization_id, **changes), name, kid="one")

    def possessions(self) -> str:
        """Return a fingerprint of every row that belongs to the victim."""
        tables = self.fetch(
            "SELECT table_name FROM information_schema.columns "
            "WHERE column_name = 'organization_id' AND table_schema = 'public' ORDER BY 1"
        )
        assert len(tables) > 10
        names = [row["table_name"] for row in tables]
        parts = [
            f"SELECT string_agg(t::text, '|' ORDER BY t::text) AS rows FROM {name} t "  # noqa: S608
            f"WHERE organization_id = '{VICTIM}'"
            for name in names
        ]
        parts.append(f"SELECT t::text FROM organizations t WHERE id = '{VICTIM}'")  # noqa: S608
        return str(self.fetch(" UNION ALL ".join(parts)))


@contextlib.contextmanager
def open_fortress(database_url: str) -> Iterator[Fortress]:
    """Run the service and furnish it; it is killed at the end."""
    with _neighbour() as neighbour:
        settings = {
            "METERD_DATABASE_URL": database_url,
            "METERD_TASK_TIMEOUT_MS": "3600000",
            "METERD_WEBHOOKS_PRIVATE_ALLOWED": "true",
            "METERD_CLERK_ISSUER": ISSUER,
            "METERD_CLERK_JWKS_URL": f"{neighbour}/jwks.json",
            "METERD_CLERK_AUTHORIZED_PARTIES": PAGE,
            "METERD_LIVE_ORIGINS": PAGE,
        }
        with (
            _database(database_url) as fetch,
            running_service(settings) as (url, _),
            httpx.Client(base_url=url, timeout=30) as http,
        ):
            yield _furnished(url, fetch, http, neighbour)


@contextlib.contextmanager
def _database(url: str) -> Iterator[Callable[[str], Sequence[Any]]]:
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(url, timeout=10))
        yield lambda sql: cast("Sequence[Any]", runner.run(connection.fetch(sql)))
        runner.run(connection.close(timeout=10))


@contextlib.contextmanager
def _neighbour() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Neighbour)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def running_service(
    settings: Mapping[str, str],
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run `meterd serve` until the block ends; give its URL and its process."""
    command = [sys.executable, "-m", "meterd", "serve", "--bind", "127.0.0.1:0"]
    with subprocess.Popen(
        command, env=environment(settings), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().decode()
            assert line.startswith(READY_PREFIX), line
            yield line.removeprefix(READY_PREFIX).strip(), process
        finally:
            process.kill()


def _furnished(
    url: str, fetch: Callable[[str], Sequence[Any]], http: httpx.Client, neighbour: str
) -> Fortress:
    """Give both tenants one of everything."""
    keys: dict[str, str] = {}
    ids: dict[str, str] = {"organization_id": VICTIM}
    own: dict[str, str] = {"organization_id": ATTACKER}

    def made(method: str, path: str, bearer: str, body: Any) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {bearer}"}
        answer = http.request(method, path, json=body, headers=headers)
        assert answer.is_success, (path, answer.text)
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    def key(organization_id: str, *scopes: str) -> dict[str, Any]:
        name = MARK if organization_id == VICTIM else "own"
        body = {"scopes": list(scopes), "name": name}
        path = f"/admin/v1/organizations/{organization_id}/keys"
        return made("POST", path, ADMIN_KEY, body)

    for organization_id, things, mark in ((VICTIM, ids, MARK), (ATTACKER, own, "own")):
        body = {"id": organization_id, "name": mark, "plan": "pro"}
        made("POST", "/admin/v1/organizations", ADMIN_KEY, body)
        full = key(organization_id, *ALL_SCOPES)
        things["key_id"], bearer = full["id"], full["key"]
        keys["victim" if organization_id == VICTIM else "attacker"] = bearer
        names = {f"{name}_id": f"{name}-{mark}" for name in ("task", "agent", "user", "event")}
        things.update(names)
        about = {"note": mark}
        start = {**names, "metadata": about}
        del start["event_id"]
        made("POST", "/v1/tasks", bearer, start)
        event = {"id": names["event_id"], "resource_type": "api_call", "metadata": about}
        made("POST", "/v1/events", bearer, event)
        endpoint = {"url": f"{neighbour}/{mark}", "description": mark}
        things["endpoint_id"] = made("POST", "/v1/webhook-endpoints", bearer, endpoint)["id"]
        path = f"/v1/webhook-endpoints/{things['endpoint_id']}"
        made("POST", f"{path}/test", bearer, None)
        adjustment = {"agent_ms": 60_000, "reason": mark}
        path = f"/admin/v1/organizations/{organization_id}/adjustments"
        made("POST", path, ADMIN_KEY, adjustment)
    fetch(OLD_PERIOD)
    ids["period"] = "2020-01"
    for scope in ALL_SCOPES:
        keys[scope] = key(VICTIM, scope)["key"]
    revoked = key(VICTIM, *ALL_SCOPES)
    made("DELETE", f"/admin/v1/organizations/{VICTIM}/keys/{revoked['id']}", ADMIN_KEY, None)
    keys["revoked"] = revoked["key"]
    for things, bearer in ((ids, keys["victim"]), (own, keys["attacker"])):
        path = f"/v1/webhook-endpoints/{things['endpoint_id']}/deliveries"
        things["delivery_id"] = _delivered(http, path, bearer)
    return Fortress(url=url, fetch=fetch, http=http, keys=keys, ids=ids, own=own)


def _delivered(http: httpx.Client, path: str, bearer: str) -> str:
    """Wait until every delivery has been taken, so that nothing changes by itself; return one."""
    for _ in range(500):
        answer = http.get(path, headers={"authorization": f"Bearer {bearer}"})
        found = answer.json()["data"]
        if found and all(each["state"] == "delivered" for each in found):
            delivery_id: str = found[0]["id"]
            return delivery_id
        time.sleep(0.02)
    raise AssertionError(f"not delivered: {found}")
