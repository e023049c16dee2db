"""Bytes of strangers: frames and events are understood, or refused in so many words; never more.

The inputs are valid ones with something broken in them, since chance alone never gets past the
first brace. What is accepted must keep every bound of the contract, and mean what it said.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import example, given, settings, strategies as st

from meterd.core.event import CALLS_MAX, EVENT_NAME_CHARACTERS_MAX, UsageEvent
from meterd.core.plan import Resource
from meterd.core.units import INSTANT_MS_MAX, MINUTE_MS
from meterd.errors import RequestInvalidError
from meterd.web.codec import BadJsonError, canonical_json, parse_json
from meterd.web.event_schema import cloud_event, own_event
from meterd.web.stream_messages import (
    Check,
    Finish,
    Heartbeat,
    Mistake,
    Start,
    _read_strictly,
    read_frame,
)


ELAPSED_MS_MAX = 2_678_400_000
METADATA_BYTES_MAX = 4_096
DEPTH_MAX = 32

odd_texts = st.sampled_from(
    [
        "",
        " ",
        "a\u0000b",
        "\ud800",
        "\u202e",
        "x" * 300,
        "1e999",
        "NaN",
        ".",
        "..",
        "a:b",
        '"',
        "\\",
    ]
)
odd_times = st.sampled_from(
    [
        "2026-02-12T23:59:60Z",
        "2026-02-30T00:00:00Z",
        "2026-02-12T24:00:00Z",
        "2026-02-12T00:00:00",
        "2026-02-12 00:00:00Z",
        "2026-02-12T00:00:00.123456789Z",
        "2026-02-12T00:00:00+23:59",
        "2026-02-12T00:00:00-24:00",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "1969-12-31T23:59:59.999Z",
        "9999-12-31T23:59:59-00:01",
        "٢٠٢٦-02-12T00:00:00Z",
    ]
)
odd_numbers = st.sampled_from(
    [-1, 0, 1, 2**31, 2**53, 2**63, 2**64, 10**30, 1.5, -0.0, 1e300, ELAPSED_MS_MAX + 1]
)
odd = st.recursive(
    st.none() | st.booleans() | odd_texts | odd_numbers | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(odd_texts, inner, max_size=2),
    max_leaves=4,
)


def nested(levels: int) -> Any:
    """Return an object in an object, so many levels deep."""
    return {"k": nested(levels - 1)} if levels > 1 else {}


odd_metadata = (
    st.sampled_from([1, 5, *range(DEPTH_MAX - 2, DEPTH_MAX + 3), 100]).map(nested)
    | st.integers(METADATA_BYTES_MAX - 10, METADATA_BYTES_MAX).map(lambda size: {"k": "x" * size})
    | st.integers(1_360, 1_366).map(lambda size: {"k": "€" * size})
    | st.dictionaries(odd_texts, odd, max_size=3)
)
ODD: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("id", "source", "task_id", "agent_id", "subject", "user_id"), odd_texts),
    **dict.fromkeys(("elapsed_ms", "quantity"), odd_numbers),
    "metadata": odd_metadata,
    "time": odd_times,
    "data": st.fixed_dictionaries({"metadata": odd_metadata, "quantity": odd_numbers | st.just(1)}),
}
"""What is odd for a field of this name, besides what is odd for any."""

FRAMES: tuple[dict[str, Any], ...] = (
    {"type": "start", "task_id": "t", "agent_id": "a", "elapsed_ms": 5, "metadata": {"k": 1}},
    {"type": "heartbeat", "task_id": "t", "elapsed_ms": 5, "ref": 1},
    {"type": "finish", "task_id": "t", "elapsed_ms": 5, "outcome": "failed"},
    {"type": "check", "agent_id": "a", "ref": "r"},
)
Reader = Callable[[Any], UsageEvent]
EVENTS: tuple[tuple[Reader, dict[str, Any]], ...] = (
    (
        own_event,
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
    ),
    (own_event, {"id": "e", "resource_type": "websocket_minute", "quantity": 9_999}),
    (
        cloud_event,
        {
            "specversion": "1.0",
            "id": "e",
            "source": "s",
            "type": "api_call",
            "subject": "a",
            "time": "2026-02-12T00:00:00Z",
            "data": {"quantity": 3, "metadata": {}},
        },
    ),
)
BREAKAGES = ("a field", "a field", "a field", "no field", "twice", "an array", "bytes", "all")


@st.composite
def broken(draw: st.DrawFn, body: dict[str, Any]) -> bytes:
    """Return a valid body with a field replaced, dropped or said twice, or with bytes changed.

    Mostly one thing is broken: of two the first would hide the second.
    """
    how = draw(st.sampled_from(BREAKAGES))
    body = dict(body)
    rich = [name for name in ("metadata", "data") if name in body]
    name = draw(st.sampled_from([*body, *rich, *rich, *rich, "more", ""]))
    if how in {"a field", "all"}:
        is_of_its_kind = draw(st.sampled_from([True, True, True, False]))
        body[name] = draw(ODD.get(name, odd) if is_of_its_kind else odd)
    if how == "no field":
        body.pop(name, None)
    text = json.dumps(body, ensure_ascii=draw(st.booleans()))
    if how in {"twice", "all"}:
        name = draw(st.sampled_from([*body]))
        value = json.dumps(draw(st.sampled_from([body[name]]) | odd))
        key = f"\\u{ord(name[0]):04x}{name[1:]}" if name and draw(st.booleans()) else name
        text = text.replace("{", f'{{"{key}": {value}, ', 1)
    if how in {"an array", "all"}:
        text = f"[{text}, {text}]"
    raw = bytearray(text.encode("utf-8", "surrogatepass"))
    if how in {"bytes", "all"}:
        place = draw(st.integers(0, len(raw) - 1))
        raw[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(raw)


def check_reading(raw: bytes) -> None:
    """Check that every parser reads the same in bytes that were understood."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    def constant(name: str) -> float:
        raise AssertionError(name)

    value = json.loads(raw.decode(), object_pairs_hook=unique, parse_constant=constant)
    assert _depth(value) <= DEPTH_MAX


