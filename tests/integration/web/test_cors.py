"""Browsers: which pages may read usage, and what they are told before they ask."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from trio.testing import MockClock

from tests.served import PAGE, World, open_world


ALLOWED = "access-control-allow-origin"


@pytest.fixture
async def world(autojump_clock: MockClock) -> AsyncIterator[World]:
    """Give a meterd with an organization."""
    async with open_world() as world:
        await world.add()
        yield world


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/usage", 200),
        ("GET", "/v1/usage?period=1999-01", 404),
        ("GET", "/v1/usage/periods", 200),
        ("GET", "/v1/invoice/preview", 200),
        ("POST", "/v1/usage/live/ticket", 201),
    ],
)
async def test_a_listed_page_may_read_usage_and_what_went_wrong(
    autojump_clock: MockClock, world: World, method: str, path: str, status: int
) -> None:
    """Without this header the browser hides the answer from the page that asked for it."""
    answer = await world.ask(method, path, await world.key("read"), headers={"Origin": PAGE})

    assert answer.status_code == status
    assert (answer.headers[ALLOWED], answer.headers["vary"]) == (PAGE, "Origin")
    assert "access-control-allow-credentials" not in answer.headers


async def test_a_listed_page_may_send_a_token(autojump_clock: MockClock, world: World) -> None:
    """A browser asks first, without the token, whether the page may send one."""
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    answer = await world.ask("OPTIONS", "/v1/usage/live/ticket", headers=asked)

    assert answer.status_code == 200
    assert answer.headers[ALLOWED] == PAGE
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert "POST" in answer.headers["access-control-allow-methods"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"{PAGE}.evil.example", ""])
async def test_other_pages_may_not(autojump_clock: MockClock, world: World, origin: str) -> None:
    """The browser keeps the answer from them; caches keep the answers apart."""
    for method in ("GET", "OPTIONS"):
        key = await world.key("read")
        answer = await world.ask(method, "/v1/usage", key, headers={"Origin": origin})

        assert ALLOWED not in answer.headers
        assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("path", ["/v1/keys", "/v1/usagex", "/admin/v1/organizations", "/metrics"])
async def test_nothing_else_is_opened_to_pages(
    autojump_clock: MockClock, world: World, path: str
) -> None:
    """What changes something, or is an operator's, is asked for by servers."""
    answer = await world.ask("OPTIONS", path, headers={"Origin": PAGE})

    assert ALLOWED not in answer.headers
