from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given, strategies as st

from meterd.client import (
    FailClosed,
    FailOpen,
    Forbidden,
    PlanLimitReached,
    Quota,
    RequestRejected,
    Settings,
    Suspended,
    Unauthorized,
    Unreachable,
    wire,
)
from meterd.client.http_api import http_url, read_check, read_quota, unreachable_check
from meterd.client.policy import UnreachablePolicy
from meterd.client.task import outcome_of
from meterd.client.timers import SPARE_ENTRIES, Timers
from meterd.client.transport import stream_url
from meterd.client.wire import TaskRequest
from tests.fakes.naive_meterd import NaiveMeterd


@given(st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 50)))))
def test_timers_agree_with_a_plain_dictionary(steps: list[tuple[int, int | None]]) -> None:
    """Lazy deletion must never show: a moved or forgotten instant is gone."""
    timers, plain = Timers(), dict[int, int]()
    for key, at_ms in steps:
        if at_ms is None:
            timers.discard(key)
            plain.pop(key, None)
        else:
            timers.set(key, at_ms)
            plain[key] = at_ms
        assert timers.next_at_ms() == min(plain.values(), default=None)
        assert len(timers._heap) <= 2 * len(plain) + SPARE_ENTRIES + 1
    due = sorted((at_ms, key) for key, at_ms in plain.items() if at_ms <= 25)

    assert timers.pop_due(25) == [key for _, key in due]
    assert timers.next_at_ms() == min((at for at in plain.values() if at > 25), default=None)


@given(st.lists(st.integers(0, 3_000), max_size=1_200))
def test_frames_keep_every_message_in_order_and_within_the_limits(sizes: list[int]) -> None:
    """A batch over a limit would be refused whole, with everything in it."""
    said = [{"type": "x", "text": "a" * size} for size in sizes]

    packed = wire.frames(said)
    heard = [message for frame in packed for message in wire.messages(frame)[0]]

    assert heard == said
    assert all(len(frame) <= wire.FRAME_CHARACTERS_MAX + 4_096 for frame in packed)
    assert all(len(wire.messages(frame)[0]) <= 1_000 for frame in packed)


def test_metadata_is_measured_in_the_bytes_the_service_stores() -> None:
    """Letters beyond ASCII travel escaped, but they do not count more for it."""
    request = TaskRequest(task_id="t", agent_id="a", metadata={"text": "é" * 2_000})

    with pytest.raises(ValueError, match="metadata"):
        TaskRequest(task_id="t", agent_id="a", metadata={"text": "é" * 2_048})
    assert request.start(ref="1.1", elapsed_ms=0)["metadata"] == {"text": "é" * 2_000}


def test_the_quota_object_becomes_exact_values() -> None:
    """Money is Decimal, instants know their zone, unlimited is None and not zero."""
    data = NaiveMeterd().quota()
    data["overage_usd"] = "1.10"
    data["agent_minutes"] = data["agent_minutes"] | {"hard_limit": None, "remaining": None}

    quota = Quota.from_json(data)

    assert quota.overage_usd == Decimal("1.10")
    assert quota.agent_minutes.hard_limit is None
    assert quota.agents.limit is None
    assert quota.period_start is not None
    assert quota.period_start.isoformat() == "2026-02-12T00:00:00+00:00"


def test_a_refusing_check_keeps_the_words_of_the_problem() -> None:
    """What the customer reads, and where to upgrade, come from the service."""
    problem = {
        "status": 429,
        "code": "plan_limit_reached",
        "detail": "Plan limit reached. Upgrade to continue.",
        "resets_at": "2026-03-12T00:00:00Z",
        "upgrade_url": "https://example.com/upgrade",
    }

    check = read_check(429, {"retry-after": "604800"}, json.dumps(problem).encode())

    assert not check
    assert check.retry_after_s == 604_800
    with pytest.raises(PlanLimitReached) as caught:
        check.require()
    assert caught.value.upgrade_url == "https://example.com/upgrade"
    assert caught.value.resets_at == "2026-03-12T00:00:00Z"


