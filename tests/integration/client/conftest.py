"""One suite, three shells: each test says its steps once and runs on Trio, asyncio and threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.scripted_meterd import ScriptedMeterd, scripted_meterd


@pytest.fixture
def service() -> Iterator[ScriptedMeterd]:
    """Run a scripted meterd on a free port."""
    with scripted_meterd() as running:
        yield running
