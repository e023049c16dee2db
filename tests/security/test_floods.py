"""Resource attacks on a real service: it answers others meanwhile, and afterwards is as before.

Descriptors and memory of the process are counted before and after each attack. That connections
which dawdle are cut off in time is shown in tests/integration/front, where time-outs are short.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.conftest import execute, sibling
from tests.integration.service.harness import ADMIN_KEY
from tests.security.fortress import running_service


pytestmark = pytest.mark.slow

PER_ADDRESS = 1_100
"""Connections of one address; the contract promises 1,024."""

GROWTH_BYTES_MAX = 48 * 2**20
"""Memory an attack may leave behind, freed but not returned to the system included."""

ANSWERED_WITHIN_S = 2.0
"""For a client that does nothing unusual, during an attack, on a busy machine."""

TASKS_MAX = 10_000
"""The default of `tasks_per_organization`."""


@attrs.frozen
class Target:
    """The service under attack."""

    url: str
    process: psutil.Process
    key: str
    """Of an organization on an unlimited plan."""
    neighbour: str
    """Of somebody else, who is served all the time."""
    http: httpx.Client

    @property
    def address(self) -> tuple[str, int]:
        """Return host and port."""
        url = httpx.URL(self.url)
        assert url.port is not None
        return url.host, url.port

    def head(self, start: str, *lines: str) -> bytes:
        """Return a request head with a good key, up to and without its last empty line."""
        known = ("host: a", f"authorization: Bearer {self.key}")
        return "".join(f"{line}\r\n" for line in (f"{start} HTTP/1.1", *known, *lines)).encode()

    def post(self, path: str, body: bytes, **headers: str) -> httpx.Response:
        """Send a body."""
        sent = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        return self.http.post(path, content=body, headers={**sent, **headers})

    def stream(self) -> ClientConnection:
        """Open an agent stream."""
        url = self.url.replace("http", "ws") + "/v1/agents/stream"
        headers = {"authorization": f"Bearer {self.key}"}
        return connect(url, additional_headers=headers, max_size=None, compression=None)


@pytest.fixture(scope="module")
def target(postgres_server_url: str, template_database: str) -> Iterator[Target]:
    """Run a service that limits connections as tightly as the contract allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4_096)), hard))
    name = f"meterd_floods_{os.getpid()}"
    execute(postgres_server_url, f"CREATE DATABASE {name} TEMPLATE {template_database}")
    settings = {
        "METERD_DATABASE_URL": sibling(postgres_server_url, name),
        "METERD_CONNECTIONS_PER_ADDRESS_MAX": str(PER_ADDRESS),
        "METERD_TASK_TIMEOUT_MS": "3600000",
    }
    try:
        with (
            running_service(settings) as (url, process),
            httpx.Client(base_url=url, timeout=30) as http,
        ):
            admin = {"authorization": f"Bearer {ADMIN_KEY}"}
            keys = []
            for organization_id in ("org_loud", "org_quiet"):
                path = "/admin/v1/organizations"
                body: Any = {"id": organization_id, "name": "A", "plan": "enterprise"}
                assert http.post(path, json=body, headers=admin).status_code == 201
                body = {"scopes": ["agent", "read", "manage"]}
                made = http.post(f"{path}/{organization_id}/keys", json=body, headers=admin)
                keys.append(made.json()["key"])
            yield Target(url, psutil.Process(process.pid), keys[0], keys[1], http)
    finally:
        execute(postgres_server_url, f"DROP DATABASE {name} WITH (FORCE)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def sockets(target: Target, count: int, *beginnings: bytes) -> Iterator[list[socket.socket]]:
    """Hold connections open, each with the beginning of something, in turn."""
    with contextlib.ExitStack() as stack:
        held = []
        for number in range(count):
            held.append(stack.enter_context(socket.create_connection(target.address, timeout=10)))
            if beginnings:
                held[-1].sendall(beginnings[number % len(beginnings)])
        yield held


def is_served(target: Target) -> bool:
    """Tell whether somebody else is answered soon: a check, and what needs the database."""
    headers = {"authorization": f"Bearer {target.neighbour}"}
    began_s = time.monotonic()
    for path in ("/v1/quota/check", "/v1/tasks?limit=1", "/healthz"):
        answer = target.http.get(path, headers=headers)
        assert answer.status_code == 200, answer.text
    return time.monotonic() - began_s < ANSWERED_WITHIN_S


def closed_with(stream: ClientConnection) -> int | None:
    """Read to the end; return the code with which the server closed."""
    try:
        while True:
            stream.recv(timeout=15)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd is not None else None


# --- attacks ------------------------------------------------------------------------------------


def slow_heads(target: Target) -> None:
    """Three hundred requests that never come to the end of their head."""
    with sockets(target, 300, b"G", target.head("GET /v1/quota"), b"GET / HTTP/1.1\r\nx"):
        assert is_served(target)


def slow_bodies(target: Target) -> None:
    """Three hundred bodies of which only the first bytes come."""
    head = target.head("POST /v1/events", "content-type: application/json")
    known, chunked = (
        b"content-length: 1000000\r\n\r\n[",
        b"transfer-encoding: chunked\r\n\r\n1\r\n[",
    )
    with sockets(target, 300, head + known, head + chunked):
        assert is_served(target)


def too_many_connections(target: Target) -> None:
    """All that an address may have, and 50 more: these are refused, other addresses are not."""
    with sockets(target, PER_ADDRESS), sockets(target, 50, b"GET / HTTP/1.1\r\n\r\n") as more:
        answer = more[0].recv(100)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 429 ")
        other = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=other, timeout=10) as client:
            assert client.get(f"{target.url}/healthz").status_code == 200


