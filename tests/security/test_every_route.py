"""Every route x every kind of foreign key, token and id: refused alike, and nothing changes.

The routes come from the table that the OpenAPI document is made of, which a test holds against
what is registered; a placeholder or a body this file does not know fails here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import jwt
import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect
from websockets.typing import Origin

from meterd.actors.keyring import make_key
from meterd.web.billing import CheckoutBody, OrderBody, PortalBody
from meterd.web.customer_schema import EndpointPatch, NewEndpointBody, SettingsBody
from meterd.web.event_schema import VoidBody
from meterd.web.openapi_customer import CUSTOMER_ROUTES
from meterd.web.openapi_operator import OPERATOR_ROUTES
from meterd.web.openapi_route import Route
from meterd.web.openapi_routes import PUBLIC_ROUTES, ROUTES
from meterd.web.schema import (
    ActorBody,
    AdjustmentBody,
    FinishBody,
    HeartbeatBody,
    NewKeyBody,
    NewOrganizationBody,
    OrganizationPatch,
    StartTaskBody,
    TraceBody,
)
from tests.integration.service.harness import ADMIN_KEY
from tests.integration.web.test_sign_in import claims_at
from tests.security.fortress import ALL_SCOPES, ATTACKER, MARK, VICTIM, Fortress
from tests.served import PAGE


pytestmark = pytest.mark.slow

PLACEHOLDER = re.compile(r"<(?:path:)?(\w+)>")

OPERATORS_OWN = {
    "address": f"organization/{VICTIM}",
    "charge_id": "chg_1",
    "name": "snapshot",
    "date": "2026-02-20",
}
"""Placeholders that only an operator may fill: no tenant owns what they name."""

BODIES: Mapping[Any, Any] = {
    StartTaskBody: {"agent_id": "a"},
    HeartbeatBody: {"elapsed_ms": 1_000},
    FinishBody: {"elapsed_ms": 1_000, "outcome": "succeeded"},
    VoidBody: {"reason": "an attack"},
    SettingsBody: {"overage_cap_usd": "0.00"},
    NewKeyBody: {"scopes": ["agent", "read", "manage"]},
    NewEndpointBody: {"url": "https://example.com/"},
    EndpointPatch: {"disabled": True},
    CheckoutBody: {},
    PortalBody: {},
    NewOrganizationBody: {"id": "org_new", "name": "New", "plan": "enterprise"},
    OrganizationPatch: {"plan": "enterprise"},
    AdjustmentBody: {"agent_ms": -60_000, "reason": "an attack"},
    OrderBody: {"reason": "an attack"},
    ActorBody: {"reason": "an attack"},
    TraceBody: {"on": True, "reason": "an attack"},
}
"""A body of each kind that would do harm if it were let through."""

GUARDED = [route for route in ROUTES if route.scopes]
WITH_IDS = [route for route in GUARDED if PLACEHOLDER.search(route.path)]


def named(routes: list[Route]) -> Any:
    """Parametrize a test over routes, so that it is called by their names."""
    ids = [f"{route.method} {route.path}" for route in routes]
    return pytest.mark.parametrize("route", routes, ids=ids)


def path_of(route: Route, ids: Mapping[str, str]) -> str:
    """Return a route's path with ids filled in; Stripe's events share a name with a tenant's."""
    return PLACEHOLDER.sub(lambda found: {**OPERATORS_OWN, **ids}[found[1]], route.path)


def body_of(route: Route) -> Any:
    """Return a body the route would take, or None."""
    kind = route.body.get("application/json")
    if kind is None or isinstance(kind, Mapping):
        is_events = route.path == "/v1/events"
        return {"id": "e", "resource_type": "api_call"} if is_events else None
    return BODIES[kind]


