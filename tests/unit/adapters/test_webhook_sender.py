"""The sender: where it goes, where it never goes, and what it takes from the other side."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from meterd.adapters.webhook_sender import HttpsSender, checked_url, is_public
from meterd.ports.webhooks import WebhookRefusedError


HIDDEN = [
    "0.0.0.0",  # noqa: S104 - never bound
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.170",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:93.184.216.34",
    "64:ff9b::7f00:1",
    "64:ff9b::5db8:d822",
    "64:ff9b:1::7f00:1",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a00:1::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]


@pytest.mark.parametrize("text", HIDDEN)
def test_no_address_of_a_network_of_ours_is_public(text: str) -> None:
    """Loopback, private, link-local, multicast, reserved, and IPv4 in any IPv6 disguise."""
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "2a00:1450::1"])
def test_hosts_of_the_internet_are_public(text: str) -> None:
    """Otherwise nothing would ever be delivered."""
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "https://",
        "https:///path",
        "https://user:secret@example.com/",
        "https://example.com/#part",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://[::1%25eth0]/",
        "https://[::1",
        "https://exa mple.com/",
        "https://example.com/a b",
        "https://example.com/\t",
        "https://example.com/\r\nx: y",
        "https://①②⑦.0.0.1/",
        "https://example.com\\@127.0.0.1/",
        "javascript:alert(1)",
        "//example.com",
    ],
)
def test_a_url_that_is_no_plain_https_address_is_refused(url: str) -> None:
    """Before any name is looked up."""
    with pytest.raises(WebhookRefusedError):
        checked_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://localhost/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://0177.0.0.1/",
        "https://0/",
        "https://0.0.0.0/",
        "https://127.1/",
        "https://localhost./",
        "https://LOCALHOST/",
        "https://[::]/",
        "https://[::127.0.0.1]/",
        "https://[0:0:0:0:0:ffff:7f00:1]/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/",
        "https://224.0.0.1/",
    ],
)
async def test_what_resolves_to_a_hidden_address_is_never_connected_to(url: str) -> None:
    """However the address is spelled."""
    with pytest.raises(WebhookRefusedError, match=r"not public|cannot be resolved"):
        await HttpsSender().post(url, {}, b"")


async def test_a_name_is_looked_up_once_and_nothing_else_is_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that answers differently the second time has no second time."""
    looked_up: list[str] = []

    async def resolve(host: str, port: int, **_: object) -> list[object]:
        await trio.lowlevel.checkpoint()
        looked_up.append(host)
        target = ("127.0.0.1", port) if len(looked_up) == 1 else ("10.0.0.1", port)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", target)]

    async with serving(answer_ok) as url:
        monkeypatch.setattr(trio.socket, "getaddrinfo", resolve)
        port = url.split(":")[2].split("/")[0]
        sender = HttpsSender(is_private_allowed=True)

        status = await sender.post(f"http://rebound.example:{port}/", {}, b"")

    assert (status, looked_up) == (200, ["rebound.example"])


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"])
async def test_no_proxy_of_the_environment_is_used(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would resolve the name again, and reach what we may not."""
    monkeypatch.setenv(name, "http://127.0.0.1:1")

    async with serving(answer_ok) as url:
        assert await HttpsSender(is_private_allowed=True).post(url, {}, b"") == 200


async def test_one_hidden_address_among_public_ones_is_enough_to_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name with several addresses must not be tried until one answers."""

    async def resolve(*_: object, **__: object) -> list[object]:
        await trio.lowlevel.checkpoint()
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("93.184.216.34", 443)), (*kind, ("10.0.0.1", 443))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", resolve)
    with pytest.raises(WebhookRefusedError, match="not public"):
        await HttpsSender().post("https://example.com/", {}, b"")


Handler = Callable[[trio.SocketStream, bytes], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Serve requests on this machine and give the URL."""

    async def serve(stream: trio.SocketStream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.receive_some(65_536)
        try:
            await handler(stream, request)
            await stream.send_eof()
        except trio.BrokenResourceError:
            return

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/hook?x=1"
        nursery.cancel_scope.cancel()


async def answer_ok(stream: trio.SocketStream, _: bytes) -> None:
    """Answer 200."""
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def test_the_request_is_what_was_asked_for_and_the_status_comes_back() -> None:
    """Headers, length and body as given; a redirect is an answer, not an invitation."""
    seen: list[bytes] = []

    async def handler(stream: trio.SocketStream, request: bytes) -> None:
        seen.append(request)
        await stream.send_all(b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\n\r\n")

    async with serving(handler) as url:
        status = await HttpsSender(is_private_allowed=True).post(url, {"webhook-id": "e"}, b"{}")

    assert status == 302
    assert len(seen) == 1
    assert seen[0].startswith(b"POST /hook?x=1 HTTP/1.1\r\n")
    assert b"webhook-id: e\r\n" in seen[0].lower()
    assert seen[0].endswith(b"\r\n\r\n{}")


async def test_an_answer_without_end_is_cut_off() -> None:
    """A customer's server must not fill our memory."""

    async def handler(stream: trio.SocketStream, _: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
        while True:
            await stream.send_all(b"x" * 16_384)

    async with serving(handler) as url:
        with pytest.raises(WebhookRefusedError, match="64 KiB"):
            await HttpsSender(is_private_allowed=True).post(url, {}, b"{}")


async def test_a_server_that_says_nothing_is_left() -> None:
    """In all, not per read."""

    async def handler(stream: trio.SocketStream, _: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            await trio.sleep(0.05)
            await stream.send_all(b"x")

    async with serving(handler) as url:
        with pytest.raises(WebhookRefusedError, match="no answer"):
            await HttpsSender(is_private_allowed=True, timeout_s=0.3).post(url, {}, b"{}")


async def test_what_is_no_http_is_said_in_our_words() -> None:
    """The other side's bytes are in no error: they would be shown to whoever chose the URL."""

    async def handler(stream: trio.SocketStream, _: bytes) -> None:
        await stream.send_all(b"SSH-2.0-secret banner\r\n\r\n")

    async with serving(handler) as url:
        with pytest.raises(WebhookRefusedError) as caught:
            await HttpsSender(is_private_allowed=True).post(url, {}, b"{}")
    assert str(caught.value) == "the answer is not HTTP"


async def test_a_server_without_a_certificate_we_know_is_refused() -> None:
    """TLS to a plain server fails as TLS, within the time."""

    async def handler(stream: trio.SocketStream, _: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")

    async with serving(handler) as url:
        with pytest.raises(WebhookRefusedError):
            await HttpsSender(is_private_allowed=True, timeout_s=1).post(
                url.replace("http:", "https:"), {}, b"{}"
            )
