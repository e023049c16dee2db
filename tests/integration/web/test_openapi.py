"""The OpenAPI document says what happens: every route is in it, and no answer is outside of it."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from trio.testing import MockClock

from meterd.web.openapi import document, documented, registered, route_of
from meterd.web.openapi_routes import ROUTES
from tests.json_schema import wrongs
from tests.served import ADMIN_KEY, Seen, World, open_world


ROUNDS = 25
"""Requests of each kind, per operation."""

NASTY: list[Any] = [
    None,
    True,
    -1,
    0,
    2**63,
    1e308,
    "",
    "\0",
    "a" * 300,
    "\ud800",
    "=cmd()",
    "../..",
    "٣",
    [],
    {},
    {"a": "\0"},
    [[[[[[[]]]]]]],
]


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


def value_for(schema: dict[str, Any], components: dict[str, Any], chance: random.Random) -> Any:
    """Return a value that a schema allows, more or less; sometimes one that it does not."""
    if chance.random() < 0.08:
        return chance.choice(NASTY)
    if "$ref" in schema:
        schema = components[schema["$ref"].rpartition("/")[2]]
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return value_for(chance.choice(options), components, chance)
    if "enum" in schema:
        return chance.choice(schema["enum"])
    kind = schema.get("type", "object")
    match chance.choice(kind) if isinstance(kind, list) else kind:
        case "object":
            properties = schema.get("properties", {})
            required = schema.get("required", [])
            return {
                name: value_for(of, components, chance)
                for name, of in properties.items()
                if name in required or chance.random() < 0.5
            }
        case "array":
            count = chance.randrange(4)
            return [value_for(schema.get("items", {}), components, chance) for _ in range(count)]
        case "integer" | "number":
            least = schema.get("minimum", -5)
            return chance.randint(least, min(schema.get("maximum", 1_000), least + 100_000))
        case "boolean":
            return chance.random() < 0.5
        case "null":
            return None
        case _:
            words = ["a", "org_1", "2026-02", "2026-02-12T09:30:00Z", "0.01", "49.00", "1.0", "x y"]
            return chance.choice([*words, "agent-1", "application/json", "https://example.com/"])


def requests(
    operation: dict[str, Any], components: dict[str, Any], path: str, chance: random.Random
) -> Iterator[tuple[str, dict[str, str], bytes | None]]:
    """Yield (target, headers, body) of requests that are nearly right."""
    names = ["org_1", "org_2", "a", "t-1", "2026-02", "2026-02-12", "metrics", "%00", "ü", "a/b"]
    for _ in range(ROUNDS):
        target = re.sub(r"\{\w+\}", lambda _: quote(chance.choice(names), safe=""), path)
        query = {
            each["name"]: str(value_for(each["schema"], components, chance))
            for each in operation.get("parameters", [])
            if each["in"] == "query" and chance.random() < 0.4
        }
        headers: dict[str, str] = {}
        if chance.random() < 0.2:
            headers["Idempotency-Key"] = chance.choice(["k", "k2", "", "x" * 300])
        if chance.random() < 0.2:
            headers["Accept"] = chance.choice(["text/csv", "text/markdown", "*/*", "garbage"])
        body = None
        if "requestBody" in operation:
            content = operation["requestBody"]["content"]
            media = chance.choice(list(content))
            headers["Content-Type"] = "text/plain" if chance.random() < 0.05 else media
            value = value_for(content[media]["schema"], components, chance)
            body = json.dumps(value).encode() if chance.random() > 0.05 else b'{"a":'
        encoded = urlencode(query, errors="replace")
        yield target + (f"?{encoded}" if encoded else ""), headers, body


def undocumented(operation: dict[str, Any], components: dict[str, Any], answer: Seen) -> list[str]:
    """Return what of an answer is not in the document: its status, its media type, its body."""
    said = operation["responses"].get(str(answer.status_code))
    if said is None:
        return ["the status"]
    media = answer.headers.get("content-type", "").partition(";")[0]
    content = said.get("content", {})
    if media not in content:
        return ["the media type"] if media or content else []
    if not media.endswith("json"):
        return []
    return wrongs(answer.data, content[media]["schema"], components)


@pytest.mark.parametrize("seed", range(2))
async def test_no_request_gets_a_500_or_an_answer_that_is_not_documented(
    autojump_clock: MockClock, world: World, seed: int
) -> None:
    """Whatever is sent, nearly right or badly wrong, the document knows the answer and its body."""
    chance = random.Random(seed)
    found = (await world.ask("GET", "/openapi.json")).data
    components = found["components"]["schemas"]
    key = await world.key("agent", "read", "manage")
    await world.ask("POST", "/v1/tasks", key, content={"agent_id": "a", "task_id": "t-1"})
    wrong = []
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            for target, headers, body in requests(operation, components, path, chance):
                bearer = chance.choice([key, ADMIN_KEY, ADMIN_KEY, key, None, "mk_live_wrong"])
                answer = await world.ask(method.upper(), target, bearer, headers=headers, body=body)
                found_wrong = undocumented(operation, components, answer)
                if answer.status_code == 500 or found_wrong:
                    wrong.append((method, target, body, answer.status_code, found_wrong))

    assert wrong == []


@pytest.mark.parametrize(
    ("value", "places"),
    [
        ({"id": "a", "n": 1}, []),
        ({"id": "a", "n": None}, []),
        ({"id": 1, "n": "x"}, ["/id", "/n"]),
        ({"n": True}, ["/id", "/n"]),
        ({"id": "a", "n": 1, "secret": "s"}, ["/secret"]),
        ([], [""]),
    ],
)
def test_the_check_of_bodies_has_teeth(value: Any, places: list[str]) -> None:
    """A validator that passes everything would make the test above a rubber stamp."""
    thing = {
        "type": "object",
        "properties": {"id": {"type": "string"}, "n": {"type": ["integer", "null"]}},
        "required": ["id", "n"],
    }
    found = wrongs(value, {"$ref": "#/components/schemas/Thing"}, {"Thing": thing})

    assert [each.partition(":")[0] for each in found] == places


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