def is_problem(answer: httpx.Response, status: int, code: str) -> bool:
    """Tell whether an answer is this problem and nothing else, the victim's text least of all."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert MARK not in answer.text
    assert MARK not in str(answer.headers)
    return True


def same_but_for_its_id(answer: httpx.Response, asked: str = "") -> tuple[int, dict[str, Any]]:
    """Return what an answer says, but for what names the request itself or what it asked for."""
    body = json.loads(answer.text.replace(asked, "…") if asked else answer.text)
    made_up = ("instance", "request_id", "pseudonym")
    return answer.status_code, {k: v for k, v in body.items() if k not in made_up}


def nobodies(fortress: Fortress) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield headers that name nobody, by what is wrong with them."""
    victim = fortress.keys["victim"]
    bearers = {
        "garbage": "x",
        "a key nobody has": make_key(bytes(range(32))),
        "a key with a typo": victim[:-1] + ("a" if victim[-1] != "a" else "b"),
        "a key's half": victim[: len(victim) // 2],
        "a revoked key": fortress.keys["revoked"],
        "an id for a key": fortress.ids["key_id"],
        "a token by another issuer's key": fortress.token(name="two"),
        "a token without signature": jwt.encode(claims_at(1, org_id=VICTIM), "", "none"),
        "a token that has ended": fortress.token(exp=1_000_000_000),
        "a token of another page": fortress.token(azp="https://evil.example"),
    }
    yield "nothing", {}
    yield "another scheme", {"authorization": f"Basic {victim}"}
    yield "no scheme", {"authorization": victim}
    yield "the key elsewhere", {"x-api-key": victim, "cookie": f"key={victim}; __session={victim}"}
    for what, bearer in bearers.items():
        yield what, {"authorization": f"Bearer {bearer}"}


def too_weak(fortress: Fortress, route: Route) -> Iterator[tuple[str, str]]:
    """Yield valid bearers that this route must not take."""
    if route in OPERATOR_ROUTES:
        yield "the victim's key", fortress.keys["victim"]
        yield "the attacker's key", fortress.keys["attacker"]
        yield "the victim's administrator", fortress.token()
        yield "the attacker's administrator", fortress.token(ATTACKER)
        return
    yield "an operator's key", ADMIN_KEY
    for scope in ALL_SCOPES:
        if scope not in route.scopes:
            yield f"a key for {scope}", fortress.keys[scope]
    if not {"read", "manage"} & set(route.scopes):
        yield "an administrator", fortress.token()
    if "read" not in route.scopes:
        yield "a member", fortress.token(org_role="org:member")


def test_every_placeholder_and_every_body_of_a_route_is_known_here(fortress: Fortress) -> None:
    """A new kind of id must be attacked, too: add it to the victim's things in fortress.py."""
    assert [*CUSTOMER_ROUTES, *OPERATOR_ROUTES, *PUBLIC_ROUTES] == [*ROUTES]
    for route in ROUTES:
        path_of(route, fortress.ids)
        if route.scopes:
            body_of(route)
    unowned = [
        name
        for route in CUSTOMER_ROUTES
        for name in PLACEHOLDER.findall(route.path)
        if name not in fortress.ids or name not in fortress.own
    ]
    assert unowned == []


@named(GUARDED)
def test_nobody_is_let_in(fortress: Fortress, route: Route) -> None:
    """401 in the same words whatever is wrong with the key, and not a row changes."""
    path, before = path_of(route, fortress.ids), fortress.possessions()
    seen = set()
    for what, headers in nobodies(fortress):
        answer = fortress.ask(route.method, path, headers=headers, json=body_of(route))
        assert is_problem(answer, 401, "unauthorized"), what
        assert answer.headers["www-authenticate"].startswith("Bearer"), what
        seen.add(str(same_but_for_its_id(answer)))
    twice = [("authorization", f"Bearer {fortress.keys['victim']}")] * 2
    answer = fortress.http.request(route.method, path, headers=twice)
    assert answer.status_code in (400, 401)

    assert len(seen) == 1
    assert fortress.possessions() == before


@named(GUARDED)
def test_a_key_of_the_wrong_kind_is_403(fortress: Fortress, route: Route) -> None:
    """A scope is no more than it says, and an operator's key speaks for no organization."""
    path, before = path_of(route, fortress.ids), fortress.possessions()
    for what, bearer in too_weak(fortress, route):
        answer = fortress.ask(route.method, path, bearer, json=body_of(route))
        assert is_problem(answer, 403, "wrong_scope"), what

    assert fortress.possessions() == before


@named(WITH_IDS)
def test_another_tenants_id_is_answered_like_a_missing_one(
    fortress: Fortress, route: Route
) -> None:
    """By body and status nobody learns that it exists; on the way nothing happens to it."""
    before = fortress.possessions()
    is_admin = route in OPERATOR_ROUTES
    names = [name for name in PLACEHOLDER.findall(route.path) if name in fortress.ids]
    foreign = [name for name in names if not (is_admin and name == "organization_id")]
    bearer = ADMIN_KEY if is_admin else fortress.keys["attacker"]
    for name in foreign:
        if is_admin and name == "event_id":
            continue  # Stripe's, not a tenant's
        said = []
        for asked in (fortress.ids[name], "nothing-has-this-id"):
            path = path_of(route, {**fortress.own, name: asked})
            answer = fortress.ask(route.method, path, bearer, json=body_of(route))
            said.append(same_but_for_its_id(answer, asked))
        assert said[0] == said[1]
        assert MARK not in str(said)
        # Of a person who is not known there is simply nothing to export or to erase.
        assert said[0][0] == (200 if name == "user_id" else 404), said

    assert fortress.possessions() == before


@named([route for route in CUSTOMER_ROUTES if route.scopes and route.method == "GET"])
def test_no_filter_and_no_cursor_leads_into_another_tenants_rows(
    fortress: Fortress, route: Route
) -> None:
    """A cursor is a place in one's own list, whoever it was made for."""
    bearer = fortress.keys["attacker"]
    path = path_of(route, fortress.own)
    answer = fortress.ask("GET", path, bearer)
    assert MARK not in answer.text
    assert VICTIM not in answer.text
    cursor = None
    if "limit" in route.query:
        page = fortress.ask("GET", path_of(route, fortress.ids), fortress.keys["victim"],
                            params={"limit": 1}).json()  # fmt: skip
        cursor = page["next_cursor"]
    for name in route.query:
        value = {**fortress.ids, "cursor": cursor}.get(name)
        if value is None:
            continue
        victims = path_of(route, fortress.ids)
        found = fortress.ask("GET", victims, fortress.keys["victim"], params={name: value})
        assert found.status_code == 200, name
        answer = fortress.ask("GET", path, bearer, params={name: value})
        if name == "period" and "data" not in answer.json():
            assert is_problem(answer, 404, "period_unknown")
        assert MARK not in answer.text.replace(value, ""), name
        if name != "cursor" and "data" in answer.json():
            assert answer.json()["data"] == [], name


@named(list(OPERATOR_ROUTES))
def test_no_spelling_of_an_operators_route_lets_a_tenant_in(
    fortress: Fortress, route: Route
) -> None:
    """Slashes, dots, case and other verbs: what a proxy in front may read differently."""
    before = fortress.possessions()
    path = path_of(route, fortress.ids)
    spellings = (path + "/", "/" + path, path.replace("/v1/", "//v1/"), path.upper(),
                 "/v1/.." + path, "/v1/%2e%2e" + path, path.replace("/admin", "/%61dmin"),
                 path + "%00", path + ";x", path + "?key=" + ADMIN_KEY)  # fmt: skip
    verbs = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE")
    requests = [(route.method, each) for each in spellings] + [(verb, path) for verb in verbs]
    for method, target in requests:
        answer = fortress.ask(method, target, fortress.keys["victim"], json=body_of(route))
        is_silent = method in ("OPTIONS", "HEAD") and not answer.content
        assert answer.status_code in (401, 403, 404, 405, 400) or is_silent, (method, target)
        assert MARK not in answer.text

    assert fortress.possessions() == before


@named([route for route in ROUTES if not route.scopes])
def test_what_needs_no_key_says_nothing_of_anybody(fortress: Fortress, route: Route) -> None:
    """Health, metrics and documents are for everybody, so no tenant is in them."""
    answer = fortress.ask(route.method, route.path)

    assert answer.status_code in (200, 400, 426)
    for word in (MARK, VICTIM, ATTACKER):
        assert word not in answer.text


def closed_with(url: str, **headers: str) -> int:
    """Return the code with which a stream that must not open is closed."""
    options: Any = {"additional_headers": headers, "open_timeout": 10}
    with connect(url, **options) as socket, pytest.raises(ConnectionClosedError) as closed:
        socket.recv(timeout=10)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


@pytest.mark.parametrize("path", ["/v1/agents/stream", "/v1/usage/live"])
def test_streams_close_4401_on_nobody_and_4403_on_the_wrong_scope(
    fortress: Fortress, path: str
) -> None:
    """Keys in a URL are nobody's either: they would stand in every log."""
    url = fortress.url.replace("http", "ws") + path
    for what, headers in nobodies(fortress):
        assert closed_with(url, **headers) == 4401, what
    key = fortress.keys["victim"]
    for query in (f"?key={key}", f"?token={key}", f"?ticket={key}", f"?authorization=Bearer+{key}"):
        assert closed_with(url + query) == 4401, query
    for bearer in (fortress.keys["manage"], ADMIN_KEY):
        assert closed_with(url, authorization=f"Bearer {bearer}") == 4403


def test_a_live_ticket_is_good_once_and_for_its_own_organization(fortress: Fortress) -> None:
    """Whoever finds a used ticket, or writes another tenant's name beside it, sees nothing."""
    url = fortress.url.replace("http", "ws") + "/v1/usage/live"
    asked = fortress.ask("POST", "/v1/usage/live/ticket", fortress.keys["attacker"])
    ticket = asked.json()["ticket"]
    query = f"?ticket={ticket}"
    with connect(url + query, origin=Origin(PAGE)) as socket:
        first = str(socket.recv(timeout=10))

    assert ATTACKER in first
    assert MARK not in first
    assert closed_with(url + query) == 4401
    assert is_problem(fortress.ask("GET", "/v1/quota", ticket), 401, "unauthorized")
    asked = fortress.ask("POST", "/v1/usage/live/ticket", fortress.keys["victim"])
    wrong_page = {"origin": "https://evil.example"}
    assert closed_with(f"{url}?ticket={asked.json()['ticket']}", **wrong_page) == 4403


def test_on_the_agent_stream_another_tenants_tasks_do_not_exist(fortress: Fortress) -> None:
    """The same id names one's own task: heartbeats and ends reach nobody else's."""
    before = fortress.possessions()
    url = fortress.url.replace("http", "ws") + "/v1/agents/stream"
    headers = {"authorization": f"Bearer {fortress.keys['attacker']}"}
    task_id = fortress.ids["task_id"]
    with connect(url, additional_headers=headers) as socket:
        for message in (
            f'{{"type":"heartbeat","task_id":"{task_id}","elapsed_ms":9}}',
            f'{{"type":"finish","task_id":"{task_id}","elapsed_ms":9,"outcome":"failed"}}',
        ):
            socket.send(message)
            answer = str(socket.recv(timeout=10))
            assert '"task_unknown"' in answer, answer
        socket.send(f'{{"type":"start","task_id":"{task_id}","agent_id":"own"}}')
        assert '"started"' in str(socket.recv(timeout=10))
        socket.send(f'{{"type":"finish","task_id":"{task_id}","elapsed_ms":9,"outcome":"failed"}}')
        while '"finished"' not in str(socket.recv(timeout=10)):
            pass

    assert fortress.possessions() == before


def test_an_idempotency_key_is_its_tenants_own(fortress: Fortress) -> None:
    """The same key and body of another tenant is another request, and replays nothing."""
    headers = {"idempotency-key": "the-same"}
    body = {"agent_id": "a", "task_id": "of-the-key"}
    first = fortress.ask("POST", "/v1/tasks", fortress.keys["victim"], json=body, headers=headers)
    other = fortress.ask("POST", "/v1/tasks", fortress.keys["attacker"], json=body, headers=headers)
    again = fortress.ask("POST", "/v1/tasks", fortress.keys["victim"], json=body, headers=headers)

    assert (first.status_code, other.status_code, again.status_code) == (201, 201, 201)
    assert "idempotency-replayed" not in other.headers
    assert again.headers["idempotency-replayed"] == "true"
