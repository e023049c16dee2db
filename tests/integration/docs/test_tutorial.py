"""docs/tutorial/first-meter.md, typed from top to bottom."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.docs.pages import Reader


pytestmark = pytest.mark.slow


def test_the_tutorial_does_what_it_says(data_dir: Path) -> None:
    """A newcomer's first quarter of an hour must not be spent on a page that lies."""
    reader = Reader(data_dir)
    try:
        assert reader.follow("tutorial/first-meter.md") >= 15
        reader.stop()
    finally:
        reader.close()
