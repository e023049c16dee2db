"""The report: figures into Markdown; the plots are in `plots`."""

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
from tests.bench.parts import CONNECTIONS, METERD, POSTGRES, Sizes
from tests.bench.plots import bars
from tests.bench.targets import best_beats, judged


MB, KB = 1024 * 1024, 1024
NOT_MEASURED = "Not measured; see above.\n"


@attrs.frozen(kw_only=True)
class Figures:
    """Everything one run measured."""

    load_before: float
    missing: Mapping[str, str]
    """What could not be measured, and why."""
    sizes: Sizes
    checks: Mapping[tuple[str, int], Sample]
    many_checks: Sample | None
    peer_beats: Sample | None
    beats: Mapping[tuple[int, int, int], Sample]
    under_load: tuple[Sample, float] | None
    """Checks, and the heartbeats a second that became durable meanwhile."""
    agents_bytes: float | None
    connections_bytes: float | None
    stop_s: float | None
    live: Sequence[Mapping[str, Any]]
    usage: Mapping[str, Any]
    many: Mapping[str, Any] | None
    ledger: Mapping[str, Any] | None


def write(figures: Figures, directory: Path, command: str, took_s: int) -> Path:
    """Write report and plot, named by the day; return the report's path."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"benchmark-{datetime.now(tz=UTC).date().isoformat()}"
    plots = {"checks": _checks_plot(figures), "heartbeats": _beats_plot(figures)}
    for what, plot in plots.items():
        (directory / f"{name}-{what}.svg").write_text(plot, encoding="utf-8")
    parts = [
        f"# Benchmark of {datetime.now(tz=UTC).date().isoformat()}\n",
        _machine(figures, command, took_s),
        "## Against the targets\n",
        _targets(figures),
        "## Quota checks, closed loop\n",
        f"![Quota checks a second at 32 connections]({name}-checks.svg)\n",
        _checks(figures),
        "## Durable heartbeats\n",
        f"![Durable heartbeats a second]({name}-heartbeats.svg)\n",
        _beats(figures),
        "## Checks while heartbeats are made durable\n",
        _under_load(figures),
        "## Agents that only wait, and a stop\n",
        _idle(figures),
        "## Many organizations\n",
        _many(figures),
        "## A long ledger\n",
        _ledger(figures),
        "## The usage API on a long ledger\n",
        _usage(figures),
        "## The live feed\n",
        _live(figures),
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
        for count in CONNECTIONS
        for name in names
        if (sample := figures.checks.get((name, count))) is not None
    ]
    head = ("server", "connections", "checks/s", "µs CPU each", "p50 / p99 / p99.9 ms")
    note = (
        "The peers know one organization and answer with four fields; meterd answers with plan,"
        " period, limits, agents, headers and a request id. The Quart-Trio server only sends a"
        " constant. CPU is the web server's own process; Redis and PostgreSQL come on top.\n"
    )
    if (many := figures.many_checks) is not None:
        note += (
            "\nEach of 256 connections asking for an organization of its own:"
            f" {many.per_s:,.0f} checks/s, {many.cpu_us:,.0f} µs CPU each, p50 / p99 / p99.9"
            f" {many.p50_ms:.2f} / {many.p99_ms:.2f} / {many.p999_ms:.2f} ms.\n"
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
    if figures.under_load is None:
        return NOT_MEASURED
    one, beats_per_s = figures.under_load
    return (
        f"Open loop at {one.per_s:,.0f} checks/s on 16 connections while"
        f" {beats_per_s:,.0f} heartbeats/s in frames of 20 were made durable:"
        f" p50 {one.p50_ms:.2f} ms, p99 {one.p99_ms:.2f} ms, p99.9 {one.p999_ms:.2f} ms."
        " Latency counts from the instant a check was due.\n"
    )


def _idle(figures: Figures) -> str:
    rows = []
    for count, tasks, size in (
        (1_000, 10, figures.agents_bytes),
        (figures.sizes.connections, 1, figures.connections_bytes),
    ):
        if size is not None:
            rows.append(
                [f"{count:,}", f"{tasks}", f"{size / MB:,.0f} MB", f"{size / count / KB:.1f} KB"]
            )
    head = ("streams", "running tasks each", "the service grows by", "a stream with its tasks")
    told = _table(head, rows)
    if figures.stop_s is not None:
        told += f"\nA stop under load, everything accepted flushed, took {figures.stop_s:.2f} s.\n"
    return told


def _usage(figures: Figures) -> str:
    if not figures.usage:
        return NOT_MEASURED
    rows = [
        [f"`{what}`", f"{one['p50_ms']:.1f}", f"{one['p95_ms']:.1f}"]
        for what, one in figures.usage["routes"].items()
    ]
    return (
        f"One organization with {figures.usage['rows']:,} ledger rows in twelve months, while"
        " 20 agents report and send events; one reader.\n\n"
        + _table(("request", "p50 ms", "p95 ms"), rows)
    )


def _live(figures: Figures) -> str:
    if not figures.live:
        return NOT_MEASURED
    rows = [
        [
            f"{one['viewers']:,}",
            f"{one['cpu_percent']:.1f} %",
            f"{one['frames_per_s']:.2f}",
            f"{one['frame_bytes']:,}",
        ]
        for one in figures.live
    ]
    head = ("viewers", "CPU of one core", "frames a second each", "bytes a frame")
    return "Viewers of one organization whose figures change every second.\n\n" + _table(head, rows)


def _many(figures: Figures) -> str:
    many = figures.many
    if many is None:
        return NOT_MEASURED
    head = ("live organizations", "CPU µs of a check in the actor", "a frame of 100 durable, ms")
    rows = [
        [f"{size:,}", f"{check:.1f}", f"{flush:.1f}"]
        for size, check, flush in zip(
            many["sizes"], many["check_cpu_us"], many["flush_ms"], strict=True
        )
    ]
    return (
        f"A live organization without tasks takes {many['bytes_each'] / KB:.1f} KB, 100,000 of"
        f" them {many['bytes_each'] * 100_000 / MB:,.0f} MB."
        f" {many['activated_per_s']:,.0f} cold organizations a second were read and answered."
        f" A full garbage collection with {many['organizations']:,} in memory takes"
        f" {many['full_collection_ms']:.0f} ms; the service freezes what it starts with and"
        " collects rarely.\n\n" + _table(head, rows)
    )


def _ledger(figures: Figures) -> str:
    ledger = figures.ledger
    if ledger is None:
        return NOT_MEASURED
    rows = [
        [f"{count:,}", f"{beats:.1f}", f"{events:.1f}"]
        for count, beats, events in zip(
            ledger["rows"], ledger["heartbeats_ms"], ledger["events_ms"], strict=True
        )
    ]
    head = ("ledger rows", "a frame of 100 heartbeats durable, ms", "100 events durable, ms")
    return (
        "A server of its own for each length, a frame of each in turn. Events are looked up by id"
        " and add a row each.\n\n" + _table(head, rows)
    )


def _targets(figures: Figures) -> str:
    rows = [
        [one.what, one.target, one.here, "met" if one.is_met else "**not met**"]
        for one in judged(figures)
    ]
    return _table(("what", "target", "here", ""), rows)


def _checks_plot(figures: Figures) -> str:
    at_32 = {name: one.per_s for (name, count), one in figures.checks.items() if count == 32}
    return bars("Quota checks a second, 32 connections", at_32, highlighted=[METERD])


def _beats_plot(figures: Figures) -> str:
    of_meterd = {f"meterd, {beats} a frame": n for beats, n in best_beats(figures).items()}
    peer = {} if figures.peer_beats is None else {POSTGRES: figures.peer_beats.per_s}
    return bars("Durable heartbeats a second", of_meterd | peer, highlighted=of_meterd)
