"""Every metric of meterd: its name, unit and meaning, and how it gets to Prometheus.

Rule 1: a metric exists here or nowhere; docs/reference/metrics.md is compared with this file.
Rule 2: the hot path only adds to plain numbers (`counting.py`); all else is read when scraped.
Rule 3: labels have few values, all of them ours: routes, outcomes, phases. Never an organization,
        an agent, a task or anything that a request says.

To add one: declare it below, then where the composition root wires things (`meterd/telemetry.py`)
call `metrics.read(IT, reader)`; or take `metrics.tally(IT)` and add to it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

import attrs
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family

from meterd.observe.counting import SECONDS, Histogram, Histograms, Tally


COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"


@attrs.frozen
class Metric:
    """What is measured, in which unit, and what the number means."""

    name: str
    kind: str
    unit: str
    doc: str
    labels: tuple[str, ...] = ()


METRICS: Final[dict[str, Metric]] = {}
"""Every metric by name, in the order of declaration."""


def _declared(kind: str, name: str, unit: str, doc: str, *labels: str) -> Metric:
    assert name not in METRICS, name
    METRICS[name] = Metric(name, kind, unit, doc, labels)
    return METRICS[name]


def _counter(name: str, unit: str, doc: str, *labels: str) -> Metric:
    assert name.endswith("_total"), name
    return _declared(COUNTER, name, unit, doc, *labels)


def _gauge(name: str, unit: str, doc: str, *labels: str) -> Metric:
    return _declared(GAUGE, name, unit, doc, *labels)


def _histogram(name: str, unit: str, doc: str, *labels: str) -> Metric:
    return _declared(HISTOGRAM, name, unit, doc, *labels)


# --- deciding -------------------------------------------------------------------------------------

DECISIONS = _counter(
    "meterd_decisions_total",
    "decisions",
    "Messages decided by organizations, by what was asked and what came of it; a refusal's outcome "
    "is its code.",
    *("command", "outcome"),
)
HEARTBEATS = _counter(
    "meterd_heartbeats_total", "reports", "Heartbeats that reached an organization, of any outcome."
)
UNBILLED = _counter(
    "meterd_unbilled_milliseconds_total",
    "milliseconds",
    "Agent time reported past a hard limit, which is never billed: customers' work on our account.",
)
CRASHES = _counter(
    "meterd_actor_crashes_total", "crashes", "Messages that made an organization's actor raise."
)

# --- organizations --------------------------------------------------------------------------------

ACTORS = _gauge("meterd_actors", "actors", "Organizations in memory, by phase.", "phase")
STRIKES = _gauge(
    "meterd_actor_strikes", "strikes", "Recent crashes of all organizations in memory, summed."
)
MAILBOX_DEPTH = _gauge(
    "meterd_mailbox_depth", "messages", "Messages that wait for organizations now, summed."
)
MAILBOX_PEAK = _gauge(
    "meterd_mailbox_peak",
    "messages",
    "Longest mailbox that any organization in memory ever had.",
)
RUNNING_TASKS = _gauge("meterd_running_tasks", "tasks", "Running tasks of all organizations.")
LOADS = _counter("meterd_activations_total", "organizations", "Organizations read from the store.")
LOAD_FAILURES = _counter(
    "meterd_activation_failures_total", "reads", "Failed attempts to read organizations."
)
PASSIVATED = _counter(
    "meterd_passivations_total", "organizations", "Organizations that left memory after idling."
)

# --- durability -----------------------------------------------------------------------------------

ACK_LATENCY = _histogram(
    "meterd_acknowledgement_latency_seconds",
    "seconds",
    "From a fact's decision to its commit, which is what its acknowledgement waits for. Each fact "
    "counts as the oldest of its flush.",
)
FLUSH_SECONDS = _histogram(
    "meterd_flush_duration_seconds", "seconds", "One committed transaction of the ledger."
)
FLUSH_FACTS = _histogram("meterd_flush_facts", "facts", "Facts in one committed transaction.")
FLUSH_FAILURES = _counter(
    "meterd_flush_failures_total", "flushes", "Flushes that failed; each is tried again."
)
FACTS_REJECTED = _counter(
    "meterd_facts_rejected_total",
    "facts",
    "Facts given up because PostgreSQL refused them; each loss is a dead letter.",
)
UNFLUSHED = _gauge("meterd_unflushed_facts", "facts", "Accepted facts that are not committed yet.")
OLDEST_UNFLUSHED = _gauge(
    "meterd_oldest_unflushed_seconds",
    "seconds",
    "Age of the oldest accepted fact that is not committed; 0 when none waits.",
)
JOURNAL_FILL = _gauge(
    "meterd_journal_fill_ratio",
    "ratio",
    "Share of the bounded journal in use; at 1 new work is refused with 503.",
)
STORE_FAILING = _gauge(
    "meterd_store_failing_seconds",
    "seconds",
    "For how long every flush has failed; 0 when the last one succeeded.",
)
STORE_CONNECTIONS = _gauge(
    "meterd_store_connections",
    "connections",
    "Connections to PostgreSQL, by pool (flush, read) and state (busy, idle, limit).",
    *("pool", "state"),
)
OWNER_HELD = _gauge(
    "meterd_owner_lock_held", "0 or 1", "Whether the database's owner lock is held right now."
)

# --- time -----------------------------------------------------------------------------------------

TIMER_LATENESS = _histogram(
    "meterd_timer_lateness_seconds", "seconds", "How late actors' timers were served."
)
TIMERS_ARMED = _gauge("meterd_timers_armed", "timers", "Timers set, stale ones included.")
LOOP_LATENESS = _histogram(
    "meterd_loop_lateness_seconds",
    "seconds",
    "How late a task woke up that slept for a quarter of a second: what every request waits when "
    "the loop is busy.",
)
CLOCK_JUMP = _gauge(
    "meterd_clock_jump_seconds",
    "seconds",
    "How far the system clock is from meterd's after a jump; 0 when they agree.",
)

# --- service actors -------------------------------------------------------------------------------

SERVICE_READY = _gauge(
    "meterd_service_ready", "0 or 1", "Whether a service actor works, by actor.", "actor"
)
SERVICE_RESTARTS = _counter(
    "meterd_service_restarts_total", "restarts", "Restarts of service actors.", "actor"
)
READY = _gauge("meterd_ready", "0 or 1", "What `/readyz` says.")

# --- Stripe ---------------------------------------------------------------------------------------

STRIPE_EVENTS = _counter(
    "meterd_stripe_events_total",
    "events",
    "Events of Stripe that were worked off, by what came of them; `dead` ones were given up.",
    "outcome",
)
STRIPE_WAITING = _gauge(
    "meterd_stripe_inbox_waiting", "events", "Events in the inbox that are not worked off yet."
)
STRIPE_OLDEST = _gauge(
    "meterd_stripe_inbox_oldest_seconds",
    "seconds",
    "For how long the longest waiting event has waited: alert above a few minutes.",
)
STRIPE_DEAD = _gauge(
    "meterd_stripe_inbox_dead", "events", "Events that were given up and wait for an operator."
)
STRIPE_AWAY = _gauge(
    "meterd_stripe_away", "0 or 1", "1 while Stripe does not answer and is asked seldom."
)

# --- the books ------------------------------------------------------------------------------------

WEBHOOK_ATTEMPTS = _counter(
    "meterd_webhook_attempts_total",
    "attempts",
    "Attempts to deliver a webhook, by what came of them: delivered, retried, failed (given up).",
    "outcome",
)
LIVE_VIEWERS = _gauge("meterd_live_viewers", "viewers", "Who looks at the live feed now.")
MIRROR_WRITTEN = _counter(
    "meterd_mirror_written_total", "quotas", "Quotas written to Redis, coalesced."
)
MIRROR_FAILURES = _counter(
    "meterd_mirror_failures_total", "writings", "Failed writings to Redis; each is tried again."
)
MIRROR_WAITING = _gauge(
    "meterd_mirror_waiting", "organizations", "Organizations changed since Redis was told of them."
)
MIRROR_OPEN = _gauge(
    "meterd_mirror_breaker_open", "0 or 1", "1 while Redis takes nothing and is asked seldom."
)
JOB_RUNS = _counter(
    "meterd_job_runs_total",
    "runs",
    "Runs that ended, by the job's name and outcome; a failed one has been tried five times.",
    *("name", "outcome"),
)
BOOK_DIFFERENCES = _gauge(
    "meterd_book_differences",
    "differences",
    "Differences that the last reconciliation of ledger, counters and actors found: alert above 0.",
)

CHARGES = _gauge(
    "meterd_charges",
    "charges",
    "Charges that are not final, by state; review, manual and parked ones wait for a person.",
    "state",
)
CHARGES_OLDEST = _gauge(
    "meterd_charges_oldest_seconds",
    "seconds",
    "For how long the oldest charge has been on its way to Stripe: alert above an hour.",
)
CHARGES_AWAY = _gauge(
    "meterd_charges_away", "0 or 1", "1 while Stripe takes no charges and is asked seldom."
)

# --- the front ------------------------------------------------------------------------------------

HTTP_REQUESTS = _counter(
    "meterd_http_requests_total",
    "requests",
    "Answered requests by method, route (as in the reference, not the path) and status.",
    *("method", "route", "status"),
)
HTTP_SECONDS = _histogram(
    "meterd_http_request_duration_seconds",
    "seconds",
    "Time to answer, by route; the hot path (quota check, heartbeat) is not timed.",
    "route",
)
CONNECTIONS = _gauge(
    "meterd_connections", "connections", "Open connections, by kind (all, stream).", "kind"
)
CONNECTIONS_ACCEPTED = _counter(
    "meterd_connections_accepted_total", "connections", "Connections accepted."
)
CONNECTIONS_ENDED = _counter(
    "meterd_connections_ended_total",
    "connections",
    "Connections refused or ended for a reason: total and address (over a limit), malformed, "
    "timed_out, stalled (peer does not read), crashed (our defect), slow_stream (closed 4508), "
    "accept_error.",
    "reason",
)
STREAM_MESSAGES = _counter(
    "meterd_stream_messages_total", "messages", "Messages received on agent streams."
)

Number = int | float
Reader = Callable[[], "Number | Histogram | Mapping[tuple[str, ...], Number | Histogram]"]
"""Gives a metric's value: one number, or one for each combination of labels."""


