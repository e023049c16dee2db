"""Generated requests, byte for byte the same, with and without hot path: one behaviour.

The bytes are written to a socket as they are, because clients mend what is odd. What the front
door lets through must be answered the same, what it refuses must be refused the same.
"""

from __future__ import annotations

import json
import random
import re

import pytest
import trio

from tests.served import ADMIN_KEY, World, open_front, open_world


REQUESTS = 60
"""Per seed: half a second."""

TIMES = 3
"""On one connection: what is asked again may be answered by a template."""

CHANGING = {b"x-request-id", b"date", b"content-length", b"connection"}
"""Of the last: an application that answers before it has read the body closes, at times."""
MOVING = re.compile(
    rb'"(?:instance|request_id|as_of|last_heartbeat_at)":"[^"]*"|"projected_ms":[0-9]+'
)
SECONDS_LEFT = re.compile(rb"(?<=;t=)[0-9]+$|(?<=^retry-after: )[0-9]{3,}$")
"""To the end of the period."""


def any_request(chance: random.Random, keys: list[str]) -> bytes:
    """Return a request that is hot, or nearly, or not at all."""

    def mostly(usual: str, *odd: str) -> str:
        return usual if chance.random() < 0.7 else chance.choice(odd)

    is_check = chance.random() < 0.5
    if is_check:
        method = mostly("GET", "HEAD", "POST", "get", "OPTIONS")
        query = mostly(
            chance.choice(("", "?agent_id=a", "?agent_id=b")),
            "?", "?agent_id=", "?agent_id=%61", "?agent_id=a&agent_id=b", "?agent_id=a+b",
            "?x=1", "?agent_id=" + "a" * 129, "?agent_id=%ff", "?agent_id=a#b",
        )  # fmt: skip
        target = mostly(
            "/v1/quota/check", "/v1/quota/check/", "/v1//quota/check", "/V1/quota/check",
            "/v1/quota", "/v1/quota/checks", "/v1/quota/%63heck",
        ) + query  # fmt: skip
        body = mostly("", "{}", "x")
    else:
        method = mostly("POST", "PUT", "GET", "post")
        task_id = mostly("t", "nobody", "%74", "t.", "t" * 129, "t%2Fu", "..", "T")
        target = f"/v1/tasks/{task_id}/heartbeat" + mostly("", "?", "?x=1", "/")
        body = mostly(
            '{"elapsed_ms":1000}',
            ' { "elapsed_ms" :\t1000 }\r\n', "", "{}", "[]", '{"elapsed_ms":-1}',
            '{"elapsed_ms":1e3}', '{"elapsed\\u005fms":1000}', '{"elapsed_ms":null}',
            '{"elapsed_ms":01000}', '{"elapsed_ms":"1000"}', '{"elapsed_ms":99999999999}',
            '{"elapsed_ms":2678400001}', '{"elapsed_ms":1000}x', '\ufeff{"elapsed_ms":1000}',
            '{"elapsed_ms":1000,"elapsed_ms":1000}',
        )  # fmt: skip
    content = body.encode()
    headers = [
        mostly("host: x", "Host: x", "host:x", "HOST:  x  ", "host: x:80"),
        "authorization: "
        + mostly(
            f"Bearer {chance.choice(keys)}",
            f"bearer {chance.choice(keys)}", f"BEARER   {chance.choice(keys)} ", "Bearer",
            "Bearer mk_live_wrong", f"Basic {chance.choice(keys)}", f"Bearer {ADMIN_KEY}",
            f"Bearer {chance.choice(keys)}x", "",
        ),
    ]  # fmt: skip
    if content or not is_check:
        headers.append(f"content-length: {len(content)}")
    if not is_check:
        headers.append(
            "content-type: "
            + mostly(
                "application/json", "application/json; charset=utf-8", "APPLICATION/JSON",
                "text/plain", "application/json; charset=latin-1", "application/jsonx",
            )
        )  # fmt: skip
    for extra in (
        "accept: */*", "connection: keep-alive", "x-forwarded-for: 1.2.3.4", "te: trailers",
        "expect: 100-continue", "host: y", "content-length: 0", "x-request-id: mine",
        "cookie: a=b", "accept-encoding: gzip", "authorization: Bearer x", "x: \u00e9",
        "transfer-encoding: chunked", "forwarded: for=1.2.3.4", "range: bytes=0-1",
    ):  # fmt: skip
        if chance.random() < 0.05:
            headers.insert(chance.randrange(len(headers) + 1), extra)
    version = mostly("HTTP/1.1", "HTTP/1.1", "HTTP/1.0") if chance.random() < 0.2 else "HTTP/1.1"
    return (f"{method} {target} {version}\r\n" + "\r\n".join(headers) + "\r\n\r\n").encode(
        "latin-1"
    ) + content


