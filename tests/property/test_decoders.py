"""Bytes of strangers: frames and events are understood, or refused in so many words; never more.

The inputs are valid ones with something broken in them, since chance alone never gets past the
first brace. What is accepted must keep every bound of the contract.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings, strategies as st

from meterd.core.event import CALLS_MAX, EVENT_NAME_CHARACTERS_MAX, UsageEvent
from meterd.core.plan import Resource
from meterd.core.units import MINUTE_MS
from meterd.errors import RequestInvalidError
from meterd.web.codec import BadJsonError, parse_json
from meterd.web.event_schema import cloud_event, own_event
from meterd.web.stream_messages import Check, Finish, Heartbeat, Mistake, Start, read_frame


ELAPSED_MS_MAX = 2_678_400_000
METADATA_BYTES_MAX = 4_096

odd_texts = st.sampled_from(
    ["", " ", "a\u0000b", "\ud800", "\u202e", "x" * 300, "1e999", "NaN", "2026-02-30T00:00:00Z"]
)
odd_numbers = st.sampled_from(
    [-1, 0, 1, 2**31, 2**53, 2**63, 2**64, 10**30, 1.5, -0.0, 1e300, ELAPSED_MS_MAX + 1]
)
odd = st.recursive(
    st.none() | st.booleans() | odd_texts | odd_numbers | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(odd_texts, inner, max_size=2),
    max_leaves=4,
)
FRAMES: tuple[dict[str, Any], ...] = (
    {"type": "start", "task_id": "t", "agent_id": "a", "elapsed_ms": 5, "metadata": {"k": 1}},
    {"type": "heartbeat", "task_id": "t", "elapsed_ms": 5, "ref": 1},
    {"type": "finish", "task_id": "t", "elapsed_ms": 5, "outcome": "failed"},
    {"type": "check", "agent_id": "a", "ref": "r"},
)
EVENTS: tuple[dict[str, Any], ...] = (
    {
        "id": "e",
        "source": "s",
        "time": "2026-02-12T00:00:00Z",
        "resource_type": "api_call",
        "quantity": 3,
        "user_id": "u",
        "agent_id": "a",
        "metadata": {"k": [1, "x"]},
    },
    {"id": "e", "resource_type": "websocket_minute", "quantity": 9_999},
    {
        "specversion": "1.0",
        "id": "e",
        "source": "s",
        "type": "api_call",
        "subject": "a",
        "data": {"quantity": 3, "metadata": {}},
    },
)


@st.composite
def broken(draw: st.DrawFn, templates: tuple[dict[str, Any], ...]) -> bytes:
    """Return a valid body with a field replaced, added, dropped or said twice, or bytes changed."""
    body = dict(draw(st.sampled_from(templates)))
    for name in draw(st.lists(st.sampled_from([*body, "more", ""]), max_size=2)):
        if draw(st.booleans()):
            body[name] = draw(odd)
        else:
            body.pop(name, None)
    text = json.dumps(body)
    if draw(st.booleans()):
        text = text.replace("{", '{"id": "twice", ', 1)
    if draw(st.booleans()):
        text = f"[{text}, {text}]"
    raw = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(raw) - 1))
        raw[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
        if not raw:
            break
    return bytes(raw)


@settings(max_examples=600)
@given(broken(FRAMES) | st.binary(max_size=60))
def test_a_frame_is_understood_within_bounds_or_a_mistake_in_words(raw: bytes) -> None:
    """Nothing else comes out and nothing is raised: a frame costs its sender at most an answer."""
    for message in read_frame(raw):
        match message:
            case Mistake(message=text):
                assert text
                assert text.isprintable()
            case Start() | Heartbeat() | Finish():
                assert 1 <= len(message.task_id) <= 256
                assert message.task_id.isprintable()
                assert 0 <= (message.elapsed_ms or 0) <= ELAPSED_MS_MAX
            case Check(agent_id=agent_id):
                assert agent_id is None or (agent_id.isprintable() and len(agent_id) <= 128)


@settings(max_examples=600)
@given(broken(EVENTS) | st.binary(max_size=60), st.sampled_from([own_event, cloud_event]))
def test_an_event_is_understood_within_bounds_or_refused_with_its_field(
    raw: bytes, read: Any
) -> None:
    """What gets through fits its columns; what does not says where it is wrong."""
    try:
        value = parse_json(raw)
        event: UsageEvent = read(value)
    except BadJsonError:
        return
    except RequestInvalidError as error:
        refusal = error
    else:
        _check_bounds(event)
        return
    assert refusal.problems
    assert all(each.detail for each in refusal.problems)


def _check_bounds(event: UsageEvent) -> None:
    most = 9_999 * MINUTE_MS if event.resource is Resource.WEBSOCKET_MINUTE else CALLS_MAX
    assert 1 <= event.amount <= most
    assert 1 <= len(event.id) <= EVENT_NAME_CHARACTERS_MAX
    assert 1 <= len(event.source) <= EVENT_NAME_CHARACTERS_MAX
    assert "\0" not in event.id + event.source + event.metadata_json
    assert len(event.metadata_json.encode()) <= METADATA_BYTES_MAX + 64
    assert parse_json(event.metadata_json.encode()) is not None
