"""The migrations are one line: each has a number of its own and follows the one before."""

from __future__ import annotations

import re
from pathlib import Path


VERSIONS = Path("meterd/adapters/postgres/migrations/versions")


def test_each_migration_has_its_own_number_and_follows_the_one_before() -> None:
    """Two branches that both add a migration are noticed when they meet."""
    found = []
    for path in sorted(VERSIONS.glob("[0-9]*.py")):
        text = path.read_text()
        revision = re.search(r'^revision = "(\d+)"$', text, re.MULTILINE)
        before = re.search(r'^down_revision = (?:None|"(\d+)")$', text, re.MULTILINE)
        assert revision is not None, path
        assert before is not None, path
        assert path.name.startswith(f"{revision[1]}_"), path
        assert path.with_suffix(".sql").exists(), path
        found.append((revision[1], before[1]))

    numbers = [number for number, _ in found]
    assert found
    assert [before for _, before in found] == [None, *numbers[:-1]]
