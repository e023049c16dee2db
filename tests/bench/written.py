"""The report: figures into Markdown and one SVG plot."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import psutil

from tests.bench.loads import Sample


METERD, REDIS = "meterd", "FastAPI + Redis (Lua)"
POSTGRES, HELLO = "FastAPI + PostgreSQL", "bare uvicorn, hello"
MB, KB = 1024 * 1024, 1024


@attrs.frozen(kw_only=True)
class Figures:
    """Everything one run measured."""

    load_before: float
    missing: Mapping[str, str]
    checks: Mapping[tuple[str, int], Sample]
    connections: Sequence[int]
    peer_beats: Sample | None
    beats: Mapping[tuple[int, int, int], Sample]
    under_load: Sample
    under_load_beats_per_s: float
    agents_bytes: float
    stop_s: float
    many: Mapping[str, Any]


def write(figures: Figures, directory: Path, command: str, took_s: int) -> Path:
    """Write report and plot, named by the day; return the report's path."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"benchmark-{datetime.now(tz=UTC).date().isoformat()}"
    (directory / f"{name}.svg").write_text(_plot(figures), encoding="utf-8")
    parts = [
        f"# Benchmark of {datetime.now(tz=UTC).date().isoformat()}\n",
        _machine(figures, command, took_s),
        f"![Quota checks a second at 32 connections]({name}.svg)\n",
        "## Quota checks, closed loop\n",
        _checks(figures),
        "## Durable heartbeats\n",
        _beats(figures),
        "## Checks while heartbeats are made durable\n",
        _under_load(figures),
        "## Many organizations, a long ledger\n",
        _many(figures),
        "## Against the targets\n",
        _targets(figures),
    ]
    path = directory / f"{name}.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _machine(figures: Figures, command: str, took_s: int) -> str:
    changed = (
        ", with changes that are not committed" if _git("status", "--porcelain", "-uno") else ""
    )
    cpu = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    gb = round(psutil.virtual_memory().total / MB / KB)
    versions = ", ".join(f"{name} {version(name)}" for name in ("trio", "websockets", "asyncpg"))
    lines = [
        (
            f"{os.cpu_count()} × {cpu}, {gb} GB; {platform.system()} {platform.release()};"
            f" Python {platform.python_version()}, {versions}."
        ),
        (
            f"Commit {_git('rev-parse', '--short=12', 'HEAD')}{changed}. Written by `{command}`,"
            f" which took {took_s} s. Load average before it: {figures.load_before:.1f}."
        ),
        (
            "Servers, PostgreSQL, Redis and the load share these processors, so a rate says what"
            " was left over as well; the server's own processor time per answer is what compares"
            " between runs. Medians of alternating rounds."
        ),
    ]
    lines += [f"Not measured: {name}, because {why}." for name, why in figures.missing.items()]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _checks(figures: Figures) -> str:
    names = list(dict.fromkeys(name for name, _ in figures.checks))
    rows = [
        [
            name,
            str(count),
            f"{sample.per_s:,.0f}",
            f"{sample.cpu_us:,.0f}",
            f"{sample.p50_ms:.2f} / {sample.p99_ms:.2f} / {sample.p999_ms:.2f}",
        ]
        for count in figures.connections
        for name in names
        if (sample := figures.checks.get((name, count))) is not None
    ]
    head = ("server", "connections", "checks/s", "µs CPU each", "p50 / p99 / p99.9 ms")
    note = (
        "The peers know one organization and answer with four fields; meterd answers with plan,"
        " period, limits, agents, headers and a request id. The Quart-Trio server only sends a"
        " constant. CPU is the web server's own process; Redis and PostgreSQL come on top.\n"
    )
    return _table(head, rows) + "\n" + note


def _beats(figures: Figures) -> str:
    rows = [
        [
            "meterd, agent stream",
            str(beats),
            str(window),
            str(tasks),
            f"{sample.per_s:,.0f}",
            f"{sample.cpu_us:.1f}",
        ]
        for (beats, window, tasks), sample in figures.beats.items()
    ]
    if (peer := figures.peer_beats) is not None:
        row = [f"{POSTGRES}, HTTP", "1", "1", "1", f"{peer.per_s:,.0f}", f"{peer.cpu_us:.1f}"]
        rows.append(row)
    head = (
        "server", "reports a frame", "frames in flight", "tasks a connection", "durable/s",
        "µs CPU each",
    )  # fmt: skip
    note = (
        "16 streams (the peer: 32 connections). A heartbeat counts when its acknowledgement is"
        " there, that is, after the commit with fsync. Positions of one task coalesce per flush, so"
        " the number of tasks matters when a frame holds more reports than there are tasks.\n"
    )
    return _table(head, rows) + "\n" + note


