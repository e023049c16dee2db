"""The example in reports/ is what the code makes, not what somebody once pasted."""

from __future__ import annotations

from meterd.adapters.postgres.pool import PostgresPools
from tests.example_report import make_example
from tests.tidy.sources import ROOT


async def test_the_example_is_what_its_script_writes(pools: PostgresPools) -> None:
    """Run `python -m tests.example_report` when this fails, and read what changed."""
    report = await make_example(pools)

    path = ROOT / "reports" / f"daily-revenue-{report.day}.md"
    assert path.read_text(encoding="utf-8") == report.markdown
