"""The pages of the proof and of the attacks name tests; every one of them has to exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tidy.sources import ROOT


INTERNALS = ROOT / "docs/internals"
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def lines_of(table: str) -> list[str]:
    """Return the lines of a Markdown table below its head."""
    return [line for line in table.splitlines() if re.match(r"\| (?!(promise|attack) \|)", line)]


@pytest.mark.parametrize(("page", "least"), [("proof.md", 20), ("attacks.md", 60)])
def test_every_test_that_a_page_names_exists(page: str, least: int) -> None:
    """A reader follows a promise to its test; a name that leads nowhere proves nothing."""
    named = NAMED.findall((INTERNALS / page).read_text(encoding="utf-8"))

    missing = [
        f"{path}::{function}"
        for path, function in named
        if not (ROOT / path).is_file() or (function and not _has(ROOT / path, function))
    ]

    assert missing == []
    assert len([function for _, function in named if function]) >= least


def test_every_promise_and_every_attack_has_a_test() -> None:
    """No line of the tables stands for itself."""
    proof = (INTERNALS / "proof.md").read_text(encoding="utf-8")
    promises = lines_of(proof.split("## From promise to proof")[1].split("\n## ")[0])
    attacks = lines_of((INTERNALS / "attacks.md").read_text(encoding="utf-8"))

    assert len(promises) >= 9
    assert len(attacks) >= 35
    assert [line for line in promises + attacks if not NAMED.search(line)] == []


def test_every_attack_on_resources_is_on_the_page() -> None:
    """Who adds an attack to the list of floods tells readers of it."""
    source = (ROOT / "tests/security/test_floods.py").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^ATTACKS: .* = \(\n((?:    \w+,\n)+)\)", source, re.MULTILINE)
    page = (INTERNALS / "attacks.md").read_text(encoding="utf-8")

    missing = [
        name for name in re.findall(r"\w+", listed) if f"test_floods.py::{name}`" not in page
    ]

    assert missing == []


def _has(path: Path, function: str) -> bool:
    return f"def {function}(" in path.read_text(encoding="utf-8")
