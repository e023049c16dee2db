"""The fast lane: who asks the same again is answered there, and nobody can tell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import pytest
import trio
import trio.testing

from meterd.web.front.hot import HotAnswer, HotRequest, Repeatable
from meterd.web.front.lane import TURN_MAX
from meterd.web.front.wire import http_response
from meterd.web.front_door import FrontDoorLimits
from tests.integration.front.doors import RunningDoor, open_door, read_to_end, read_until


CHECK = b"GET /v1/quota/check?agent_id=a1 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer k\r\n\r\n"
OTHER = CHECK.replace(b"a1", b"a2")


@attrs.define
class Counting:
    """A hot path that counts: `asked` in full, `again` in the lane."""

    asked: int = 0
    again: int = 0
    body: bytes = b"!"

    def __call__(self, request: HotRequest) -> HotAnswer:
        self.asked += 1
        name = (request.agent_id or "").encode()

        def again() -> bytes | None:
            self.again += 1
            return self._answer(name)

        return Repeatable(self._answer(name), again)

    def _answer(self, name: bytes) -> bytes:
        return http_response(200, b"%b-%d%b" % (name, self.asked + self.again, self.body))


async def until(is_so: Callable[[], bool]) -> None:
    """Return when something is so; TooSlowError if it never is."""
    with trio.fail_after(15):
        while not is_so():  # noqa: ASYNC110  # counters tell nobody
            await trio.sleep(0.01)


async def ask(stream: trio.SocketStream, request: bytes = CHECK) -> bytes:
    """Return the body of the answer to a request."""
    await stream.send_all(request)
    return (await read_until(stream, b"!")).partition(b"\r\n\r\n")[2]


async def test_the_same_request_again_is_answered_without_asking_the_hot_path() -> None:
    """A hundred of them, all answered, in order, none handed over."""
    hot = Counting()
    async with open_door(hot_path=hot) as running, await running.connect() as stream:
        bodies = [await ask(stream) for _ in range(100)]

        assert bodies == [b"a1-%d!" % number for number in range(1, 101)]
        assert (hot.asked, hot.again) == (1, 99)
        assert running.door.counters.hot_answers == 100


async def test_more_connections_than_one_turn_takes_are_all_answered() -> None:
    """Who is left over in one turn comes in the next."""
    hot = Counting()
    async with open_door(hot_path=hot) as running:
        streams = [await running.connect() for _ in range(TURN_MAX * 2)]
        for _ in range(3):
            for stream in streams:
                await stream.send_all(CHECK)
            for stream in streams:
                assert b"a1-" in await read_until(stream, b"!")
        for stream in streams:
            await stream.aclose()

    assert (hot.asked, hot.again) == (TURN_MAX * 2, TURN_MAX * 4)


@pytest.mark.parametrize(
    ("request_bytes", "ending"),
    [
        (OTHER, b"a2-3!"),
        (CHECK.replace(b"Host: a", b"Host: b"), b"a1-3!"),
        (CHECK + CHECK + OTHER, b"a2-5!"),
        (CHECK + b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n", b"hello"),
        (b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n", b"hello"),
        (b"\x00", b"}"),
    ],
)
async def test_whatever_else_comes_is_looked_at_as_ever(
    request_bytes: bytes, ending: bytes
) -> None:
    """Another question, several at once, another route, nonsense."""
    hot = Counting()
    async with open_door(hot_path=hot) as running, await running.connect() as stream:
        await ask(stream)
        await ask(stream)
        await stream.send_all(request_bytes)

        assert b"HTTP/1.1 " in await read_until(stream, ending)


async def test_a_request_that_comes_in_pieces_is_answered_wherever_it_is_cut() -> None:
    """The lane parses nothing: a piece goes back to the connection's own task."""
    hot = Counting()
    async with open_door(hot_path=hot) as running, await running.connect() as stream:
        await ask(stream)
        for cut in range(1, len(CHECK), 9):
            await stream.send_all(CHECK[:cut])
            await trio.testing.wait_all_tasks_blocked()
            assert (await ask(stream, CHECK[cut:])).startswith(b"a1-")


async def test_an_answer_that_cannot_be_repeated_is_asked_for_again() -> None:
    """None from `again` means what it means from the hot path: look properly."""
    asked = []

    def answer(request: HotRequest) -> HotAnswer:
        asked.append(request)
        return Repeatable(http_response(200, b"%d!" % len(asked)), lambda: None)

    async with open_door(hot_path=answer) as running, await running.connect() as stream:
        assert [await ask(stream) for _ in range(3)] == [b"1!", b"2!", b"3!"]


