"""Strict decoding: what is refused, and that nothing of a request is repeated."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from meterd.errors import Problem, RequestInvalidError
from meterd.web.codec import BadJsonError, canonical_json, decode, parse_json
from meterd.web.schema import (
    AdjustmentBody,
    FinishBody,
    HeartbeatBody,
    NewKeyBody,
    NewOrganizationBody,
    OrganizationPatch,
    StartTaskBody,
    contract_of,
)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b'{"a":1,}',
        b'{"a":1} x',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":"\xff"}',
        b'{"\\ud800":1}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999999}',
        b'{"a":' + b"9" * 10_000 + b"}",
        b'{"a":1,"a":2}',
        b'{"a":1,"\\u0061":2}',
        b'{"b":{"a":1,"a":1}}',
        b"[" * 500_000,
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b"'a'",
        b'{"a":\x00}',
        b'{"a":"\n"}',
    ],
)
def test_what_has_no_single_reading_is_not_json(raw: bytes) -> None:
    """Each of these is read differently by some parser, or costs it its life."""
    with pytest.raises(BadJsonError):
        parse_json(raw)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_bad_json(raw: bytes) -> None:
    """A decoder that can raise anything else turns a request into a 500."""
    try:
        parse_json(raw)
    except BadJsonError:
        return


@pytest.mark.parametrize(
    "value",
    ["true", "1.0", '"1"', "null", "-1", "2678400001", "1e3", "[]", "0.5", "9" * 19, "9" * 100],
)
def test_an_elapsed_time_is_an_integer_within_bounds(value: str) -> None:
    """A float or a bool that becomes a duration becomes money."""
    with pytest.raises(RequestInvalidError):
        decode(HeartbeatBody, parse_json(b'{"elapsed_ms":%b}' % value.encode()))


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63 - 1)])
def test_metadata_keeps_integers_of_64_bits(number: int) -> None:
    """The ids of many databases have 19 digits."""
    raw = b'{"agent_id":"a","metadata":{"id":%d}}' % number

    assert decode(StartTaskBody, parse_json(raw)).metadata == {"id": number}


@pytest.mark.parametrize("number", [2**63, -(2**63), 10**99])
def test_larger_integers_in_metadata_are_refused(number: int) -> None:
    """Most clients could not read them back."""
    with pytest.raises(RequestInvalidError) as caught:
        decode(StartTaskBody, {"agent_id": "a", "metadata": {"ids": [number]}})

    assert [problem.pointer for problem in caught.value.problems] == ["/metadata"]


@pytest.mark.parametrize("value", [0, 1, 2_678_400_000])
def test_elapsed_times_at_the_bounds_are_taken(value: int) -> None:
    """31 days is what a task may claim, not one millisecond less."""
    body = decode(HeartbeatBody, {"elapsed_ms": value})

    assert body == HeartbeatBody(elapsed_ms=value)


@pytest.mark.parametrize(
    "name", ["", "x" * 129, "a\x00b", "a\nb", "\ud800", "\u200b", "\x7f", "\u2028", 5, None, ["a"]]
)
def test_a_name_is_1_to_128_printable_characters(name: object) -> None:
    """NUL and lone surrogates poison a batch in PostgreSQL; the rest poisons logs."""
    with pytest.raises(RequestInvalidError):
        decode(StartTaskBody, {"agent_id": name})


@pytest.mark.parametrize("name", ["a", "x" * 128, "Ärger 🤖/ü", "'; DROP TABLE tasks; --"])
def test_printable_names_are_taken_as_they_are(name: str) -> None:
    """An id is the customer's; nothing is trimmed or folded."""
    assert decode(StartTaskBody, {"agent_id": name}).agent_id == name


def test_every_problem_is_listed_and_none_repeats_the_request() -> None:
    """A client fixes its request once, and no log or page shows what it sent."""
    secret = "tell-nobody"
    value = {
        "agent_id": secret + "\x00",
        "task_id": 7,
        secret: 1,
        "elapsed_ms": 300_001,
        "metadata": [secret],
    }

    with pytest.raises(RequestInvalidError) as caught:
        decode(StartTaskBody, value)

    assert [problem.pointer for problem in caught.value.problems] == [
        "",
        "/agent_id",
        "/task_id",
        "/metadata",
        "/elapsed_ms",
    ]
    assert secret not in str(caught.value)