async def answers(
    port: int, request: bytes, *, times: int
) -> list[tuple[bytes, dict[bytes, bytes], bytes]]:
    """Return status, headers and body of a request's answers, asked again where it may be."""
    found: list[tuple[bytes, dict[bytes, bytes], bytes]] = []
    while len(found) < times:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            while len(found) < times and (data := await answer(stream, request)):
                found.append(parsed(data))
            if not data and not found:
                return [parsed(b"")] * times  # closed unanswered
    return found


async def answer(stream: trio.SocketStream, request: bytes) -> bytes:
    """Return the answer on a connection; nothing when it is closed."""
    data = b""
    with trio.move_on_after(10):
        try:
            await stream.send_all(request)
            while not is_whole(data, request):
                more = await stream.receive_some(65_536)
                if not more:
                    break
                data += more
        except trio.BrokenResourceError:
            pass
    return data


def parsed(data: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Return the final status, the headers and the body of an answer; empty ones for none."""
    while data.startswith(b"HTTP/1.1 100"):
        data = data.partition(b"\r\n\r\n")[2]
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    status = status[:12]  # the phrase after the code says nothing (RFC 9112, 4)
    fields = [SECONDS_LEFT.sub(b"", line).partition(b": ")[::2] for line in lines]
    return status, {n.lower(): v for n, v in fields if n.lower() not in CHANGING}, body


def is_whole(data: bytes, request: bytes) -> bool:
    """Tell whether an answer is complete."""
    while data.startswith(b"HTTP/1.1 100"):
        data = data.partition(b"\r\n\r\n")[2]
    head, gap, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *([0-9]+)", head)
    if not gap or length is None:
        return False
    return request.startswith(b"HEAD ") or len(body) >= int(length[1])


def still(body: bytes) -> object:
    """Return a body without what differs from one instant, or one request, to the next."""
    text = MOVING.sub(b'"moving":0', body)
    try:
        return json.loads(text)
    except ValueError:
        return text


@pytest.mark.parametrize("seed", range(6))
async def test_generated_requests_are_answered_the_same_both_ways(seed: int) -> None:
    """Status, headers and body, whatever the bytes; ids, dates and instants aside."""
    chance = random.Random(seed)
    async with open_world() as world:
        keys = await prepared(world)
        async with open_front(world) as hot, open_front(world, is_hot=False) as plain:
            for number in range(REQUESTS):
                request = any_request(chance, keys)
                seen = []
                for port in (hot, plain):
                    found = await answers(port, request, times=TIMES)
                    seen.append([(status, headers, still(body)) for status, headers, body in found])
                assert seen[0] == seen[1], (seed, number, request)
                assert seen[0][0][0], (seed, number, request)


async def prepared(world: World) -> list[str]:
    """Return keys of organizations in different states; task `t` runs in the first."""
    await world.add()
    await world.add("org_full", plan="free", contract={"agent_minutes": 0})
    await world.add("org_open", plan="enterprise")
    keys = [
        await world.key("agent"),
        await world.key("agent", "read"),
        await world.key("manage"),
        await world.key("read", organization_id="org_full"),
        await world.key("agent", organization_id="org_open"),
    ]
    await world.ask("POST", "/v1/tasks", keys[0], content={"task_id": "t", "agent_id": "a"})
    return keys