class Metrics:
    """The numbers behind the metrics, and their text for Prometheus."""

    def __init__(self) -> None:
        self._readers: dict[str, list[Reader]] = {}
        self._before: list[Callable[[], Awaitable[None]]] = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def read(self, metric: Metric, reader: Reader) -> None:
        """Ask a reader for this metric at every scrape; it must be quick and must not wait."""
        assert METRICS.get(metric.name) is metric, metric
        self._readers.setdefault(metric.name, []).append(reader)

    def tally(self, metric: Metric) -> Tally:
        """Return a counter with labels to add to: `tally["a", "b"] += 1`."""
        assert metric.kind == COUNTER, metric
        made = Tally()
        self.read(metric, lambda: made)
        return made

    def histograms(self, metric: Metric, bounds: Sequence[float] = SECONDS) -> Histograms:
        """Return histograms by labels to observe in: `histograms["a",].observe(0.5)`."""
        assert metric.kind == HISTOGRAM, metric
        made = Histograms(bounds)
        self.read(metric, lambda: made)
        return made

    def before_scrape(self, prepare: Callable[[], Awaitable[None]]) -> None:
        """Run this before every scrape: for what is too much to look at in one go."""
        self._before.append(prepare)

    async def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return everything as text, and its media type, in the format asked for."""
        for prepare in self._before:
            await prepare()
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type

    def collect(self) -> Iterator[Family]:
        """Yield every metric that has a reader; called by the registry."""
        for name, readers in self._readers.items():
            metric = METRICS[name]
            family = _family(metric)
            for reader in readers:
                value = reader()
                values = value if isinstance(value, Mapping) else {(): value}
                for labels, each in sorted(values.items()):
                    _add(family, metric, labels, each)
            yield family


def _family(metric: Metric) -> Family:
    kind: type[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]
    if metric.kind == COUNTER:
        kind = CounterMetricFamily
    else:
        kind = GaugeMetricFamily if metric.kind == GAUGE else HistogramMetricFamily
    return kind(metric.name, metric.doc, labels=metric.labels)


def _add(
    family: Family, metric: Metric, labels: tuple[str, ...], value: Number | Histogram
) -> None:
    assert len(labels) == len(metric.labels), (metric.name, labels)
    if isinstance(family, HistogramMetricFamily):
        assert isinstance(value, Histogram), metric.name
        bounds = (*(f"{bound:g}" for bound in value.bounds), "+Inf")
        buckets = list(zip(bounds, map(float, accumulate(value.counts)), strict=True))
        family.add_metric(labels, buckets, value.total)
    else:
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily), metric.name
        assert not isinstance(value, Histogram), metric.name
        family.add_metric(labels, value)
