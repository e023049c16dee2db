"""Hot requests are answered inline; whatever is unusual about one goes to the application."""

from __future__ import annotations

import attrs
import pytest
import trio

from meterd.web.front.hot import HotAnswer, HotRequest, HotRoute
from meterd.web.front.wire import http_response
from meterd.web.front_door import FrontDoorLimits, TrustedProxies
from tests.integration.front.doors import open_door, read_until


CHECK = (
    b"GET /v1/quota/check?agent_id=a1 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer k\r\n"
    b"User-Agent: t\r\nAccept: */*\r\n\r\n"
)
HEARTBEAT = (
    b"POST /v1/tasks/t1/heartbeat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer k\r\n"
    b"content-type: application/json\r\ncontent-length: 18\r\n\r\n"
)
BODY = b'{"elapsed_ms":500}'


@attrs.define
class Hot:
    """A hot path that remembers what it was asked and answers with its number."""

    asked: list[HotRequest] = attrs.field(factory=list)

    def __call__(self, request: HotRequest) -> HotAnswer:
        self.asked.append(request)
        return http_response(200, b"hot-%d" % len(self.asked))


async def test_a_quota_check_is_answered_inline() -> None:
    """The hottest call there is never meets Hypercorn."""
    hot = Hot()
    async with open_door(hot_path=hot) as running, await running.connect() as stream:
        await stream.send_all(CHECK)
        answer = await read_until(stream, b"hot-1")

        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert running.door.counters.handed_over == 0
        assert hot.asked == [
            HotRequest(
                route=HotRoute.QUOTA_CHECK,
                method="GET",
                path="/v1/quota/check",
                query="agent_id=a1",
                agent_id="a1",
                task_id=None,
                authorization="Bearer k",
                body=b"",
                client_address="127.0.0.1",
            )
        ]


async def test_a_heartbeat_is_answered_inline_however_it_is_cut_into_segments() -> None:
    """Every boundary between two reads gives the same request."""
    hot = Hot()
    whole = HEARTBEAT + BODY
    async with open_door(hot_path=hot) as running, await running.connect() as stream:
        for number, cut in enumerate(range(1, len(whole), 7), start=1):
            await stream.send_all(whole[:cut])
            await trio.testing.wait_all_tasks_blocked()
            await stream.send_all(whole[cut:])
            await read_until(stream, b"hot-%d" % number)

        assert {(r.route, r.task_id, r.body) for r in hot.asked} == {
            (HotRoute.HEARTBEAT, "t1", BODY)
        }
        assert running.door.counters.handed_over == 0


async def test_pipelined_requests_are_answered_in_order_and_a_stranger_among_them_too() -> None:
    """What the hot path does not know is handed over with its bytes, behind the hot answers."""
    hot = Hot()
    limits = FrontDoorLimits(hot_pipeline_max=3)
    async with open_door(hot_path=hot, limits=limits) as running:
        async with await running.connect() as stream:
            await stream.send_all(
                CHECK * 8 + HEARTBEAT + BODY + b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n" + CHECK
            )
            answer = await read_until(stream, b"from the application")

        assert answer.count(b"HTTP/1.1 200 ") == 11
        assert answer.index(b"hot-8") < answer.index(b"hot-9") < answer.index(b"hello")
        assert running.door.counters.handed_over == 1


@pytest.mark.parametrize(
    ("request_bytes", "ending"),
    [
        (CHECK.replace(b"User-Agent: t", b"Expect: 100-continue"), b"from the application"),
        (CHECK.replace(b"User-Agent: t", b"Authorization: Bearer x"), b"from the application"),
        (CHECK.replace(b"User-Agent: t", b"Content-Length: 0"), b"from the application"),
        (CHECK.replace(b"User-Agent: t", b"Connection: close"), b"from the application"),
        (CHECK.replace(b"HTTP/1.1", b"HTTP/1.0"), b"from the application"),
        (CHECK.replace(b"agent_id=a1", b"agent_id=%61"), b"from the application"),
        (CHECK.replace(b"agent_id=a1", b"agent_id=a1&x=y"), b"from the application"),
        (CHECK.replace(b"/v1", b"http://a/v1"), b"from the application"),
        (HEARTBEAT.replace(b"application/json", b"text/plain") + BODY, b"application:t1:18"),
        (HEARTBEAT.replace(b"length: 18", b"length: 5000") + b" " * 5000, b"application:t1:5000"),
        (
            HEARTBEAT.replace(b"content-length: 18", b"transfer-encoding: chunked")
            + b"2\r\n{}\r\n0\r\n\r\n",
            b"application:t1:2",
        ),
    ],
)
async def test_an_unusual_hot_request_is_the_applications(
    request_bytes: bytes, ending: bytes
) -> None:
    """There is one behaviour for anything special, the application's."""
    hot = Hot()
    async with open_door(hot_path=hot) as running, await running.connect() as stream:
        await stream.send_all(request_bytes)
        answer = await read_until(stream, ending)

        assert b"HTTP/1.1 200" in answer
        assert hot.asked == []


async def test_a_hot_path_may_decline_and_the_application_gets_the_same_bytes() -> None:
    """None means "not mine", also after awaiting, and also for a request with a body."""

    async def decline_later() -> HotAnswer:
        await trio.lowlevel.checkpoint()
        return None

    async with (
        open_door(hot_path=lambda _: decline_later()) as running,
        await running.connect() as stream,
    ):
        await stream.send_all(HEARTBEAT + BODY)

        assert (await read_until(stream, b"application:t1:18")).startswith(b"HTTP/1.1 200 ")


async def test_a_hot_path_that_raises_costs_one_connection_and_says_500() -> None:
    """The client hears that it was the server's fault; the next connection is served."""

    def fail(_: HotRequest) -> HotAnswer:
        raise RuntimeError("planted")

    async with open_door(hot_path=fail) as running:
        answer = await running.ask(CHECK)
        again = await running.ask(b"GET /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")

        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"planted" not in answer
        assert again.endswith(b"hello")
        assert running.door.counters.crashed == 1


async def test_a_slow_hot_answer_neither_times_out_nor_holds_others_up() -> None:
    """A heartbeat may wait for its commit longer than a client may take for its head."""

    async def slow() -> HotAnswer:
        await trio.sleep(0.4)
        return http_response(200, b"slow")

    limits = FrontDoorLimits(head_timeout_ms=100, idle_timeout_ms=100, body_timeout_ms=100)

    def answer(request: HotRequest) -> HotAnswer:
        return http_response(200, b"fast") if request.body == b"" else None

    async with (
        open_door(limits=limits, hot_path=lambda r: slow() if r.body else answer(r)) as running,
        await running.connect() as one,
        await running.connect() as two,
    ):
        await one.send_all(HEARTBEAT + BODY)
        await two.send_all(CHECK)

        assert (await read_until(two, b"fast", seconds=0.3)).startswith(b"HTTP/1.1 200 ")
        assert (await read_until(one, b"slow")).startswith(b"HTTP/1.1 200 ")


async def test_a_hot_request_behind_a_trusted_proxy_carries_the_clients_address() -> None:
    """Limits and logs speak of the client, on this path as on the other."""
    hot = Hot()
    proxies = TrustedProxies(["127.0.0.1"])
    async with open_door(hot_path=hot, trusted_proxies=proxies) as running:
        async with await running.connect() as stream:
            await stream.send_all(CHECK.replace(b"User-Agent: t", b"X-Forwarded-For: 192.0.2.5"))
            await read_until(stream, b"hot-1")

        assert hot.asked[0].client_address == "192.0.2.5"