async def test_a_repeated_answer_that_raises_costs_one_connection_and_says_500() -> None:
    """As an answer that raises does; the others in the lane go on."""
    is_broken: list[bool] = []

    def again() -> bytes | None:
        if is_broken:
            raise RuntimeError("planted")
        return http_response(200, b"again!")

    async with (
        open_door(hot_path=lambda _: Repeatable(http_response(200, b"once!"), again)) as running,
        await running.connect() as one,
        await running.connect() as two,
    ):
        for stream in (one, one, two):
            await ask(stream)
        is_broken.append(True)
        await one.send_all(CHECK)
        refusal = await read_to_end(one)
        is_broken.clear()

        assert refusal.startswith(b"HTTP/1.1 500 ")
        assert b"planted" not in refusal
        assert await ask(two) == b"again!"
        assert running.door.counters.crashed == 1


async def _reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await stream.aclose()


@pytest.mark.parametrize("leave", [trio.SocketStream.aclose, _reset])
async def test_who_leaves_the_lane_leaves_nothing_behind(
    leave: Callable[[trio.SocketStream], Awaitable[None]],
) -> None:
    """By an end of stream or by a reset, and the descriptor is free for the next."""
    async with open_door(hot_path=Counting()) as running:
        for _ in range(20):
            stream = await running.connect()
            await ask(stream)
            await ask(stream)
            await leave(stream)
        await until(lambda: running.door.counters.open_connections == 0)

        assert running.door.counters.crashed == 0


async def test_who_does_not_read_leaves_the_lane_and_is_dropped_in_time() -> None:
    """A full socket holds up nobody else; what did not fit is written by the connection's task."""
    large, small = Counting(body=b"x" * 8_000_000 + b"!"), Counting()
    limits = FrontDoorLimits(write_timeout_ms=1_000)
    async with (
        open_door(
            hot_path=lambda request: (large if request.agent_id == "a1" else small)(request),
            limits=limits,
        ) as running,
        await running.connect() as slow,
        await running.connect() as quick,
    ):
        await ask(slow)
        await slow.send_all(CHECK)
        for number in range(1, 4):
            assert await ask(quick, OTHER) == b"a2-%d!" % number
        await until(lambda: running.door.counters.stalled == 1)
        await until(lambda: running.door.counters.open_connections == 1)


async def test_a_large_answer_arrives_whole_and_its_connection_rides_on() -> None:
    """More than the socket takes at once."""
    hot = Counting(body=b"x" * 8_000_000 + b"!")
    async with open_door(hot_path=hot) as running, await running.connect() as stream:
        for number in range(3):
            assert len(await ask(stream)) == len(b"a1-%d" % number) + len(hot.body)
        assert hot.asked == 1


async def test_a_stop_waits_for_what_a_rider_has_not_taken_yet_and_no_longer() -> None:
    """An answer that is being written is in flight; after it the connection closes."""
    hot = Counting(body=b"x" * 8_000_000 + b"!")
    async with open_door(hot_path=hot) as running, await running.connect() as stream:
        await ask(stream)
        await stream.send_all(CHECK)
        await until(lambda: hot.again == 1)
        await trio.testing.wait_all_tasks_blocked()
        running.door.stop_accepting()
        answer = await read_to_end(stream)

        assert answer.endswith(hot.body)
        assert await running.door.drained(timeout_ms=1_000)


async def test_an_idle_rider_is_closed_after_the_keep_alive_time_out() -> None:
    """Each answer puts it off."""
    limits = FrontDoorLimits(idle_timeout_ms=1_000, head_timeout_ms=1_000)
    async with (
        open_door(hot_path=Counting(), limits=limits) as running,
        await running.connect() as stream,
    ):
        for _ in range(4):
            await ask(stream)
            await trio.sleep(0.3)

        assert await read_to_end(stream) == b""
        assert running.door.counters.timed_out == 1


async def test_a_rider_whose_socket_is_closed_under_it_is_told() -> None:
    """Whoever closes it, and its descriptor may be another's the moment after."""
    async with open_door(hot_path=Counting()) as running, await running.connect() as stream:
        await ask(stream)
        await ask(stream)
        for connection in list(running.door._connections):
            connection.drop()

        assert await read_to_end(stream) == b""
        await until(lambda: running.door.counters.open_connections == 0)
        assert running.door.counters.crashed == 0
        async with await running.connect() as other:
            assert b"a1-" in await ask(other)
            assert b"a1-" in await ask(other)


@pytest.mark.parametrize("end", ["stop_accepting", "abort_all"])
async def test_a_stop_ends_riders_at_once(end: str) -> None:
    """They are idle: nothing of theirs is in flight."""

    async def ended(running: RunningDoor, stream: trio.SocketStream) -> bytes:
        getattr(running.door, end)()
        return await read_to_end(stream, seconds=1)

    async with (
        open_door(hot_path=Counting()) as running,
        await running.connect() as stream,
    ):
        await ask(stream)
        await ask(stream)

        assert await ended(running, stream) == b""
        await until(lambda: running.door.counters.open_connections == 0)
