"""Bytes the front door itself puts on the wire: short HTTP answers and whole text frames."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from meterd.web.front.head import Refused


_SMALL_FRAME_BYTES = 126
_MEDIUM_FRAME_BYTES = 65_536


def text_frame(payload: bytes) -> bytes:
    """Return `payload` as one whole, unmasked text frame (RFC 6455, 5.2)."""
    size = len(payload)
    if size < _SMALL_FRAME_BYTES:
        return b"\x81%c%b" % (size, payload)
    if size < _MEDIUM_FRAME_BYTES:
        return struct.pack("!BBH", 0x81, 126, size) + payload
    return struct.pack("!BBQ", 0x81, 127, size) + payload


def http_response(
    status: int, body: bytes, headers: Iterable[tuple[str, str]] = (), *, closes: bool = False
) -> bytes:
    """Return a whole HTTP/1.1 response; what a hot path answers with.

    `content-length` is added; with `closes`, `connection: close` too. Header names and values
    are the caller's own: nothing from a request may be in them.
    """
    lines = [f"HTTP/1.1 {status} {_phrase(status)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines.append(f"content-length: {len(body)}")
    if closes:
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


PROBLEM_JSON: Final = "application/problem+json"


def problem(refused: Refused, request_id: str) -> bytes:
    """Return the problem document (RFC 9457) of a refusal; echoes nothing."""
    return json.dumps(
        {
            "type": "about:blank",
            "title": _phrase(refused.status),
            "status": refused.status,
            "detail": refused.detail,
            "instance": f"urn:uuid:{request_id}",
            "code": refused.code,
            "request_id": request_id,
        },
        separators=(",", ":"),
    ).encode()


def refusal(refused: Refused, *, request_id: str, retry_after_s: int | None = None) -> bytes:
    """Return the answer that ends a connection with a problem document."""
    body = problem(refused, request_id)
    headers = [("content-type", PROBLEM_JSON)]
    if retry_after_s is not None:
        headers.append(("retry-after", str(retry_after_s)))
    return http_response(refused.status, body, headers, closes=True)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Response"
