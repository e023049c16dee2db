from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable

import pytest
import trio
import trio.testing

from meterd.core.organization import Hold
from meterd.core.plan import Tier
from meterd.core.units import rfc3339
from tests.property.stripe_world import (
    DAY_S,
    USED_DAYS,
    USED_MS,
    History,
    live_through,
    make_history,
    standing_of,
)


SHUFFLES = int(os.environ.get("METERD_STRIPE_SHUFFLES", "700"))
"""Histories per way of shuffling, each on actors of its own: over two thousand in all."""

Deliveries = list[tuple[int, str]]


@functools.cache
def history() -> History:
    """Return the one history all tests live through."""
    return make_history()


def run(deliveries: Deliveries, *, has_key: bool) -> dict[str, object]:
    """Live through the history in virtual time and return where it ends."""

    async def main() -> dict[str, object]:
        return await standing_of(await live_through(history(), deliveries, has_key=has_key))

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@functools.cache
def ordered() -> dict[str, object]:
    """Return where the history ends when every event is heard of at once, in order."""
    return run(history().events, has_key=True)


def held_and_shuffled(chance: random.Random) -> Deliveries:
    """Everything is heard of after the end, in any order, some of it several times."""
    payloads = [payload for _, payload in history().events for _ in range(chance.randint(1, 3))]
    chance.shuffle(payloads)
    return [(history().end_s + index, payload) for index, payload in enumerate(payloads)]


def delayed(chance: random.Random) -> Deliveries:
    """Every copy of an event has a delay of its own, from none to a month."""
    longest_s = chance.choice([60, 3_600, DAY_S, 5 * DAY_S, 31 * DAY_S])
    return [
        (min(at_s + chance.randint(0, longest_s), history().end_s), payload)
        for at_s, payload in history().events
        for _ in range(chance.randint(1, 3))
    ]


def lossy(chance: random.Random) -> Deliveries:
    """Most is lost; the newest event of each subscription comes, whenever."""
    kept = [each for each in history().events if chance.random() < 0.3]
    last: dict[str, tuple[int, str]] = {}
    for at_s, payload in history().events:
        for subscription_id in history().objects[-1]["subscription"]:
            if subscription_id in payload and '"type": "invoice.p' in payload:
                last[subscription_id] = (at_s, payload)
    return [(history().end_s, payload) for _, payload in (*kept, *last.values())]


def test_history_is_the_one_the_tests_speak_of() -> None:
    """If the fake's billing changes, this says what these tests are about now."""
    kinds = [payload.split('"type": "')[-1].split('"')[0] for _, payload in history().events]

    assert kinds.count("customer.subscription.created") == 2
    assert kinds.count("customer.subscription.deleted") == 1
    assert kinds.count("invoice.payment_failed") == 2
    assert kinds.count("invoice.paid") == 8
    end = ordered()
    assert (end["plan"], end["holds"], end["alerts"]) == (Tier.STARTER, frozenset(), frozenset())
    period = end["period"]
    assert isinstance(period, tuple)
    assert [rfc3339(at_ms)[:10] for at_ms in period] == ["2026-06-16", "2026-07-16"]
    assert end["outcomes"] == {"applied"}
    assert end["used_ever"] == end["in_rows"] == len(USED_DAYS) * USED_MS


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("way", [held_and_shuffled, delayed, lossy])
def test_any_order_and_number_of_copies_ends_where_the_ordered_history_ends(
    way: Callable[[random.Random], Deliveries],
) -> None:
    """Webhooks are signals: what is true is read again, so their order cannot matter."""
    for seed in range(SHUFFLES):
        assert run(way(random.Random(seed)), has_key=True) == ordered(), (way.__name__, seed)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("way", [held_and_shuffled, delayed])
def test_without_an_api_key_the_newest_payload_wins_in_any_order(
    way: Callable[[random.Random], Deliveries],
) -> None:
    """Nothing can be read again, so versions order the payloads; the end is the same."""
    for seed in range(SHUFFLES // 5):
        assert run(way(random.Random(seed)), has_key=False) == ordered(), (way.__name__, seed)


def test_suspension_and_recovery_happen_on_the_way() -> None:
    """The comparison of ends would not notice a hold that never was: look in the middle."""
    events = history().events
    failed_s = min(
        at_s for at_s, payload in events if '"type": "invoice.payment_failed"' in payload
    )
    middle = History(
        events=events,
        moments_s=history().moments_s,
        objects=history().objects,
        end_s=failed_s + 7 * DAY_S + 1,
    )

    async def main() -> dict[str, object]:
        known = [each for each in events if each[0] <= middle.end_s]
        return await standing_of(await live_through(middle, known, has_key=True))

    found = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    assert found["holds"] == {Hold.PAYMENT}
    assert found["plan"] is Tier.PRO
