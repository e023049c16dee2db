"""What comes in may come a thousand times, half, or bad among good: it counts once or not at all.

Everything goes through real sockets; the database is read beside the service.
"""

from __future__ import annotations

import json
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.security.fortress import Fortress


pytestmark = pytest.mark.slow

COPIES, CONNECTIONS = 1_000, 10

BAD_ROWS: tuple[tuple[str, str], ...] = (
    ("NUL in a name", r'{"id":"b1\u0000","resource_type":"api_call"}'),
    ("NUL in metadata", r'{"id":"b2","resource_type":"api_call","metadata":{"a":"\u0000"}}'),
    ("half a surrogate pair", r'{"id":"b3","resource_type":"api_call","metadata":{"a":"\ud800"}}'),
    ("2^63 calls", '{"id":"b4","resource_type":"api_call","quantity":9223372036854775808}'),
    ("an id of 6 KB", f'{{"id":"{"b5" * 3_000}","resource_type":"api_call"}}'),
    ("a field nobody knows", '{"id":"b6","resource_type":"api_call","cost":0}'),
    ("no object at all", "7"),
)
"""Each alone once cost a whole batch, at the edge or in PostgreSQL."""


def stream_of(fortress: Fortress, bearer: str) -> Any:
    """Open an agent stream."""
    url = fortress.url.replace("http", "ws") + "/v1/agents/stream"
    return connect(url, additional_headers={"authorization": f"Bearer {bearer}"})


def test_a_thousand_copies_of_a_task_on_streams_and_http_are_one_task(fortress: Fortress) -> None:
    """Each start is answered as the same one, each end too, and the time is in the ledger once."""
    key = fortress.keys["attacker"]
    task = {"task_id": "copied", "agent_id": "copied"}
    start = json.dumps([{"type": "start", **task}] * (COPIES // CONNECTIONS))
    end = {"type": "finish", "task_id": "copied", "elapsed_ms": 60, "outcome": "succeeded"}
    finish = json.dumps([end] * (COPIES // CONNECTIONS))

    def on_stream(frame: str) -> list[str]:
        kinds: list[str] = []
        with stream_of(fortress, key) as stream:
            stream.send(frame)
            while len(kinds) < COPIES // CONNECTIONS:
                found = json.loads(stream.recv(timeout=30))
                messages = found if isinstance(found, list) else [found]
                kinds += [each["type"] for each in messages if each["type"] != "quota"]
        return kinds

    def over_http(_: int) -> int:
        return fortress.ask("POST", "/v1/tasks", key, json=task).status_code

    with ThreadPoolExecutor(CONNECTIONS * 2) as pool:
        streams = [pool.submit(on_stream, start) for _ in range(CONNECTIONS)]
        statuses = list(pool.map(over_http, range(50)))
        started = [kind for each in streams for kind in each.result()]
        finished = [kind for each in pool.map(on_stream, [finish] * CONNECTIONS) for kind in each]

    assert set(started) == {"started"}
    assert statuses.count(201) <= 1
    assert set(statuses) <= {200, 201}
    assert set(finished) == {"finished"}
    rows = fortress.fetch(
        "SELECT (SELECT count(*) FROM tasks WHERE task_id = 'copied') AS tasks, "
        "sum(quantity_ms)::bigint AS ms FROM usage_records WHERE task_id = 'copied'"
    )
    assert [(row["tasks"], row["ms"]) for row in rows] == [(1, 60)]


def test_one_bad_row_of_each_kind_costs_a_batch_nothing_else(fortress: Fortress) -> None:
    """A batch whose JSON can be read keeps its good rows; the bad are named and leave nothing."""
    key = fortress.keys["attacker"]
    good = [f'{{"id":"good-{number}","resource_type":"api_call"}}' for number in range(8)]
    rows = [text for pair in zip(good, (bad for _, bad in BAD_ROWS), strict=False) for text in pair]
    headers = {"content-type": "application/json"}

    def told(texts: list[str]) -> httpx.Response:
        body = f"[{','.join(texts)}]"
        return fortress.ask("POST", "/v1/events", key, content=body, headers=headers)

    refused_whole = []
    for what, bad in BAD_ROWS:
        answer = told([good[0], bad])
        assert answer.status_code in (200, 400), (what, answer.text)
        if answer.status_code == 400:
            assert answer.json()["code"] == "bad_json"
            refused_whole.append(bad)
            continue
        assert [item["status"] for item in answer.json()["items"]][1] == "rejected", what
    answer = told([text for text in rows if text not in refused_whole] + good[-1:])
    counts = answer.json()

    assert len(refused_whole) < len(BAD_ROWS) // 2
    assert (counts["accepted"] + counts["duplicates"], counts["rejected"]) == (
        8,
        len(BAD_ROWS) - len(refused_whole),
    )
    stored = fortress.fetch("SELECT event_id FROM usage_events WHERE event_id ~ '^(b[0-9]|good-)'")
    assert sorted(row["event_id"] for row in stored) == [f"good-{number}" for number in range(8)]


def test_a_client_that_drops_at_every_byte_leaves_a_whole_effect_or_none(
    fortress: Fortress,
) -> None:
    """Each time with a reset; only what came whole may have been done, and others are answered."""
    key, url = fortress.keys["attacker"], httpx.URL(fortress.url)
    body = b'{"task_id":"dropped-%03d","agent_id":"dropped"}'
    head = (
        f"POST /v1/tasks HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body % 0)}\r\n\r\n"
    ).encode()
    length = len(head) + len(body % 0)

    for sent in range(1, length + 1):
        with socket.create_connection((url.host, url.port or 80), timeout=10) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.sendall((head + body % sent)[:sent])
    with socket.create_connection((url.host, url.port or 80), timeout=10) as peer:
        peer.sendall(head + body % 999)
        assert peer.recv(12) == b"HTTP/1.1 201"
    listed = fortress.ask("GET", "/v1/tasks?state=running&limit=100", key).json()["data"]

    found = {task["task_id"] for task in listed if task["agent_id"] == "dropped"}
    assert found - {f"dropped-{length:03d}"} == {"dropped-999"}
