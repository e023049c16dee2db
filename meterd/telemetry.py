"""Which number of which part stands behind which metric: the composition root of `/metrics`.

Readers run at a scrape, on the Trio thread, and only look. What would take too long in one go (a
look at every organization in memory) is done before, with a pause after every thousand.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import attrs
import trio

from meterd.actors.cells import Decide
from meterd.actors.charges import Charges
from meterd.actors.inspection import State
from meterd.actors.organizations import Organizations
from meterd.actors.pulse import Pulse
from meterd.actors.stripe import StripeActor
from meterd.actors.supervisor import Service
from meterd.actors.tally import Tally
from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.clock import SystemClock
from meterd.adapters.postgres.pool import Lane, PostgresPools
from meterd.config import Config
from meterd.core.commands import Command, Decision, Heartbeat
from meterd.core.organization import OrganizationState
from meterd.core.overage import FINAL, ChargeState
from meterd.core.units import SECOND_MS
from meterd.errors import ConfigError
from meterd.observe import metrics as names
from meterd.observe.metrics import Metrics
from meterd.observe.spans import Spans
from meterd.web.front_door import FrontDoor
from meterd.web.readiness import Readiness


PAUSE_EVERY = 1_000
"""Organizations looked at between two checkpoints: well under a millisecond."""


class OwnerLock(Protocol):
    """Tells whether this process holds the owner lock now."""

    @property
    def is_held(self) -> bool:
        """Tell whether the lock's connection is alive."""
        ...


@attrs.define
class Census:
    """What a look at every organization in memory found."""

    phases: dict[tuple[str, ...], int] = attrs.Factory(dict)
    strikes: int = 0
    mailbox_depth: int = 0
    mailbox_peak: int = 0
    running_tasks: int = 0

    @classmethod
    async def take(cls, organizations: Organizations) -> Census:
        """Look at every organization; one that comes or goes meanwhile may be missed."""
        census = cls()
        for count, cell in enumerate(list(organizations.cells)):
            if count % PAUSE_EVERY == 0:
                await trio.lowlevel.checkpoint()
            phase = (cell.phase.value,)
            census.phases[phase] = census.phases.get(phase, 0) + 1
            census.strikes += len(cell.strikes_ms)
            census.mailbox_depth += len(cell.mailbox or ())
            census.mailbox_peak = max(census.mailbox_peak, cell.mailbox_peak)
            if cell.state is not None:
                census.running_tasks += len(cell.state.running)
        return census


@contextlib.contextmanager
def tracing(config: Config, spans: Spans | None) -> Iterator[Spans | None]:
    """Give what opens spans, None without tracing: then nothing is put around anything.

    Errors: ConfigError when traces are asked for and the extra is not installed.
    """
    if config.otlp_url is None:
        yield spans
        return
    try:
        from meterd.adapters.tracing import open_tracing  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ConfigError(
            "otlp_url is set and OpenTelemetry is not installed: pip install 'meterd[otel]'"
        ) from error
    with open_tracing(config.otlp_url) as opened:
        yield opened


def traced(decide: Decide, spans: Spans) -> Decide:
    """Return the same decisions, each in a span that tells the command and what came of it."""

    def decide_in_span(state: OrganizationState, command: Command, now_ms: int) -> Decision:
        name = f"decide {type(command).__name__}"
        with spans(name, attributes={"meterd.organization": state.organization_id}) as span:
            decision = decide(state, command, now_ms)
            span.tell("meterd.outcome", type(decision.outcome).__name__)
            return decision

    return decide_in_span


def measure_organizations(metrics: Metrics, organizations: Organizations) -> None:
    """Put the metrics of deciding, of organizations in memory and of their timers in place."""
    census = Census()

    async def look() -> None:
        nonlocal census
        census = await Census.take(organizations)

    activation, timers = organizations.cells.activation, organizations.cells.timers
    metrics.before_scrape(look)
    metrics.read(names.DECISIONS, lambda: decisions(organizations.cells.tally))
    metrics.read(names.HEARTBEATS, lambda: heartbeats(organizations.cells.tally))
    metrics.read(names.UNBILLED, lambda: organizations.cells.tally.unbilled_ms)
    metrics.read(names.CRASHES, lambda: organizations.cells.crashes)
    metrics.read(names.ACTORS, lambda: census.phases)
    metrics.read(names.STRIKES, lambda: census.strikes)
    metrics.read(names.MAILBOX_DEPTH, lambda: census.mailbox_depth)
    metrics.read(names.MAILBOX_PEAK, lambda: census.mailbox_peak)
    metrics.read(names.RUNNING_TASKS, lambda: census.running_tasks)
    metrics.read(names.LOADS, lambda: activation.loads)
    metrics.read(names.LOAD_FAILURES, lambda: activation.load_failures)
    metrics.read(names.PASSIVATED, lambda: organizations.cells.passivated)
    metrics.read(names.TIMER_LATENESS, lambda: timers.lateness)
    metrics.read(names.TIMERS_ARMED, lambda: len(timers))


def measure_ledger(metrics: Metrics, organizations: Organizations) -> None:
    """Put the metrics of durability in place."""
    ledger, clock = organizations.ledger, organizations.clock

    def failing_s() -> float:
        since_ms = ledger.failing_since_ms
        return 0.0 if since_ms is None else max(0, clock.now_ms() - since_ms) / SECOND_MS

    metrics.read(names.ACK_LATENCY, lambda: ledger.ack_latency)
    metrics.read(names.FLUSH_SECONDS, lambda: ledger.flush_duration)
    metrics.read(names.FLUSH_FACTS, lambda: ledger.flush_size)
    metrics.read(names.FLUSH_FAILURES, lambda: ledger.flush_failures)
    metrics.read(names.FACTS_REJECTED, lambda: ledger.rejected)
    metrics.read(names.UNFLUSHED, lambda: ledger.unflushed)
    metrics.read(names.OLDEST_UNFLUSHED, lambda: ledger.oldest_age_s)
    metrics.read(names.JOURNAL_FILL, lambda: ledger.fill)
    metrics.read(names.STORE_FAILING, failing_s)


