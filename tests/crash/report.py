"""The report of a proof, as Markdown."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import attrs
import psutil

from meterd.adapters.postgres_cluster import PROGRAMS
from tests.crash.findings import Findings, quantile, total
from tests.tidy.sources import ROOT


PAGE = ROOT / "docs/internals/proof.md"
"""How to read a report, and the table from each promise to the tests that would fail."""


@attrs.frozen
class Trial:
    """One kind of trouble and what it led to."""

    name: str
    found: Findings
    took_s: float
    left_out: str = ""
    """Why it could not be tried on this machine."""


@attrs.frozen(kw_only=True)
class Simulated:
    """What became of the simulated worlds."""

    seeds: int
    failed: Sequence[str]
    simulated_s: float
    acknowledged: int
    crashes: int
    planted: Sequence[str]
    found: Sequence[str]


NOT_SIMULATED = Simulated(
    seeds=0, failed=(), simulated_s=0, acknowledged=0, crashes=0, planted=(), found=()
)


def written(
    trials: Sequence[Trial],
    simulated: Simulated,
    *,
    begun_at: datetime,
    command: str,
    seed: int,
    ended_early: bool = False,
) -> tuple[str, bool]:
    """Return the report as Markdown, and whether every promise was kept, all of them tried."""
    summed = total([trial.found for trial in trials])
    missed = [name for name in simulated.planted if name not in simulated.found]
    broken = [
        *(f"{trial.name}: {sentence}" for trial in trials for sentence in trial.found.broken),
        *simulated.failed,
        *(f"planted bug not found: {name}" for name in missed),
    ]
    is_kept = not (broken or ended_early) and (
        summed.lost_ms,
        summed.doubled_ms,
        summed.over_ms,
    ) == (0, 0, 0)
    lines = [
        f"# Proof, {begun_at:%Y-%m-%d}",
        "",
        _verdict(is_kept=is_kept, ended_early=ended_early),
        "[How to read and repeat it](../docs/internals/proof.md).",
        "",
        "| | |",
        "|---|---|",
        f"| command | `{command}` |",
        f"| random instants from | `--seed {seed}` |",
        f"| begun | {begun_at:%Y-%m-%d %H:%M} UTC |",
        f"| commit | {commit()} |",
        f"| machine | {machine()} |",
        f"| versions | {versions()} |",
        f"| lost | **{summed.lost_ms} ms** |",
        f"| doubled | **{summed.doubled_ms} ms** |",
        f"| billed past a hard limit | **{summed.over_ms} ms** |",
        f"| acknowledged | {summed.acknowledgements:,} messages |",
        f"| sent again | {summed.resent:,} messages, on {summed.reconnects:,} new connections |",
        "",
        "## Real processes",
        "",
        (
            "| trial | cycles | took | tasks | acknowledged | sent again | reconnects | lost "
            "| doubled | recovery p50 | max |"
        ),
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(_row(trial) for trial in trials if not trial.left_out),
        "",
        *(f"Left out: {trial.name}: {trial.left_out}." for trial in trials if trial.left_out),
        "A recovery ends when work that was asked for afterwards is durable.",
        "",
        *_stops(summed),
        *_simulation(simulated, missed),
        "## Which test would fail",
        "",
        *_promises(),
    ]
    if broken:
        lines += ["", "## Broken", "", *(f"* {sentence}" for sentence in broken)]
    return "\n".join(lines) + "\n", is_kept


def _promises() -> list[str]:
    """Return the page's table."""
    section = PAGE.read_text(encoding="utf-8").split("## From promise to proof")[1]
    return [line for line in section.split("\n## ")[0].splitlines() if line.startswith("|")]


def _verdict(*, is_kept: bool, ended_early: bool) -> str:
    if ended_early:
        return "**Ended before its end.** What follows is what was tried until then."
    return "**Every promise was kept.**" if is_kept else "**A promise was broken**, see the end."


def _row(trial: Trial) -> str:
    found = trial.found
    median = longest = "-"
    if found.recoveries_s:
        median = f"{quantile(found.recoveries_s, 50):.2f} s"
        longest = f"{max(found.recoveries_s):.2f} s"
    return (
        f"| {trial.name} | {found.cycles} | {trial.took_s:.0f} s | {found.tasks:,} "
        f"| {found.acknowledgements:,} | {found.resent:,} | {found.reconnects:,} "
        f"| {found.lost_ms} ms | {found.doubled_ms} ms | {median} | {longest} |"
    )


def _stops(summed: Findings) -> list[str]:
    if not summed.stops_s:
        return []
    p50, p99 = (quantile(summed.stops_s, percent) * 1_000 for percent in (50, 99))
    return [
        "## Overspend under concurrency",
        "",
        f"{len(summed.stops_s):,} running agents were stopped at a hard limit they raced for.",
        (
            f"Time to stop, from the instant the budget ran out until the agent had read `stop`: "
            f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, max {max(summed.stops_s) * 1_000:.0f} ms."
        ),
        f"Billed past the limit: {summed.over_ms} ms.",
        "",
    ]


def _simulation(simulated: Simulated, missed: Sequence[str]) -> list[str]:
    if not simulated.seeds:
        return ["## Simulation", "", "Not run.", ""]
    return [
        "## Simulation",
        "",
        (
            f"{simulated.seeds:,} worlds, {len(simulated.failed)} failed: "
            f"{simulated.simulated_s / 3600:,.1f} hours of virtual time, "
            f"{simulated.acknowledged:,} acknowledgements, {simulated.crashes:,} crashes."
        ),
        f"Planted bugs found: {len(simulated.found)} of {len(simulated.planted)}"
        + (f"; missed: {', '.join(missed)}." if missed else "."),
        "",
    ]


def commit() -> str:
    """Return the checked-out commit, and whether files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    found = git("rev-parse", "--short=12", "HEAD") or "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "meterd", "tests")
    return f"{found}, with {len(changed.splitlines())} changed files" if changed else found


def machine() -> str:
    """Return what the proof ran on."""
    model = platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        for line in cpus.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory = psutil.virtual_memory().total / 2**30
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} x {model}, {memory:.0f} GiB, {platform.system()} {platform.release()}; "
        f"load {load:.1f} at the end"
    )


def versions() -> str:
    """Return what the proof ran with."""
    postgres = subprocess.run(
        [PROGRAMS / "postgres", "--version"], capture_output=True, text=True, check=False
    )
    libraries = [f"{name} {version(name)}" for name in ("trio", "asyncpg", "websockets")]
    return ", ".join(
        [f"Python {platform.python_version()}", postgres.stdout.strip(), *libraries]
    ).replace("postgres (PostgreSQL)", "PostgreSQL")