def _under_load(figures: Figures) -> str:
    one = figures.under_load
    return (
        f"Open loop at {one.per_s:,.0f} checks/s on 16 connections while"
        f" {figures.under_load_beats_per_s:,.0f} heartbeats/s in frames of 20 were made durable:"
        f" p50 {one.p50_ms:.2f} ms, p99 {one.p99_ms:.2f} ms, p99.9 {one.p999_ms:.2f} ms."
        " Latency counts from the instant a check was due.\n\n"
        f"10,000 idle agents on 1,000 streams add {figures.agents_bytes / MB:,.0f} MB"
        f" ({figures.agents_bytes / 1_000 / KB:.1f} KB a stream with ten running tasks)."
        f" A stop under load took {figures.stop_s:.2f} s.\n"
    )


def _many(figures: Figures) -> str:
    many = figures.many
    head = ("live organizations", "CPU µs of a check in the actor", "a frame of 100 durable, ms")
    rows = [
        [f"{size:,}", f"{check:.1f}", f"{flush:.1f}"]
        for size, check, flush in zip(
            many["sizes"], many["check_cpu_us"], many["flush_ms"], strict=True
        )
    ]
    by_rows = [
        [f"{count:,}", f"{flush:.1f}"]
        for count, flush in zip(many["ledger_rows"], many["flush_ms_by_rows"], strict=True)
    ]
    return (
        f"A live organization without tasks takes {many['bytes_each'] / KB:.1f} KB."
        f" {many['activated_per_s']:,.0f} cold organizations a second were read and answered."
        f" A full garbage collection with {many['organizations']:,} in memory takes"
        f" {many['full_collection_ms']:.0f} ms; the service freezes what it starts with and"
        " collects rarely.\n\n"
        + _table(head, rows)
        + "\n"
        + _table(("ledger rows", "a frame of 100 durable, ms"), by_rows)
    )


def _targets(figures: Figures) -> str:
    found = figures.checks
    at_32 = {name: sample for (name, count), sample in found.items() if count == 32}  # the target's
    rows = []

    def judge(what: str, target: str, value: str, *, is_met: bool) -> None:
        rows.append([what, target, value, "met" if is_met else "**not met**"])

    for peer, least in ((REDIS, 10), (POSTGRES, 20)):
        if peer in at_32:
            times = at_32[METERD].per_s / at_32[peer].per_s
            cpu = at_32[peer].cpu_us / at_32[METERD].cpu_us
            value = f"{times:.1f}× ({cpu:.1f}× by CPU)"
            judge(f"checks/s at 32, against {peer}", f"≥ {least}×", value, is_met=times >= least)
    if HELLO in at_32:
        times = at_32[HELLO].per_s / at_32[METERD].per_s
        judge("bare uvicorn against meterd", "≤ 2×", f"{times:.2f}×", is_met=times <= 2)
    p99 = figures.under_load.p99_ms
    judge("p99 of checks under heartbeats", "< 5 ms", f"{p99:.2f} ms", is_met=p99 < 5)
    p99 = found[METERD, 256].p99_ms
    judge("p99 of checks at 256 connections", "< 50 ms", f"{p99:.1f} ms", is_met=p99 < 50)
    best = {beats: 0.0 for beats, _, _ in figures.beats}
    for (beats, _, _), sample in figures.beats.items():
        best[beats] = max(best[beats], sample.per_s)
    for beats, least in ((100, 100_000), (1, 10_000)):
        per_s, what = best[beats], f"durable heartbeats/s, {beats} a frame"
        judge(what, f"≥ {least:,}", f"{per_s:,.0f}", is_met=per_s >= least)
    if figures.peer_beats is not None:
        times = best[100] / figures.peer_beats.per_s
        judge("the same, 100 a frame, against (b)", "≥ 20×", f"{times:.0f}×", is_met=times >= 20)
        times = best[1] / figures.peer_beats.per_s
        judge("the same, one a frame, against (b)", "≥ 20×", f"{times:.1f}×", is_met=times >= 20)
    each = figures.many["bytes_each"]
    judge("memory of a live organization", "< 3 KB", f"{each / KB:.1f} KB", is_met=each < 3 * KB)
    agents = figures.agents_bytes / MB
    judge("10,000 idle agents", "< 400 MB", f"{agents:,.0f} MB", is_met=agents < 400)
    return _table(("what", "target", "here", ""), rows)


def _plot(figures: Figures) -> str:
    """Return a bar chart of checks a second at 32 connections."""
    bars = sorted(
        ((sample.per_s, name) for (name, count), sample in figures.checks.items() if count == 32),
        reverse=True,
    )
    most, height = bars[0][0], 34
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="720" font-size="13"'
            f' height="{height * len(bars) + 44}" font-family="sans-serif">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="10" y="22" font-weight="bold">Quota checks a second, 32 connections</text>',
    ]
    for index, (per_s, name) in enumerate(bars):
        y, width = 36 + index * height, max(2, round(400 * per_s / most))
        color = "#1f6feb" if name == METERD else "#9aa4b2"
        lines += [
            f'<text x="190" y="{y + 17}" text-anchor="end">{name}</text>',
            f'<rect x="200" y="{y}" width="{width}" height="24" fill="{color}"/>',
            f'<text x="{206 + width}" y="{y + 17}">{per_s:,.0f}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
