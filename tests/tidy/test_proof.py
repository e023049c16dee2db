"""The page of the proof names tests; every one of them has to exist."""

from __future__ import annotations

import re

from tests.tidy.sources import ROOT


PAGE = ROOT / "docs/internals/proof.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def test_every_test_that_the_proof_names_exists() -> None:
    """A reader follows a promise to its test; a name that leads nowhere proves nothing."""
    named = NAMED.findall(PAGE.read_text(encoding="utf-8"))

    missing = [
        f"{path}::{function}"
        for path, function in named
        if not (ROOT / path).is_file()
        or (function and f"def {function}(" not in (ROOT / path).read_text(encoding="utf-8"))
    ]

    assert missing == []
    assert len([function for _, function in named if function]) >= 20


def test_every_promise_has_a_test() -> None:
    """No line of the table stands for itself."""
    table = PAGE.read_text(encoding="utf-8").split("## From promise to proof")[1]
    lines = [line for line in table.split("\n## ")[0].splitlines() if line.startswith("| ")]

    promises = lines[1:]
    assert len(promises) >= 9
    assert [line for line in promises if not NAMED.search(line)] == []
