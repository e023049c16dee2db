"""What the benchmark is to show, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from tests.bench.parts import HELLO, METERD, POSTGRES, REDIS


if TYPE_CHECKING:
    from tests.bench.written import Figures

MB, KB = 1024 * 1024, 1024
SPREAD_MAX = 0.15


@attrs.frozen
class Judgement:
    """One target, what was measured, and whether that is enough."""

    what: str
    target: str
    here: str
    is_met: bool


def judged(figures: Figures) -> Iterator[Judgement]:
    """Yield every target whose figures were measured."""
    yield from _checks(figures)
    yield from _heartbeats(figures)
    yield from _sizes(figures)


def best_beats(figures: Figures) -> Mapping[int, float]:
    """Return the most durable heartbeats a second by the number of reports in a frame."""
    best: dict[int, float] = {}
    for (beats, _, _), sample in figures.beats.items():
        best[beats] = max(best.get(beats, 0.0), sample.per_s)
    return best


def _checks(figures: Figures) -> Iterator[Judgement]:
    at = {key: one for key, one in figures.checks.items() if (METERD, key[1]) in figures.checks}
    for peer, least in ((REDIS, 10), (POSTGRES, 20)):
        if (peer, 32) in at:
            ours, theirs = at[METERD, 32], at[peer, 32]
            times = ours.per_s / theirs.per_s
            here = f"{times:.1f}× ({theirs.cpu_us / ours.cpu_us:.1f}× by CPU)"
            yield Judgement(f"checks/s at 32, against {peer}", f"≥ {least}×", here, times >= least)
    if (HELLO, 32) in at:
        times = at[HELLO, 32].per_s / at[METERD, 32].per_s
        yield Judgement("bare uvicorn against meterd", "≤ 2×", f"{times:.2f}×", times <= 2)
    if figures.under_load is not None:
        p99 = figures.under_load[0].p99_ms
        yield Judgement("p99 of checks under heartbeats", "< 5 ms", f"{p99:.2f} ms", p99 < 5)
    if (METERD, 256) in at:
        p99 = at[METERD, 256].p99_ms
        yield Judgement("p99 of checks at 256 connections", "< 50 ms", f"{p99:.1f} ms", p99 < 50)


def _heartbeats(figures: Figures) -> Iterator[Judgement]:
    best, peer = best_beats(figures), figures.peer_beats
    for beats, least in ((100, 100_000), (1, 10_000)):
        if beats not in best:
            continue
        per_s, what = best[beats], f"durable heartbeats/s, {beats} a frame"
        yield Judgement(what, f"≥ {least:,}", f"{per_s:,.0f}", per_s >= least)
        if peer is not None:
            times = per_s / peer.per_s
            yield Judgement(f"{what}, against {POSTGRES}", "≥ 20×", f"{times:.1f}×", times >= 20)


def _sizes(figures: Figures) -> Iterator[Judgement]:
    if (many := figures.many) is not None:
        yield _is_flat(
            "a durable frame, whatever the number of live organizations", many["flush_ms"]
        )
        each = many["bytes_each"] / KB
        yield Judgement("memory of a live organization", "< 3 KB", f"{each:.1f} KB", each < 3)
    if (ledger := figures.ledger) is not None:
        what = "whatever the number of ledger rows"
        yield _is_flat(f"a durable frame of heartbeats, {what}", ledger["heartbeats_ms"])
        yield _is_flat(f"a hundred durable events, {what}", ledger["events_ms"])
    if figures.agents_bytes is not None:
        size = figures.agents_bytes / MB
        what = "10,000 idle agents on 1,000 connections"
        yield Judgement(what, "< 400 MB", f"{size:,.0f} MB", size < 400)


def _is_flat(what: str, times_ms: Sequence[float]) -> Judgement:
    spread = max(times_ms) / min(times_ms) - 1
    return Judgement(what, "± 15 %", f"{spread:+.0%}", spread <= SPREAD_MAX)
