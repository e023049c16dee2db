"""Text in reports: whatever a customer is called, a cell stays a cell."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from meterd.reporting.text import (
    NAME_CHARACTERS_MAX,
    counted,
    escaped,
    plain,
    sparkline,
    table,
    width,
)


@given(st.text())
def test_no_name_leaves_its_cell(name: str) -> None:
    """One line, no markup left alive, no HTML, nothing invisible, nothing a spreadsheet runs."""
    shown = escaped(name)

    assert shown
    assert "\n" not in shown
    assert "\r" not in shown
    assert not set(shown) & set("<>@")
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*\[\]()!]", shown.replace("(no name)", ""))
    assert not re.search(r"(?<![^\W_]|\\)_|(?<!\\)_(?![^\W_])", shown)
    assert not shown.startswith(("=", "+", "-", "@", "\t"))
    assert all(letter.isprintable() for letter in shown)


@given(st.text(min_size=1))
def test_a_plain_name_is_bounded_and_visible(name: str) -> None:
    """A name of a megabyte takes as much room as one of forty characters."""
    assert len(plain(name * 50)) <= NAME_CHARACTERS_MAX


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Acme", "Acme"),
        ("A | B", "A \\| B"),
        ("org_acme_2", "org_acme_2"),
        ("_a_ b__c", "\\_a\\_ b\\_\\_c"),
        ("<script>", "&lt;script&gt;"),
        ("=HYPERLINK()", "'=HYPERLINK\\(\\)"),
        ("line\nbreak\u202ereversed", "line break reversed"),
        ("http://x.example", "http\\://x.example"),
        ("a@b.example", "a&#64;b.example"),
        ("WWW.x.example", "WWW\\.x.example"),
        ("", "(no name)"),
        ("\u200b", "(no name)"),
    ],
)
def test_names_are_shown_and_do_nothing(name: str, shown: str) -> None:
    """What a reader sees is what the customer typed, as far as it is visible."""
    assert escaped(name) == shown


def test_columns_are_aligned_by_what_a_terminal_shows() -> None:
    """Wide characters take two columns, combining ones none."""
    lines = table(["name", "n"], [["日本", "1"], ["e\u0301", "22"], ["abcdef", "3"]], "lr")

    assert len({width(line) for line in lines}) == 1
    assert lines[1] == "| ------ | --: |"


def test_a_sparkline_goes_from_nothing_to_the_largest() -> None:
    """Days without use are as low as can be, and all-zero is flat."""
    assert sparkline([0, 5, 10]) == "▁▄█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""


def test_one_is_singular() -> None:
    """A report for people."""
    assert (counted(1, "customer"), counted(0, "customer")) == ("1 customer", "0 customers")
