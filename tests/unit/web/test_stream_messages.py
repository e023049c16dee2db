"""Frames of the agent stream: both ways of reading them agree."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from meterd.web import stream_messages
from meterd.web.stream_messages import (
    Check,
    Finish,
    Heartbeat,
    Mistake,
    Start,
    read_frame,
)


def frame(*messages: object) -> bytes:
    """Return one message bare, several as an array."""
    return json.dumps(messages[0] if len(messages) == 1 else messages).encode()


def test_every_kind_of_message_is_read() -> None:
    """The table of contract §7, left side."""
    start = {"type": "start", "task_id": "t", "agent_id": "a", "user_id": "u", "metadata": {"k": 1}}
    beat = {"type": "heartbeat", "task_id": "t", "elapsed_ms": 5, "ref": "r"}
    finish = {"type": "finish", "task_id": "t", "elapsed_ms": 6, "outcome": "failed", "ref": 7}

    assert read_frame(frame(start, beat, finish, {"type": "check"})) == [
        Start(task_id="t", agent_id="a", user_id="u", metadata={"k": 1}),
        Heartbeat(task_id="t", elapsed_ms=5, ref="r"),
        Finish(task_id="t", elapsed_ms=6, outcome="failed", ref=7),
        Check(),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "heartbeat", "task_id": "t"},
        {"type": "heartbeat", "task_id": "t", "elapsed_ms": 1.0},
        {"type": "heartbeat", "task_id": "t", "elapsed_ms": True},
        {"type": "heartbeat", "task_id": "a\x00", "elapsed_ms": 1},
        {"type": "heartbeat", "task_id": "t", "elapsed_ms": 1, "extra": 1},
        {"type": "heartbeat", "task_id": "t", "elapsed_ms": -1},
        {"type": "finish", "task_id": "t", "elapsed_ms": 1, "outcome": "done"},
        {"type": "check", "agent_id": ""},
        {"type": "nothing"},
        {"type": 5},
        {},
    ],
)
def test_one_bad_message_of_a_batch_is_named_and_costs_the_others_nothing(
    wrong: dict[str, object],
) -> None:
    """Its `ref` says which one it was."""
    good = {"type": "heartbeat", "task_id": "t", "elapsed_ms": 1}
    first, second, third = read_frame(frame(good, wrong | {"ref": "it"}, good))

    assert first == third == Heartbeat(task_id="t", elapsed_ms=1)
    assert isinstance(second, Mistake)
    assert second.ref == "it"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"hello",
        b"1",
        b'"x"',
        b"null",
        b"{",
        b"[" * 100_000,
        b'{"type":"heartbeat","task_id":"t","elapsed_ms":1,"elapsed_ms":2}',
        b'{"type":"heartbeat","task_id":"t","elapsed_ms":NaN}',
        b"[" + b",".join([b'{"type":"check"}'] * 1_001) + b"]",
    ],
)
def test_a_frame_that_is_no_message_is_one_mistake(payload: bytes) -> None:
    """One error frame, and the connection stays open."""
    [mistake] = read_frame(payload)

    assert isinstance(mistake, Mistake)


def test_a_batch_may_have_a_thousand_messages_and_may_be_empty() -> None:
    """The bound is inclusive."""
    assert len(read_frame(b"[" + b",".join([b'{"type":"check"}'] * 1_000) + b"]")) == 1_000
    assert read_frame(b"[]") == []


names = st.text(max_size=130)
refs = st.one_of(st.none(), names, st.integers(), st.booleans(), st.floats(allow_nan=False))
messages = st.fixed_dictionaries(
    {"type": st.sampled_from(["heartbeat", "finish", "check", "start", "?"])},
    optional={
        "task_id": names,
        "agent_id": names,
        "elapsed_ms": st.one_of(st.integers(-1, 3 * 10**9), st.booleans(), names),
        "outcome": st.sampled_from(["failed", "done"]),
        "ref": refs,
    },
)


@given(st.lists(messages, min_size=1, max_size=4))
def test_the_fast_and_the_strict_reader_agree(batch: list[dict[str, object]]) -> None:
    """What is fast must not be laxer, nor stricter, than what is named in the contract."""
    payload = json.dumps(batch).encode()
    usual = stream_messages._read_usual(payload)
    strict = stream_messages._read_strictly(payload)

    assert usual is None or usual == strict
    is_usual = all(isinstance(one, Heartbeat | Finish | Check) for one in strict)
    assert (usual is not None) == is_usual