def giant_frames(target: Target) -> None:
    """Lengths that no memory has, announced in ten bytes; and one that really comes."""
    for length in (2**62, 2**31, 2**20 + 1):
        with target.stream() as stream:
            head = bytes([0x81, 0xFF]) + struct.pack("!Q", length) + bytes(4)
            stream.socket.sendall(head + bytes(1_000))
            assert closed_with(stream) == 1009
    with target.stream() as stream:
        with contextlib.suppress(ConnectionClosed, OSError):
            stream.send("x" * (2 * 2**20))
        assert closed_with(stream) in (1009, None)


def frames_never_read(target: Target) -> None:
    """Ask for a great deal and read nothing: an outbox is bounded."""
    payload = json.dumps([{"type": "check"}] * 1_000).encode()
    frame = bytes([0x81, 0xFE]) + struct.pack("!H", len(payload)) + bytes(4) + payload
    upgrade = ("connection: Upgrade", "upgrade: websocket", "sec-websocket-version: 13",
               "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==")  # fmt: skip
    with sockets(target, 4, target.head("GET /v1/agents/stream", *upgrade) + b"\r\n") as streams:
        for stream in streams:
            stream.settimeout(0.5)
            with contextlib.suppress(OSError):
                for _ in range(100):
                    stream.sendall(frame)
        assert is_served(target)