def test_a_wrong_choice_is_not_repeated() -> None:
    """Library messages quote the value; ours name the choices."""
    with pytest.raises(RequestInvalidError) as caught:
        decode(FinishBody, {"elapsed_ms": 1, "outcome": "tell-nobody"})

    assert caught.value.problems == (
        Problem("/outcome", "must be one of succeeded, failed, cancelled"),
    )


def test_problems_point_into_nested_objects() -> None:
    """`/contract/agents`, not the whole contract."""
    value = {"id": "o", "name": "n", "plan": "pro", "contract": {"agents": -1, "x": 1}}

    with pytest.raises(RequestInvalidError) as caught:
        decode(NewOrganizationBody, value)

    assert [problem.pointer for problem in caught.value.problems] == [
        "/contract",
        "/contract/agents",
    ]


@pytest.mark.parametrize("value", [[], "x", 1, None, True])
def test_a_body_that_is_no_object_is_one_problem(value: object) -> None:
    """The pointer of the whole document is the empty string (RFC 6901)."""
    with pytest.raises(RequestInvalidError) as caught:
        decode(HeartbeatBody, value)  # type: ignore[arg-type]

    assert caught.value.problems == (Problem("", "must be an object"),)


def test_metadata_may_be_4_kb_of_json_and_not_a_byte_more() -> None:
    """The limit is on what is stored, so spaces in the request do not count."""
    fits = {"k": "x" * (4_096 - len('{"k":""}'))}
    too_large = {"k": fits["k"] + "x"}

    assert decode(StartTaskBody, {"agent_id": "a", "metadata": fits}).metadata == fits
    with pytest.raises(RequestInvalidError):
        decode(StartTaskBody, {"agent_id": "a", "metadata": too_large})


@pytest.mark.parametrize("value", [{"k": "\x00"}, {"\ud800": 1}, {"k": [{"k": "\udfff"}]}])
def test_metadata_that_jsonb_cannot_hold_is_refused(value: object) -> None:
    """One such row would keep a whole batch from being stored."""
    with pytest.raises(RequestInvalidError):
        decode(StartTaskBody, {"agent_id": "a", "metadata": value})


def test_equal_metadata_have_equal_text_also_after_the_store() -> None:
    """A repeated start is compared with what jsonb gives back, where 1e22 is written in full."""
    text = canonical_json({"b": 1e22, "a": [-0.0, 1.5]})

    assert text == '{"a":[0.0,1.5],"b":10000000000000000000000}'
    assert canonical_json(json.loads(text)) == text


@pytest.mark.parametrize(
    "rate", [0.04, 0, "1", "1.0", "-0.1", "0.0000001", ".5", "0,5", "NaN", "0.5\n", "٠.5"]
)
def test_a_rate_is_text_under_a_dollar_with_six_decimals(rate: object) -> None:
    """A float never touches money, and every rate fits its column."""
    body = {"id": "o", "name": "n", "plan": "pro", "contract": {"overage_usd_per_minute": rate}}
    with pytest.raises(RequestInvalidError):
        decode(NewOrganizationBody, body)


def test_a_contract_keeps_null_apart_from_absent() -> None:
    """Null agents are unlimited; absent agents are the plan's."""
    unlimited = decode(OrganizationPatch, {"contract": {"agents": None}}).contract
    untouched = decode(OrganizationPatch, {"contract": {}}).contract

    assert contract_of(unlimited).agents is None  # type: ignore[arg-type]
    assert contract_of(untouched) == contract_of(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("scopes", [[], ["admin"], ["agent", "agent"], "agent", [1]])
def test_a_key_has_at_least_one_scope_of_an_organization(scopes: object) -> None:
    """An organization's key can never be an operator's."""
    with pytest.raises(RequestInvalidError):
        decode(NewKeyBody, {"scopes": scopes})


@pytest.mark.parametrize("agent_ms", [0, 60_000_000_001, -60_000_000_001])
def test_an_adjustment_moves_something_and_within_bounds(agent_ms: int) -> None:
    """Nothing is booked for nothing, and a million minutes are a slip of the finger."""
    with pytest.raises(RequestInvalidError):
        decode(AdjustmentBody, {"agent_ms": agent_ms, "reason": "r"})


@pytest.mark.parametrize("reason", ["", "   ", "x" * 501, "a\nb"])
def test_a_reason_says_something(reason: str) -> None:
    """The audit log is read by people, a line each."""
    with pytest.raises(RequestInvalidError):
        decode(AdjustmentBody, {"agent_ms": 1, "reason": reason})
