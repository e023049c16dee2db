"""PostgreSQL's disk is full: nothing acknowledged is lost, and it goes on when there is room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import missing_service
from tests.crash.findings import NotHereError
from tests.crash.full_disk import full_disk, small_disk
from tests.crash.test_outages import assert_kept


pytestmark = pytest.mark.slow

AGENTS = 8


async def test_a_full_disk_stops_no_enforcement_and_loses_nothing(data_dir: Path) -> None:
    """Requests say 503 while tables, then the log, cannot grow; afterwards all is there once."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk to fill")
    try:
        with small_disk(data_dir):
            assert_kept(await full_disk(data_dir, cycles=2, agents=AGENTS))
    except NotHereError as error:
        missing_service(f"no small disk for this test: {error}")
