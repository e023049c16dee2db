"""Whoever ends the proof is left with a report, and with nothing that still runs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.service.harness import environment
from tests.tidy.sources import ROOT


pytestmark = pytest.mark.slow

NOTHING_ELSE = ["--named-kills=0", "--postgres-kills=0", "--freezes=0", "--full-disks=0",
                "--outages=0", "--cuts=0", "--clock-steps=0", "--races=0", "--seeds=0",
                "--bugs=0"]  # fmt: skip


def test_a_proof_that_is_ended_writes_what_it_has_and_leaves_no_process(
    tmp_path: Path,
) -> None:
    """By SIGTERM, which it turns into Ctrl-C, while a PostgreSQL and a meterd are at work."""
    report = tmp_path / "report.md"
    command = [sys.executable, "-m", "tests.crash.prove", "--meterd-kills=99", *NOTHING_ELSE]
    with subprocess.Popen(
        [*command, f"--report={report}"],
        cwd=ROOT,
        env=environment({}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as proof:
        try:
            started = at_work(proof.pid)
            proof.send_signal(signal.SIGTERM)
            code = proof.wait(timeout=60)
        finally:
            proof.kill()
    gone, alive = psutil.wait_procs(started, timeout=20)

    assert code == 130
    assert report.read_text().splitlines()[2].startswith("**Ended before its end.**")
    assert alive == []
    assert len(gone) > 1


def at_work(pid: int) -> list[psutil.Process]:
    """Return every process of a proof, once its meterd is one of them."""
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        for each in found:
            try:
                if "serve" in each.cmdline() and each.net_connections(kind="tcp"):
                    return found
            except psutil.Error:
                continue
        time.sleep(0.05)
    raise AssertionError("no meterd within a minute")
