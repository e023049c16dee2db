from __future__ import annotations

import random
import uuid

import pytest
from hypothesis import given, strategies

from meterd.adapters.ids import IdSource, id_text, id_uuid
from meterd.core.ids import fact_id


AT_MS = 1_770_854_400_123


def make_source(seed: int = 1, at_ms: int = AT_MS) -> IdSource:
    return IdSource(lambda: at_ms, random.Random(seed))


def test_a_new_id_is_a_version_7_uuid_of_the_clock_under_its_prefix() -> None:
    """The time can be read back from the id, and other tools know the format."""
    text = make_source().new("rec")
    inside = id_uuid(text)

    assert text.startswith("rec_")
    assert len(text) == 36
    assert inside is not None
    assert (inside.version, inside.variant) == (7, uuid.RFC_4122)
    assert inside.int >> 80 == AT_MS


def test_ids_have_the_form_of_the_ids_of_facts() -> None:
    """Both kinds stand in one column, which is sorted by id."""
    assert [len(part) for part in fact_id("rec", AT_MS, "a").split("_")] == [3, 32]
    assert fact_id("rec", AT_MS - 1, "a") < make_source().new("rec") < fact_id("rec", AT_MS + 1)


def test_ids_of_one_millisecond_are_distinct_and_sort_in_the_order_they_were_made() -> None:
    """The newest-first lists and cursors rest on it."""
    source = make_source()
    ids = [source.new("rec") for _ in range(10_000)]

    assert ids == sorted(set(ids))


def test_ids_sort_when_the_clock_stands_still_or_goes_back() -> None:
    """A source never falls behind itself, whatever its clock does."""
    times = iter([AT_MS, AT_MS + 5, AT_MS + 1, AT_MS + 5, AT_MS + 6])
    source = IdSource(lambda: next(times), random.Random(1))
    ids = [source.new("key") for _ in range(5)]

    assert ids == sorted(set(ids))


def test_a_used_up_millisecond_borrows_from_the_next() -> None:
    """Counting up must not overflow into version or variant bits."""
    source = make_source()
    first = source.uuid7()
    source._last_chance = (1 << 74) - 1

    after = source.uuid7()

    assert after > first
    assert after.version == 7
    assert after.int >> 80 == AT_MS + 1


def test_the_same_seed_and_clock_give_the_same_ids() -> None:
    """A simulation repeats bit by bit."""
    first, second, other = make_source(7), make_source(7), make_source(8)
    ids = [first.new("rec") for _ in range(100)]

    assert ids == [second.new("rec") for _ in range(100)]
    assert ids[0] != other.new("rec")


@given(strategies.integers(min_value=0, max_value=(1 << 128) - 1))
def test_text_and_uuid_are_the_same_thing(number: int) -> None:
    """Nothing is lost on the way to text and back."""
    value = uuid.UUID(int=number)

    assert id_uuid(id_text("rec", value)) == value


@given(
    strategies.integers(min_value=0, max_value=(1 << 128) - 1),
    strategies.integers(min_value=0, max_value=(1 << 128) - 1),
)
def test_text_order_is_number_order(left: int, right: int) -> None:
    """Sorting by id in SQL is sorting by time."""
    left_text, right_text = (id_text("rec", uuid.UUID(int=n)) for n in (left, right))

    assert (left_text < right_text) == (left < right)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rec_",
        "rec",
        "019c50587e7b7000a000000000000001",
        "REC_019c50587e7b7000a000000000000001",
        "rec_019C50587E7B7000A000000000000001",
        "rec_019c50587e7b7000a00000000000001",
        "rec_019c50587e7b7000a0000000000000011",
        "rec_019c50587e7b7000a000000000000001\n",
        "rec_019c50587e7b7000a00000000000000g",
    ],
)
def test_text_that_is_no_id_has_no_uuid(text: str) -> None:
    """Whatever a client sends is answered with None and not with an exception."""
    assert id_uuid(text) is None