def compression_bombs(target: Target) -> None:
    """Send what would be 50 MB inflated, in a frame and in a body: nobody inflates it."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflate.compress(bytes(50_000_000)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    with target.stream() as stream:
        head = bytes([0xC1, 0xFE]) + struct.pack("!H", len(bomb)) + bytes(4)
        stream.socket.sendall(head + bomb)
        assert closed_with(stream) == 1002
    for encoding in ("gzip", "deflate", "br"):
        headers = {"content-encoding": encoding}
        answer = target.post("/v1/events", zlib.compress(bytes(50_000_000)), **headers)
        assert answer.status_code in (400, 415), answer.text


def wild_json(target: Target) -> None:
    """Depth, digits, exponents, NaN and a hundred thousand keys: each is refused at once."""
    deep = b"[" * 500_000 + b"]" * 500_000
    keys = json.dumps({f"k{number}": 0 for number in range(70_000)}).encode()
    twins = b"{" + b",".join([b'"id":1'] * 100_000) + b"}"
    numbers = (b"1e999999", b"-1e999999", b"1" * 900_000, b"0." + b"1" * 900_000, b"NaN",
               b"Infinity", b"-Infinity", b"1e400", b"9" * 4_000)  # fmt: skip
    bodies = [deep, keys, twins, *(b'{"elapsed_ms":' + each + b"}" for each in numbers)]
    for body in bodies:
        began_s = time.monotonic()
        answer = target.post("/v1/tasks/t/heartbeat", body)
        assert answer.status_code in (400, 422), answer.text
        assert time.monotonic() - began_s < ANSWERED_WITHIN_S, body[:40]
        with target.stream() as stream:
            stream.send(body.decode())
            assert '"error"' in str(stream.recv(timeout=10))


def header_floods(target: Target) -> None:
    """Many headers, a long one, a long target, one that folds: an answer of a few bytes."""
    head = target.head("GET /v1/quota")
    floods = (head + b"x: y\r\n" * 5_000, head + b"x: " + b"y" * 500_000,
              b"GET /" + b"y" * 500_000, head + b"x: y\r\n\t" * 1_000)  # fmt: skip
    for flood in floods:
        peer = socket.create_connection(target.address, timeout=10)
        with peer, contextlib.suppress(OSError):
            peer.sendall(flood + b"\r\n\r\n")
            answer = peer.recv(65_536)
            assert answer[9:12] in (b"400", b"414", b"431"), answer
            assert len(answer) < 1_000


def pipelining(target: Target) -> None:
    """Five thousand requests in one breath, nothing read: what is not taken waits in the peer."""
    one = target.head("GET /v1/quota/check") + b"\r\n"
    slow = target.head("GET /openapi.json") + b"\r\n"
    for request in (one, slow):
        with socket.create_connection(target.address, timeout=10) as peer:
            peer.settimeout(1)
            with contextlib.suppress(OSError):
                peer.sendall(request * 5_000)
            assert is_served(target)
            assert peer.recv(12) == b"HTTP/1.1 200"


def endless_questions(target: Target) -> None:
    """Ask for a page of a milliard, for a hundred years, with a cursor of nine kilobytes."""
    headers = {"authorization": f"Bearer {target.key}"}
    for query in ("tasks?limit=1000000000", "usage/daily?days=36500", "tasks?limit=1" + "0" * 9_000,
                  "usage?period=0000-00", "tasks?cursor=" + "A" * 9_000):  # fmt: skip
        answer = target.http.get(f"/v1/{query}", headers=headers)
        assert answer.status_code in (404, 422), answer.text


def idle_connections(target: Target) -> None:
    """Two thousand that say nothing, from five addresses of one machine."""
    with contextlib.ExitStack() as stack:
        for number in range(2_000):
            source = (f"127.0.0.{number % 5 + 2}", 0)
            peer = socket.create_connection(target.address, timeout=10, source_address=source)
            stack.enter_context(peer)
        assert is_served(target)  # the first of them may have been cut off by now


def strangers_names(target: Target) -> None:
    """Ask as an operator for a thousand organizations that are not there: none is kept."""
    admin = f"host: a\r\nauthorization: Bearer {ADMIN_KEY}\r\n"
    for first in range(0, 1_000, 100):
        with socket.create_connection(target.address, timeout=30) as peer:
            heads = (
                f"GET /admin/v1/organizations/org_{number} HTTP/1.1\r\n{admin}\r\n"
                for number in range(first, first + 100)
            )
            peer.sendall("".join(heads).encode())
            seen = b""
            while seen.count(b"HTTP/1.1 404 ") < 100:
                data = peer.recv(65_536)
                assert data, seen
                seen += data
    shown = target.http.get(
        "/admin/v1/actors?limit=100", headers={"authorization": f"Bearer {ADMIN_KEY}"}
    )
    assert "org_99" not in shown.text


def one_loud_tenant(target: Target) -> None:
    """Eight connections ask as fast as they are answered: a neighbour hardly waits longer."""
    one = target.head("GET /v1/quota/check") + b"\r\n"
    headers = {"authorization": f"Bearer {target.neighbour}"}
    is_over = threading.Event()

    def shout() -> None:
        with socket.create_connection(target.address, timeout=30) as peer:
            while not is_over.is_set():
                peer.sendall(one * 50)
                seen = b""
                while seen.count(b"HTTP/1.1 200 ") < 50:
                    seen += peer.recv(65_536)

    waits_s = []
    with ThreadPoolExecutor(8) as pool:
        shouts = [pool.submit(shout) for _ in range(8)]
        try:
            for _ in range(100):
                began_s = time.monotonic()
                assert target.http.get("/v1/quota", headers=headers).status_code == 200
                waits_s.append(time.monotonic() - began_s)
        finally:
            is_over.set()
        for each in shouts:
            each.result()
    # The median is the load's, the worst of a hundred one turn of everybody else.
    assert sorted(waits_s)[98] < ANSWERED_WITHIN_S / 2, sorted(waits_s)[-5:]


def many_tickets(target: Target) -> None:
    """One organization's tickets for the live feed are not everybody's."""
    one = target.head("POST /v1/usage/live/ticket", "content-length: 0") + b"\r\n"
    last = target.head("GET /v1/quota/check", "connection: close") + b"\r\n"
    seen = b""
    for _ in range(2):
        with socket.create_connection(target.address, timeout=30) as peer:
            peer.sendall(one * 150 + last)
            while data := peer.recv(65_536):
                seen += data
    assert (seen.count(b"HTTP/1.1 201 "), seen.count(b"HTTP/1.1 503 ")) == (250, 50)
    headers = {"authorization": f"Bearer {target.neighbour}"}
    assert target.http.post("/v1/usage/live/ticket", headers=headers).status_code == 201


def many_tasks(target: Target) -> None:
    """More tasks than one organization may run: refused in words, counted in no time."""
    started, denied = 0, set()
    with target.stream() as stream:
        waiting = [f"t{number}" for number in range(TASKS_MAX + 500)]
        while waiting:
            asked, waiting = waiting[:500], waiting[500:]
            stream.send(json.dumps([_start(task_id) for task_id in asked]))
            for message in answers(stream, len(asked)):
                if message["type"] == "error":  # the store is slow: sent again like any client's
                    waiting.append(message["ref"])
                elif message["type"] == "denied":
                    denied.add(message["code"])
                else:
                    started += message["type"] == "started"
    assert (started, denied) == (TASKS_MAX, {"task_limit_reached"})
    assert is_served(target)
    answer = target.post("/v1/tasks", b'{"agent_id":"one-more"}')
    assert (answer.status_code, answer.json()["code"]) == (429, "task_limit_reached")
    assert int(answer.headers["retry-after"]) > 0


def answers(stream: ClientConnection, count: int) -> Iterator[dict[str, Any]]:
    """Yield so many answers, however they are batched."""
    seen = 0
    while seen < count:
        found = json.loads(stream.recv(timeout=60))
        for message in found if isinstance(found, list) else [found]:
            if message["type"] in ("started", "denied", "error"):
                seen += 1
                yield message


def _start(task_id: str) -> dict[str, Any]:
    note = base64.b64encode(bytes(40)).decode()
    names = {"task_id": task_id, "agent_id": f"agent-{task_id}", "ref": task_id}
    return {"type": "start", **names, "metadata": {"note": note}}


ATTACKS: tuple[Callable[[Target], None], ...] = (
    slow_heads,
    slow_bodies,
    too_many_connections,
    giant_frames,
    frames_never_read,
    compression_bombs,
    wild_json,
    header_floods,
    pipelining,
    endless_questions,
    idle_connections,
    strangers_names,
    one_loud_tenant,
    many_tickets,
    many_tasks,
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_leaves_no_descriptor_and_little_memory_behind(
    target: Target, attack: Callable[[Target], None]
) -> None:
    """The service answers others meanwhile; an attacker's cost is the attacker's."""
    assert is_served(target)
    descriptors, memory = target.process.num_fds(), target.process.memory_info().rss

    attack(target)

    assert is_served(target)
    until_s = time.monotonic() + 15
    while target.process.num_fds() > descriptors + 2 and time.monotonic() < until_s:
        time.sleep(0.05)
    assert target.process.num_fds() <= descriptors + 2
    assert target.process.memory_info().rss - memory < GROWTH_BYTES_MAX