@settings(max_examples=1_000)
@given(st.sampled_from(FRAMES).flatmap(broken) | st.binary(max_size=60))
@example(b'{"type":"heartbeat","task_id":"\\u003a","elapsed_ms":1,"ref":1,"ref":2}')
def test_a_frame_is_understood_within_bounds_or_a_mistake_in_words(raw: bytes) -> None:
    """Nothing else comes out and nothing is raised: a frame costs its sender at most an answer.

    The quick reader of usual frames understands what the strict one does, and nothing besides.
    """
    found = read_frame(raw)
    assert list(found) == list(_read_strictly(raw))
    if not all(isinstance(each, Mistake) for each in found):
        check_reading(raw)
    for message in found:
        match message:
            case Mistake(message=text):
                assert text
                assert text.isprintable()
            case Start() | Heartbeat() | Finish():
                assert 1 <= len(message.task_id) <= 128
                assert message.task_id.isprintable()
                assert message.task_id not in {".", ".."}
                assert 0 <= message.elapsed_ms <= ELAPSED_MS_MAX
                if isinstance(message, Start):
                    _check_metadata(canonical_json(message.metadata or {}), message.metadata or {})
            case Check(agent_id=agent_id):
                assert agent_id is None or (agent_id.isprintable() and len(agent_id) <= 128)


@settings(max_examples=1_000)
@given(st.sampled_from(EVENTS).flatmap(lambda each: st.tuples(st.just(each[0]), broken(each[1]))))
def test_an_event_is_understood_within_bounds_or_refused_with_its_field(
    given_event: tuple[Reader, bytes],
) -> None:
    """What gets through fits its columns; what does not says where it is wrong."""
    read, raw = given_event
    try:
        value = parse_json(raw)
        event = read(value)
    except BadJsonError:
        return
    except RequestInvalidError as error:
        refusal = error
    else:
        assert isinstance(value, dict)
        check_reading(raw)
        _check_bounds(event)
        said = value if read is own_event else value.get("data") or {}
        _check_metadata(event.metadata_json, said.get("metadata") or {})
        return
    assert refusal.problems
    assert all(each.detail for each in refusal.problems)


def _check_bounds(event: UsageEvent) -> None:
    most = 9_999 * MINUTE_MS if event.resource is Resource.WEBSOCKET_MINUTE else CALLS_MAX
    assert 1 <= event.amount <= most
    assert 1 <= len(event.id) <= EVENT_NAME_CHARACTERS_MAX
    assert 1 <= len(event.source) <= EVENT_NAME_CHARACTERS_MAX
    assert (event.id + event.source + (event.agent_id or "") + (event.user_id or "")).isprintable()
    assert event.at_ms is None or abs(event.at_ms) <= INSTANT_MS_MAX


def _check_metadata(stored: str, said: Any) -> None:
    """Check that what is stored fits, is what jsonb takes, and is what was said."""
    assert len(stored.encode()) <= METADATA_BYTES_MAX
    assert "\\u0000" not in stored
    assert _depth(said) <= DEPTH_MAX
    assert json.loads(stored) == said


def _depth(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    is_level = isinstance(value, dict | list)
    return is_level + max(map(_depth, inside), default=0)
