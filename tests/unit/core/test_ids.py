from __future__ import annotations

import uuid

import pytest

from meterd.core.ids import NAME_CHARACTERS_MAX, ORGANIZATION_ID, fact_id, is_printable_name


def test_a_fact_has_one_id() -> None:
    """Writing it twice writes one row; it is a version 7 UUID of the fact's time."""
    text = fact_id("rec", 1_770_854_400_123, "org_1", 7, 0)
    number = uuid.UUID(text.removeprefix("rec_"))

    assert text == fact_id("rec", 1_770_854_400_123, "org_1", 7, 0)
    assert (number.version, number.variant) == (7, uuid.RFC_4122)
    assert number.int >> 80 == 1_770_854_400_123
    assert len(text) == 36


def test_parts_keep_their_borders() -> None:
    """`a-b`, `c` is not `a`, `b-c`, and 12, 3 is not 1, 23."""
    facts = [("a-b", "c"), ("a", "b-c"), ("12", "3"), ("1", "23"), ("123",)]

    assert len({fact_id("rec", 0, *parts) for parts in facts}) == len(facts)


def test_ids_sort_by_time() -> None:
    """Of one organization and of all."""
    ids = [fact_id("rec", at_ms, "o", at_ms) for at_ms in (0, 1, 255, 256, 1_770_854_400_123)]

    assert ids == sorted(ids)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("org_2abcDEF-9", True), ("a" * 64, True), ("a" * 65, False), ("", False), ("a b", False),
        ("ö", False), ("a\n", False), ("١", False),
    ],
)  # fmt: skip
def test_organization_ids_are_plain(text: str, fits: bool) -> None:
    """They stand in paths, logs and keys."""
    assert bool(ORGANIZATION_ID.fullmatch(text)) is fits


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("a", True), ("", False), ("x" * NAME_CHARACTERS_MAX, True),
        ("x" * (NAME_CHARACTERS_MAX + 1), False), ("a\0", False), ("a\n", False), ("é 世", True),
        ("\ud800", False),
    ],
)  # fmt: skip
def test_names_are_printable(text: str, fits: bool) -> None:
    """NUL and lone surrogates would poison a batch of the store."""
    assert is_printable_name(text) is fits