def measure_stripe(metrics: Metrics, follower: StripeActor) -> None:
    """Put the metrics of what comes from Stripe in place."""
    outcomes = follower.outcomes
    metrics.read(names.STRIPE_EVENTS, lambda: {(each,): n for each, n in outcomes.items()})
    metrics.read(names.STRIPE_WAITING, lambda: follower.figures["waiting"])
    metrics.read(names.STRIPE_OLDEST, lambda: follower.oldest_waiting_ms / SECOND_MS)
    metrics.read(names.STRIPE_DEAD, lambda: follower.figures["dead"])
    metrics.read(names.STRIPE_AWAY, lambda: int(follower.is_away))


def measure_charges(metrics: Metrics, charges: Charges) -> None:
    """Put the metrics of what goes to Stripe in place."""
    waiting = [state for state in ChargeState if state not in FINAL]
    metrics.read(names.CHARGES, lambda: {(state.value,): charges.count(state) for state in waiting})
    metrics.read(names.CHARGES_OLDEST, lambda: charges.oldest_waiting_ms / SECOND_MS)
    metrics.read(names.CHARGES_AWAY, lambda: int(charges.is_away))


def measure_store(metrics: Metrics, pools: PostgresPools, owner: OwnerLock) -> None:
    """Put the metrics of connections to PostgreSQL in place."""
    metrics.read(names.STORE_CONNECTIONS, lambda: connections(pools))
    metrics.read(names.OWNER_HELD, lambda: int(owner.is_held))


def measure_process(
    metrics: Metrics,
    *,
    services: Sequence[Service],
    readiness: Readiness,
    pulse: Pulse,
    clock: SystemClock,
) -> None:
    """Put the metrics of service actors, the loop and the clock in place."""
    metrics.read(
        names.SERVICE_READY, lambda: {(each.name,): int(each.phase == "ready") for each in services}
    )
    metrics.read(names.SERVICE_RESTARTS, lambda: {(each.name,): each.restarts for each in services})
    metrics.read(names.READY, lambda: int(not readiness.missing()))
    metrics.read(names.LOOP_LATENESS, lambda: pulse.lateness)
    metrics.read(names.CLOCK_JUMP, lambda: clock.jump_ms / SECOND_MS)


def measure_door(metrics: Metrics, door: FrontDoor) -> None:
    """Put the metrics of connections in place."""
    counters = door.counters

    def ended() -> Mapping[tuple[str, ...], int]:
        return {
            ("total",): counters.refused_total,
            ("address",): counters.refused_address,
            ("malformed",): counters.malformed,
            ("crashed",): counters.crashed,
            ("timed_out",): counters.timed_out,
            ("stalled",): counters.stalled,
            ("slow_stream",): counters.streams_slow,
            ("accept_error",): counters.accept_errors,
        }

    metrics.read(
        names.CONNECTIONS,
        lambda: {("all",): counters.open_connections, ("stream",): counters.open_streams},
    )
    metrics.read(names.CONNECTIONS_ACCEPTED, lambda: counters.accepted)
    metrics.read(names.CONNECTIONS_ENDED, ended)
    metrics.read(names.STREAM_MESSAGES, lambda: counters.stream_messages)


def states(
    portal: AsyncioThread,
    pools: PostgresPools,
    owner: OwnerLock,
    pulse: Pulse,
    clock: SystemClock,
) -> Mapping[str, State]:
    """Return what operators see in the views of service actors beside the ledger's own figures."""

    def lateness() -> dict[str, Any]:
        counted = pulse.lateness
        return {
            "latest_ms": round(pulse.latest_s * SECOND_MS),
            "peak_ms": round(counted.peak * SECOND_MS),
            "mean_ms": round(counted.total * SECOND_MS / max(1, counted.count), 1),
            "clock_jump_ms": clock.jump_ms,
        }

    def store() -> dict[str, Any]:
        return {
            "lock_held": owner.is_held,
            "calls_in_flight": portal.in_flight,
            "pools": {lane.value: attrs.asdict(pools.use(lane)) for lane in Lane},
        }

    return {"pulse": lateness, "owner": store}


def decisions(tally: Tally) -> dict[tuple[str, ...], int]:
    """Return how often which command had which outcome, in words."""
    found: dict[tuple[str, ...], int] = {(_words(Heartbeat), "continue"): tally.beats}
    for (command, what), count in tally.decided.items():
        found[(_words(command), _outcome(what))] = count
    return found


def heartbeats(tally: Tally) -> int:
    """Return how many heartbeats were decided, whatever came of them."""
    return tally.beats + sum(n for (command, _), n in tally.decided.items() if command is Heartbeat)


def connections(pools: PostgresPools) -> dict[tuple[str, ...], int]:
    """Return how many connections each lane has, by what they do."""
    found: dict[tuple[str, ...], int] = {}
    for lane in Lane:
        use = pools.use(lane)
        found[(lane.value, "busy")] = use.connections - use.idle
        found[(lane.value, "idle")] = use.idle
        found[(lane.value, "limit")] = use.limit
    return found


def _outcome(what: object) -> str:
    return _words(what) if isinstance(what, type) else str(getattr(what, "value", what))


def _words(kind: type[Any]) -> str:
    """Return a class's name in snake case: StartTask → start_task."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
