"""The grammar of a request head, stricter than the parsers behind it.

Rule 1: every request that reaches an application has passed `inspect_head`, whoever serves it.
Rule 2: what two parsers could read differently is refused, not repaired (RFC 9112, 9.3 and 11.2:
request smuggling starts there): bare LF, folded lines, a second Content-Length or Host, a length
together with a transfer coding.
Rule 3: pure functions of bytes; no I/O, and no exception for any input.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import attrs


_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(%b) ([!-~]+) HTTP/([0-9])\.([0-9])" % _TOKEN)
_HEADER_NAME = re.compile(rb"%b" % _TOKEN)
_NOT_IN_VALUE = re.compile(rb"[^\t -~\x80-\xff]")
_ABSOLUTE_TARGET = re.compile(rb"(?i:https?)://[A-Za-z0-9._~-]+(?::[0-9]{1,5})?(?:[/?][!-~]*)?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_NOT_A_METHOD = re.compile(rb"[^A-Za-z0-9!#$%&'*+\-.^_`|~ ]")


@attrs.frozen(kw_only=True)
class Refused:
    """A request that no application sees: the HTTP status and code of the short answer."""

    status: int
    code: str
    detail: str


@attrs.frozen(kw_only=True)
class Head:
    """A request head of good form; header names are in lower case, values without padding."""

    method: bytes
    target: bytes
    minor_version: int
    headers: Sequence[tuple[bytes, bytes]]
    content_length: int | None
    is_chunked: bool
    is_websocket_upgrade: bool

    @property
    def path(self) -> bytes:
        """The target up to the question mark, still percent-encoded."""
        return self.target.partition(b"?")[0]

    @property
    def query(self) -> bytes:
        """The target after the question mark, still percent-encoded."""
        return self.target.partition(b"?")[2]

    def values(self, name: bytes) -> list[bytes]:
        """Return every value of the header `name` (lower case), in order."""
        return [value for known, value in self.headers if known == name]


def _malformed(detail: str) -> Refused:
    return Refused(status=400, code="malformed_request", detail=detail)


BAD_FIRST_BYTES = _malformed("The request does not begin with a method.")


def inspect_beginning(data: bytes | bytearray, *, head_bytes_max: int) -> Refused | None:
    """Judge an unfinished head: refuse as soon as nothing that follows could make it good."""
    if _NOT_A_METHOD.match(data[:1]):
        return BAD_FIRST_BYTES
    if len(data) > head_bytes_max:
        return Refused(
            status=431, code="head_too_large", detail="The request line and headers are too large."
        )
    return None


def inspect_head(data: bytes, *, head_bytes_max: int, headers_max: int) -> Head | Refused:
    """Parse one whole head, the empty line at its end included."""
    if len(data) > head_bytes_max:
        return Refused(
            status=431, code="head_too_large", detail="The request line and headers are too large."
        )
    if not data.endswith(b"\r\n\r\n"):
        return _malformed("Lines end in CR LF.")
    lines = data[:-4].split(b"\r\n")
    if len(lines) - 1 > headers_max:
        return Refused(status=431, code="head_too_large", detail="There are too many headers.")
    request_line = _REQUEST_LINE.fullmatch(lines[0])
    if request_line is None:
        return _malformed("The request line is malformed.")
    method, target, major, minor = request_line.groups()
    if major != b"1" or minor not in {b"0", b"1"}:
        return Refused(status=505, code="version_not_supported", detail="Use HTTP/1.1.")
    if (refused := _inspect_target(method, target)) is not None:
        return refused
    headers: list[tuple[bytes, bytes]] = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not _HEADER_NAME.fullmatch(name) or _NOT_IN_VALUE.search(value):
            return _malformed("A header line is malformed.")
        headers.append((name.lower(), value.strip(b" \t")))
    return _inspect_headers(method, target, int(minor), headers)


def _inspect_target(method: bytes, target: bytes) -> Refused | None:
    if target.startswith(b"/"):
        return _malformed("The target has a fragment.") if b"#" in target else None
    if target == b"*" and method == b"OPTIONS":
        return None
    if _ABSOLUTE_TARGET.fullmatch(target) and b"#" not in target:
        return None
    return _malformed("The request target is malformed.")


def _inspect_headers(
    method: bytes, target: bytes, minor_version: int, headers: list[tuple[bytes, bytes]]
) -> Head | Refused:
    seen: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        seen.setdefault(name, []).append(value)
    hosts = seen.get(b"host", [])
    if len(hosts) > 1 or (minor_version == 1 and not hosts):
        return _malformed("Exactly one Host header is required.")
    lengths = seen.get(b"content-length", [])
    codings = seen.get(b"transfer-encoding", [])
    if len(lengths) > 1:
        return _malformed("Content-Length is repeated.")
    if lengths and codings:
        return _malformed("Content-Length and Transfer-Encoding exclude each other.")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        return _malformed("Content-Length is not a number.")
    if codings and (minor_version == 0 or len(codings) > 1):
        return _malformed("Transfer-Encoding is not acceptable here.")
    if codings and codings[0].lower() != b"chunked":
        return Refused(
            status=501, code="coding_not_supported", detail="Only chunked transfer is supported."
        )
    content_length = int(lengths[0]) if lengths else None
    upgrades = [value.lower() for value in seen.get(b"upgrade", [])]
    is_upgrade = (
        upgrades == [b"websocket"]
        and method == b"GET"
        and minor_version == 1
        and b"upgrade" in connection_options(seen.get(b"connection", []))
    )
    if is_upgrade and (codings or content_length):
        return _malformed("A WebSocket upgrade has no body.")
    return Head(
        method=method,
        target=target,
        minor_version=minor_version,
        headers=headers,
        content_length=content_length,
        is_chunked=bool(codings),
        is_websocket_upgrade=is_upgrade,
    )


def connection_options(values: Sequence[bytes]) -> set[bytes]:
    """Return the options of all Connection headers, in lower case."""
    return {option.strip().lower() for value in values for option in value.split(b",")}
