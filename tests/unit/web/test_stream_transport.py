"""The outbox: bounded, in order, superseding by key, and closed once."""

from __future__ import annotations

import trio
from hypothesis import given, strategies as st

from meterd.web.stream_transport import CLOSE_SLOW_READER, Outbox, StreamClose


def make_outbox(*, items_max: int = 4, bytes_max: int = 100) -> Outbox:
    """Return a small outbox."""
    return Outbox(items_max=items_max, bytes_max=bytes_max)


def test_a_message_replaces_the_queued_one_with_its_key_and_goes_last() -> None:
    """The newest acknowledgement of a task says all that the older ones did."""
    outbox = make_outbox()
    outbox.send(b"ack 1", key=1)
    outbox.send(b"other")
    outbox.send(b"ack 2", key=1)

    assert outbox.take(100) == [b"other", b"ack 2"]
    assert outbox.superseded == 1
    assert outbox.queued_bytes == 0


def test_what_does_not_fit_closes_the_stream_as_a_slow_reader() -> None:
    """The queue is dropped at once: its memory is what the bound protects."""
    for outbox in (make_outbox(items_max=2), make_outbox(bytes_max=20)):
        sent = [outbox.send(b"0123456789") for _ in range(3)]

        assert sent == [True, True, False]
        assert outbox.closing == StreamClose(code=CLOSE_SLOW_READER, reason="reading too slowly")
        assert outbox.take(100) == []
        assert not outbox.send(b"x")


def test_a_close_lets_what_is_queued_go_out_and_the_first_close_wins() -> None:
    """A close never overtakes an answer."""
    outbox = make_outbox()
    outbox.send(b"last")
    outbox.close(1012, "restart")
    outbox.close(4401, "revoked")

    assert not outbox.send(b"too late")
    assert outbox.take(100) == [b"last"]
    assert outbox.closing == StreamClose(code=1012, reason="restart")


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.integers(0, 3), st.integers(0, 40)),
            st.tuples(st.just("take"), st.integers(1, 60), st.just(0)),
        ),
        max_size=60,
    )
)
def test_an_outbox_agrees_with_a_plain_list(steps: list[tuple[str, int, int]]) -> None:
    """The naive model: a list of pairs, searched each time."""
    outbox = Outbox(items_max=6, bytes_max=120)
    model: list[tuple[int | None, bytes]] = []
    for number, (step, value, size) in enumerate(steps):
        if step == "send":
            key = value or None
            payload = b"%d" % number + b"x" * size
            model = [item for item in model if key is None or item[0] != key]
            model.append((key, payload))
            fits = len(model) <= 6 and sum(len(item[1]) for item in model) <= 120
            assert outbox.send(payload, key=key) == fits
            if not fits:
                assert outbox.closing is not None
                return
        else:
            expected: list[bytes] = []
            while model and (not expected or sum(map(len, expected)) + len(model[0][1]) <= value):
                expected.append(model.pop(0)[1])
            assert outbox.take(value) == expected
        assert len(outbox) == len(model)
        assert outbox.queued_bytes == sum(len(item[1]) for item in model)


async def test_the_carrier_is_woken_by_a_message_a_close_and_the_end() -> None:
    """Pushes come from other tasks while the carrier waits."""

    def send(outbox: Outbox) -> None:
        outbox.send(b"x")

    for act in (send, lambda outbox: outbox.close(1000), lambda outbox: outbox.end()):
        outbox = make_outbox()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.wait_ready)
            await trio.testing.wait_all_tasks_blocked()
            act(outbox)
        with trio.fail_after(1):
            await outbox.wait_ready()
