"""The two requests answered without an application: recognised exactly, or not at all.

Rule 1: a request is hot only if nothing about it is unusual. Anything else is not an error here:
it goes to Hypercorn with its bytes given back, so there is one behaviour and one set of answers.
Rule 2: a head that is hot would pass `inspect_head` too (a property test holds this).
Rule 3: parsing is httptools' (llhttp, strict); this file only decides what it means.

Agents send the same head again and again, so each connection remembers the last one it parsed,
and the hot path may say how to answer it again (`Repeatable`).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Final

import attrs
import httptools


class HotRoute(Enum):
    """Which of the hot requests this is."""

    QUOTA_CHECK = "GET /v1/quota/check"
    HEARTBEAT = "POST /v1/tasks/{id}/heartbeat"


@attrs.frozen(kw_only=True)
class HotRequest:
    """One hot request, ready to be answered from memory."""

    route: HotRoute
    method: str
    path: str
    query: str
    agent_id: str | None
    """From the query of a quota check; None when it asks for a new agent."""
    task_id: str | None
    """From the path of a heartbeat."""
    authorization: str | None
    """The whole header value, or None when there is none."""
    body: bytes
    client_address: str


Again = Callable[[], bytes | None]
"""Answers the same request once more, at once; None when it must be asked like a new one."""


@attrs.frozen
class Repeatable:
    """A whole HTTP response, and what answers the very same bytes when they come again."""

    answer: bytes
    again: Again


HotAnswer = bytes | Repeatable | None
"""A whole HTTP response (see `wire.http_response`), or None: an application shall answer."""

HotPath = Callable[[HotRequest], HotAnswer | Awaitable[HotAnswer]]
"""Answers hot requests: at once, or with something to await (a heartbeat's commit).

Returning None hands the request over untouched, so it must have had no effect. The response must
leave the connection open. Raising costs the client its connection, nothing else.
"""


@attrs.frozen(kw_only=True)
class HotHead:
    """What the head of a hot request says."""

    route: HotRoute
    method: str
    path: str
    query: str
    agent_id: str | None
    task_id: str | None
    authorization: str | None
    content_length: int
    forwarded_for: tuple[bytes, ...]


CHECK_PREFIX: Final = b"GET /v1/quota/check"
HEARTBEAT_PREFIX: Final = b"POST /v1/tasks/"

_CHECK_TARGET = re.compile(rb"/v1/quota/check(?:\?agent_id=([A-Za-z0-9._~-]{1,128}))?")
_HEARTBEAT_TARGET = re.compile(rb"/v1/tasks/([A-Za-z0-9._~-]{1,128})/heartbeat")
_JSON = re.compile(rb"application/json(?:[ \t]*;[ \t]*charset=utf-8)?", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,7}")
_UNUSUAL_BYTES = re.compile(rb"[^\r]\n|\r[^\n]|\n[ \t]|[^\t\r\n -~\x80-\xff]")
_CONTROLS_A_REQUEST = frozenset(
    {
        b"expect",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-encoding",
        b"forwarded",
        b"x-http-method-override",
    }
)
_ONCE = frozenset({b"host", b"authorization", b"content-length", b"content-type", b"connection"})


class _Collector:
    """What httptools reports about one head."""

    __slots__ = ("headers", "is_head_complete", "url")

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_head_complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.is_head_complete = True

    def forwarded_for(self) -> tuple[bytes, ...]:
        return tuple(value for name, value in self.headers if name == b"x-forwarded-for")


def recognise(
    data: bytes, *, head_bytes_max: int, headers_max: int, body_bytes_max: int
) -> HotHead | None:
    """Return what the head `data` asks for if it is hot and of the plainest form, else None."""
    if not data.startswith((CHECK_PREFIX, HEARTBEAT_PREFIX)) or len(data) > head_bytes_max:
        return None
    if _UNUSUAL_BYTES.search(data):
        return None
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    if not collector.is_head_complete or parser.get_http_version() != "1.1":
        return None
    headers = _plain_headers(collector.headers, headers_max=headers_max)
    if headers is None:
        return None
    method = parser.get_method()
    if method == b"GET" and (check := _CHECK_TARGET.fullmatch(collector.url)):
        return _check(check, collector, headers)
    if method == b"POST" and (heartbeat := _HEARTBEAT_TARGET.fullmatch(collector.url)):
        return _heartbeat(heartbeat, collector, headers, body_bytes_max=body_bytes_max)
    return None


def _check(
    target: re.Match[bytes], collector: _Collector, headers: dict[bytes, bytes]
) -> HotHead | None:
    if b"content-length" in headers or b"content-type" in headers:
        return None
    return HotHead(
        route=HotRoute.QUOTA_CHECK,
        method="GET",
        path="/v1/quota/check",
        query=collector.url.partition(b"?")[2].decode("ascii"),
        agent_id=None if target[1] is None else target[1].decode("ascii"),
        task_id=None,
        authorization=_text(headers.get(b"authorization")),
        content_length=0,
        forwarded_for=collector.forwarded_for(),
    )


def _heartbeat(
    target: re.Match[bytes],
    collector: _Collector,
    headers: dict[bytes, bytes],
    *,
    body_bytes_max: int,
) -> HotHead | None:
    length = headers.get(b"content-length", b"")
    if not _LENGTH.fullmatch(length) or not 0 < int(length) <= body_bytes_max:
        return None
    if not _JSON.fullmatch(headers.get(b"content-type", b"")):
        return None
    return HotHead(
        route=HotRoute.HEARTBEAT,
        method="POST",
        path=collector.url.decode("ascii"),
        query="",
        agent_id=None,
        task_id=target[1].decode("ascii"),
        authorization=_text(headers.get(b"authorization")),
        content_length=int(length),
        forwarded_for=collector.forwarded_for(),
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _plain_headers(
    pairs: list[tuple[bytes, bytes]], *, headers_max: int
) -> dict[bytes, bytes] | None:
    """Return the headers that matter here, each present at most once; None if any is unusual."""
    if len(pairs) > headers_max:
        return None
    found: dict[bytes, bytes] = {}
    for name, value in pairs:
        if name in _CONTROLS_A_REQUEST:
            return None
        if name in _ONCE:
            if name in found:
                return None
            found[name] = value.strip(b" \t")
    if b"host" not in found or found.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    return found
