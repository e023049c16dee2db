"""Metrics: what is declared is documented, what is counted is shown."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed

from meterd.observe.counting import Histogram
from meterd.observe.metrics import (
    ACTORS,
    COUNTER,
    CRASHES,
    GAUGE,
    HISTOGRAM,
    HTTP_REQUESTS,
    LOOP_LATENESS,
    METRICS,
    Metrics,
)


ROOT = Path(__file__).resolve().parents[3]


def documented(kind: str) -> str:
    """Return the table of one kind as the reference page has it."""
    rows = [
        f"| `{metric.name}` | {', '.join(f'`{label}`' for label in metric.labels) or '-'} "
        f"| {metric.unit} | {metric.doc} |"
        for metric in METRICS.values()
        if metric.kind == kind
    ]
    return "\n".join(["| metric | labels | unit | meaning |", "|---|---|---|---|", *rows])


@pytest.mark.parametrize("kind", [COUNTER, GAUGE, HISTOGRAM])
def test_the_reference_page_lists_every_metric(kind: str) -> None:
    """Alert rules are written from this page."""
    path = ROOT / "docs/reference/metrics.md"
    page = path.read_text(encoding="utf-8")
    table = documented(kind)
    if os.environ.get("WRITE_DOCS") == "1":
        heading = f"## {kind.title()}s\n\n"
        before, found, after = page.partition(heading)
        rest = after[after.index("\n\n") :] if "\n\n" in after else "\n"
        page = before + found + table + rest
        path.write_text(page, encoding="utf-8")

    assert table in page, "write it anew with WRITE_DOCS=1"


def test_names_follow_prometheus() -> None:
    """Counters end in _total, and no name says a unit that the values do not have."""
    for metric in METRICS.values():
        assert re.fullmatch(r"meterd_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == COUNTER)
        if "_seconds" in metric.name:
            assert metric.unit == "seconds"


def test_no_label_names_a_tenant_or_what_a_request_says() -> None:
    """One time series for each organization would be a second database."""
    allowed = {
        *("phase", "command", "outcome", "pool", "state", "actor", "kind", "reason"),
        *("method", "route", "status", "name", "result", "type"),
    }

    assert {label for metric in METRICS.values() for label in metric.labels} <= allowed


async def test_numbers_counters_and_histograms_are_shown_as_prometheus_reads_them() -> None:
    """What is scraped is parsed by Prometheus' own reader."""
    metrics = Metrics()
    lateness = Histogram((0.1, 1.0))
    lateness.observe(0.05)
    lateness.observe(0.5, times=2)
    lateness.observe(7)
    metrics.read(LOOP_LATENESS, lambda: lateness)
    metrics.read(CRASHES, lambda: 3)
    metrics.read(ACTORS, lambda: {("ready",): 2, ("loading",): 1})
    answered = metrics.tally(HTTP_REQUESTS)
    answered["GET", "/healthz", "200"] += 1
    answered["GET", "/healthz", "200"] += 1

    text, media_type = await metrics.exposition()
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parsed(text.decode())
        for sample in family.samples
    }

    assert media_type.startswith("text/plain")
    assert samples[("meterd_actor_crashes_total",)] == 3
    assert samples[("meterd_actors", ("phase", "ready"))] == 2
    labels = (("method", "GET"), ("route", "/healthz"), ("status", "200"))
    assert samples[("meterd_http_requests_total", *labels)] == 2
    buckets = [samples["meterd_loop_lateness_seconds_bucket", ("le", le)] for le in ("0.1", "1")]
    assert buckets == [1, 3]
    assert samples["meterd_loop_lateness_seconds_bucket", ("le", "+Inf")] == 4
    assert samples[("meterd_loop_lateness_seconds_sum",)] == pytest.approx(8.05)


async def test_a_scrape_that_asks_for_openmetrics_gets_it() -> None:
    """Prometheus prefers it, and says so."""
    _, media_type = await Metrics().exposition("application/openmetrics-text; version=1.0.0")

    assert media_type.startswith("application/openmetrics-text")
