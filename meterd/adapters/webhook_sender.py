"""Posting to addresses that customers chose (`WebhookSender`), without reaching into our network.

Rule 1: the name is resolved here, every address it has is judged, and the connection goes to an
        address that was judged: there is no second look-up that could answer differently.
Rule 2: https only, redirects are answers like any other, five seconds in all, 64 KiB read at most.
Rule 3: nothing of the answer leaves but its status; errors say what was wrong in our words.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from urllib.parse import SplitResult, urlsplit

import attrs
import h11
import trio

from meterd.ports.webhooks import WebhookRefusedError


TIMEOUT_S: Final = 5
"""Seconds for everything: look-up, connection, handshake, request and answer."""

ANSWER_BYTES_MAX: Final = 64 * 1024

READ_BYTES: Final = 16 * 1024

USER_AGENT: Final = "meterd"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""RFC 4291: all IPv6 unicast there is in public; mapped and translated IPv4 lies outside of it."""

_TUNNELS = (
    ipaddress.IPv6Network("2001::/23"),  # protocol assignments, Teredo among them
    ipaddress.IPv6Network("2002::/16"),  # 6to4: any IPv4 address in disguise
    ipaddress.IPv6Network("3fff::/20"),  # documentation
)
_NEVER_V4 = (
    ipaddress.IPv4Network("192.0.0.0/24"),  # protocol assignments
    ipaddress.IPv4Network("192.88.99.0/24"),  # 6to4 relays
)


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the public internet, and a single host's.

    `is_global` alone says yes to multicast, to 6to4 and to addresses that translate to IPv4.
    """
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NEVER_V4)
    return address in _GLOBAL_UNICAST and not any(address in network for network in _TUNNELS)


def checked_url(url: str, *, is_private_allowed: bool = False) -> SplitResult:
    """Return the parts of a URL that may be posted to. Errors: WebhookRefusedError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise WebhookRefusedError("the URL cannot be understood") from None
    schemes = ("https", "http") if is_private_allowed else ("https",)
    if parts.scheme not in schemes:
        raise WebhookRefusedError("the URL must begin with https://")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise WebhookRefusedError("the URL has a character that must be encoded")
    if not parts.hostname:
        raise WebhookRefusedError("the URL has no host")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise WebhookRefusedError("the URL must have no user name and no fragment")
    if "%" in parts.hostname or port == 0:
        raise WebhookRefusedError("the URL's host or port is not one")
    return parts


@attrs.frozen(kw_only=True)
class HttpsSender:
    """Posts over connections of its own, one a request."""

    is_private_allowed: bool = False
    """For tests: http, and addresses of this machine and network."""
    context: ssl.SSLContext = attrs.Factory(ssl.create_default_context)
    timeout_s: float = TIMEOUT_S

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Return the status of the answer, whatever it is. Errors: WebhookRefusedError."""
        parts = checked_url(url, is_private_allowed=self.is_private_allowed)
        with _in_our_words():
            with trio.move_on_after(self.timeout_s):
                return await self._post(parts, headers, body)
        raise WebhookRefusedError(f"no answer within {self.timeout_s:g} s")

    async def _post(self, parts: SplitResult, headers: Mapping[str, str], body: bytes) -> int:
        assert parts.hostname is not None, parts
        port = parts.port or (443 if parts.scheme == "https" else 80)
        stream: trio.abc.Stream = await self._connect(parts.hostname, port)
        try:
            if parts.scheme == "https":
                stream = trio.SSLStream(
                    stream, self.context, server_hostname=parts.hostname, https_compatible=True
                )
            return await _exchange(stream, parts, headers, body)
        finally:
            await trio.aclose_forcefully(stream)

    async def _connect(self, host: str, port: int) -> trio.SocketStream:
        """Connect to one of the host's addresses, all of which must be allowed."""
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        targets = list(dict.fromkeys((family, target) for family, _, _, _, target in found))
        for _, target in targets:
            address = ipaddress.ip_address(str(target[0]).partition("%")[0])
            if not self.is_private_allowed and not is_public(address):
                raise WebhookRefusedError("the host has an address that is not public")
        error: OSError = OSError("the host has no address")
        for family, target in targets:
            stream = trio.SocketStream(trio.socket.socket(family, socket.SOCK_STREAM))
            try:
                await stream.socket.connect(target)
            except OSError as failed:
                await stream.aclose()
                error = failed
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
            else:
                return stream
        raise error


async def _exchange(
    stream: trio.abc.Stream, parts: SplitResult, headers: Mapping[str, str], body: bytes
) -> int:
    """Send the request and read the answer to its end, as far as it may go."""
    connection = h11.Connection(h11.CLIENT)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    request = h11.Request(
        method="POST",
        target=target,
        headers=[
            ("host", parts.netloc),
            ("user-agent", USER_AGENT),
            ("connection", "close"),
            ("content-length", str(len(body))),
            *headers.items(),
        ],
    )
    for part in (request, h11.Data(data=body), h11.EndOfMessage()):
        await stream.send_all(connection.send(part) or b"")
    status, read_bytes = 0, 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = await stream.receive_some(READ_BYTES)
            read_bytes += len(data)
            if read_bytes > ANSWER_BYTES_MAX:
                raise WebhookRefusedError("the answer is larger than 64 KiB")
            connection.receive_data(bytes(data))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif not isinstance(event, h11.InformationalResponse | h11.Data):
            return status


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Say what went wrong without a word that the other side chose."""
    try:
        yield
    except socket.gaierror as error:
        raise WebhookRefusedError("the host's name cannot be resolved") from error
    except UnicodeError as error:
        raise WebhookRefusedError("the host's name is not one") from error
    except ssl.SSLError as error:
        raise WebhookRefusedError("the TLS handshake failed") from error
    except trio.BrokenResourceError as error:
        is_tls = isinstance(error.__cause__, ssl.SSLError)
        text = "the TLS handshake failed" if is_tls else "the connection broke"
        raise WebhookRefusedError(text) from error
    except h11.RemoteProtocolError as error:
        raise WebhookRefusedError("the answer is not HTTP") from error
    except OSError as error:
        raise WebhookRefusedError("the host cannot be reached") from error
