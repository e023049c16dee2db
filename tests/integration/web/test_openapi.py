"""The OpenAPI document has every route in it; Schemathesis holds the service to what it says."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from urllib.parse import urlencode

import pytest
from trio.testing import MockClock

from meterd.web.openapi import document, documented, registered, route_of
from meterd.web.openapi_routes import ROUTES
from tests.served import ADMIN_KEY, World, open_world


@pytest.fixture
async def world(autojump_clock: MockClock) -> AsyncIterator[World]:
    """Give a service with two organizations, one with an agent at work and some events."""
    async with open_world() as world:
        await world.add("org_1", "enterprise")
        await world.add("org_2", "free")
        yield world


async def test_every_route_is_documented_and_nothing_else_is(
    autojump_clock: MockClock, world: World
) -> None:
    """A route without words is one that nobody can use, and words without a route are a lie."""
    routes = {(method, path) for method, path, _ in registered(world.web.app)}
    found = document(world.web.app)["paths"]

    assert {(route.method, route.path) for route in ROUTES} == routes
    assert {
        (method.upper(), path) for path, operations in found.items() for method in operations
    } == {(method, documented(path)) for method, path in routes}
    assert all(o["summary"] for operations in found.values() for o in operations.values())


async def test_every_reference_leads_somewhere_and_ids_are_unique(
    autojump_clock: MockClock, world: World
) -> None:
    """Generators of clients stop at the first reference into nothing."""
    found = (await world.ask("GET", "/openapi.json")).data
    text = json.dumps(found)
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    ids = [o["operationId"] for operations in found["paths"].values() for o in operations.values()]

    assert found["openapi"].startswith("3.1")
    assert names <= found["components"]["schemas"].keys()
    assert len(ids) == len(set(ids))


async def test_the_document_is_made_once_however_often_strangers_ask(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a tenth of a second in which nobody else is answered, and needs no key."""
    first = await world.ask("GET", "/openapi.json")
    monkeypatch.delattr("meterd.web.openapi.document")
    again = await world.ask("GET", "/openapi.json")

    assert (first.status_code, again.status_code) == (200, 200)
    assert first.raw == again.raw


async def test_the_page_loads_nothing_from_elsewhere(
    autojump_clock: MockClock, world: World
) -> None:
    """Operators look things up where there is no internet, and no third party hears of it."""
    page = await world.ask("GET", "/docs")
    script = await world.ask("GET", "/docs/page.js")

    assert (page.status_code, script.status_code) == (200, 200)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(rb"https?://", page.raw + script.raw)
    assert b"innerHTML" not in script.raw


async def test_documented_parameters_are_taken_and_others_are_refused(
    autojump_clock: MockClock, world: World
) -> None:
    """A parameter in the document that the route refuses, or the other way round, is a lie."""
    key = await world.key("agent", "read", "manage")
    for route in ROUTES:
        if route.method != "GET" or "<" in route.path or not route.scopes:
            continue
        bearer = ADMIN_KEY if route.scopes == ("admin",) else key
        unknown = await world.ask("GET", f"{route.path}?surely_not_known=1", bearer)
        assert unknown.status_code in (404, 422), route.path
        for name in route.query:
            answer = await world.ask("GET", f"{route.path}?{urlencode({name: '~'})}", bearer)
            if answer.status_code == 422:
                details = [problem["detail"] for problem in answer.data["errors"]]
                assert not any("not known" in detail for detail in details), (route.path, name)


async def test_routes_that_take_keys_are_those_that_say_so(
    autojump_clock: MockClock, world: World
) -> None:
    """Heartbeats and finishes are cumulative and need no key; every other POST honours one."""
    kept = {
        (method, path)
        for method, path, _ in registered(world.web.app)
        if method == "POST" and (route := route_of(method, path)) is not None and route.takes_keys
    }

    assert ("POST", "/v1/tasks/<path:task_id>/heartbeat") not in kept
    assert ("POST", "/v1/tasks") in kept