def test_a_suspension_is_told_apart_from_a_used_up_plan() -> None:
    """402 and 429 ask for different actions."""
    body = b'{"code":"suspended","detail":"Organization suspended. Contact support."}'

    with pytest.raises(Suspended, match="Contact support"):
        read_check(402, {}, body).require()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, b"{}", Unauthorized),
        (403, b'{"code":"wrong_scope"}', Forbidden),
        (422, b'{"code":"invalid_request"}', RequestRejected),
        (404, b"<html>", RequestRejected),
        (429, b"slow down, says a proxy", Unreachable),
        (500, b"", Unreachable),
        (503, b'{"code":"store_unavailable"}', Unreachable),
        (200, b'{"agent_minutes":{"used":"many"}}', Unreachable),
        (301, b"", Unreachable),
    ],
)
def test_every_other_answer_is_an_error_of_a_kind(
    status: int, body: bytes, kind: type[Exception]
) -> None:
    """A guard must know whether meterd said no, or whether it did not answer at all."""
    with pytest.raises(kind):
        read_check(status, {}, body)
    with pytest.raises(kind):
        read_quota(status, body)


def test_an_unanswered_check_follows_the_policy() -> None:
    """Open is a yes that says so; closed is the error."""
    error = Unreachable("nobody there")

    assert unreachable_check(FailOpen(), error).code == "unreachable"
    with pytest.raises(Unreachable):
        unreachable_check(FailClosed(), error)


@pytest.mark.parametrize(
    ("given_url", "http", "stream"),
    [
        ("http://h:1", "http://h:1", "ws://h:1/v1/agents/stream"),
        ("https://h/", "https://h", "wss://h/v1/agents/stream"),
        ("wss://h/meterd/", "https://h/meterd", "wss://h/meterd/v1/agents/stream"),
    ],
)
def test_one_address_gives_both(given_url: str, http: str, stream: str) -> None:
    """The operator hands out one address, behind a path of a proxy too."""
    assert (http_url(given_url), stream_url(given_url)) == (http, stream)


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://h", "https://", "/v1"])
def test_an_address_without_a_scheme_or_host_is_refused(url: str) -> None:
    """The mistake shows at once, not as an endless reconnect."""
    with pytest.raises(ValueError, match="must be like"):
        stream_url(url)
    with pytest.raises(ValueError, match="must be like"):
        http_url(url)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "succeeded"),
        (ValueError(), "failed"),
        (KeyboardInterrupt(), "cancelled"),
        (ExceptionGroup("", [ValueError()]), "failed"),
        (BaseExceptionGroup("", [KeyboardInterrupt(), ValueError()]), "failed"),
        (BaseExceptionGroup("", [KeyboardInterrupt()]), "cancelled"),
    ],
)
def test_the_end_of_a_body_means_an_outcome(error: BaseException | None, outcome: str) -> None:
    """An error anywhere in a group is a failure; only a pure cancellation is none."""
    assert outcome_of(error) == outcome


@pytest.mark.parametrize("minutes", [0, 6, -1])
def test_a_policy_that_could_not_be_metered_is_refused(minutes: int) -> None:
    """Meterd takes 5 minutes of undeclared time and 24 hours of silence, and no more."""
    with pytest.raises(ValueError, match="minutes"):
        FailOpen(minutes=minutes)
    with pytest.raises(ValueError, match="running_minutes"):
        FailClosed(running_minutes=1_441)


@pytest.mark.parametrize("policy", [FailOpen(), FailClosed()])
def test_limits_are_positive_whole_numbers(policy: UnreachablePolicy) -> None:
    """Zero would be a busy loop, or a client that can hold no task."""
    with pytest.raises(ValueError, match="backoff_ms"):
        Settings(unreachable=policy, backoff_ms=0)
