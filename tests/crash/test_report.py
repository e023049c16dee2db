"""The report of a proof says what happened."""

from __future__ import annotations

from datetime import UTC, datetime

import attrs

from tests.crash.findings import Findings, quantile
from tests.crash.report import Simulated, Trial, written


NOTHING = Simulated(
    seeds=1, failed=(), simulated_s=3_600, acknowledged=5, crashes=2, planted=("a",), found=("a",)
)


def report_of(found: Findings, simulated: Simulated = NOTHING) -> tuple[str, bool]:
    """Return the report of one trial."""
    return written(
        [Trial("kill", found, 1.0)],
        simulated,
        begun_at=datetime(2026, 2, 20, tzinfo=UTC),
        command="prove",
        seed=1,
    )


def test_a_clean_proof_says_so_with_its_numbers() -> None:
    """Lost, doubled and over stand at the top; medians and worst cases are there."""
    found = Findings(cycles=3, acknowledgements=1_234, recoveries_s=[1.0, 2.0, 4.0], stops_s=[0.01])
    text, is_kept = report_of(found)

    assert is_kept
    assert "**Every promise was kept.**" in text
    assert "1,234" in text
    assert "tests/crash/test_kill.py::" in text.split("## Which test would fail")[1]
    assert "| 2.00 s | 4.00 s |" in text
    assert "p50 10 ms, p99 10 ms" in text


def test_what_this_machine_could_not_try_stands_in_the_report() -> None:
    """A reader must not take a trial for passed that never ran."""
    text, _ = written(
        [Trial("clock", Findings(), 0, left_out="no libfaketime")],
        NOTHING,
        begun_at=datetime(2026, 2, 20, tzinfo=UTC),
        command="prove",
        seed=1,
    )

    assert "Left out: clock: no libfaketime." in text
    assert "| clock |" not in text


def test_each_kind_of_broken_promise_fails_the_proof() -> None:
    """A report that cannot fail proves nothing."""
    for found in (
        Findings(lost_ms=1),
        Findings(doubled_ms=1),
        Findings(over_ms=1),
        Findings(broken=["it hung"]),
    ):
        assert not report_of(found)[1]
    assert not report_of(Findings(), attrs.evolve(NOTHING, failed=["world 3"]))[1]
    assert not report_of(Findings(), attrs.evolve(NOTHING, found=()))[1]


def test_quantiles_are_values_that_occurred() -> None:
    """Nearest rank: nothing is interpolated, and the largest is the hundredth."""
    assert quantile([3.0, 1.0, 2.0, 4.0], 50) == 2.0
    assert quantile([3.0, 1.0], 99) == 3.0
