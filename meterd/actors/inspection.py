"""What an operator sees of an actor, without sending it a message.

Views are built from the outside, so they work on a stuck, loading or quarantined actor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any, Final

import attrs
import trio

from meterd.actors.cell import Cell
from meterd.actors.organizations import Organizations
from meterd.actors.supervisor import Failure, Service
from meterd.core.quota import projected_ms, quota_state
from meterd.core.units import SECOND_MS, rfc3339


SAMPLE_S: Final = 1.0
"""Seconds over which rates are measured, at least."""

SAMPLE_FRESH_S: Final = 10.0
"""An older sample tells of another time."""

SLOW_S: Final = 2
"""Seconds that a fact may wait for its commit before operators are told."""

State = Callable[[], dict[str, Any]]
"""Gives figures of a service actor; JSON values only."""


@attrs.frozen(kw_only=True)
class ActorView:
    """One actor at one instant."""

    address: str
    kind: str
    phase: str
    mailbox_depth: int = 0
    mailbox_peak: int = 0
    processed: int = 0
    strikes: int = 0
    restarts: int = 0
    last_error: str | None = None
    idle_ms: int = 0
    age_ms: int = 0
    """Since it was last read from the store."""
    rate_per_s: int = 0
    """Messages a second, between the last two samples; see `Inspector.sample`."""
    unflushed: int = 0
    is_traced: bool = False
    state: Mapping[str, Any] = attrs.Factory(dict)
    """Kind-specific figures; JSON values only."""


_SORTS: Mapping[str, Callable[[ActorView], Any]] = {
    "address": lambda actor: actor.address,
    "age": lambda actor: (-actor.age_ms, actor.address),
    "backlog": lambda actor: (-actor.mailbox_depth, -actor.unflushed, actor.address),
    "idle": lambda actor: (-actor.idle_ms, actor.address),
    "processed": lambda actor: (-actor.processed, actor.address),
    "rate": lambda actor: (-actor.rate_per_s, actor.address),
    "restarts": lambda actor: (-actor.restarts, actor.address),
    "strikes": lambda actor: (-actor.strikes, actor.address),
    "unflushed": lambda actor: (-actor.unflushed, actor.address),
}

SORTS = tuple(_SORTS)
"""Orders in which actors can be listed."""


class Inspector:
    """Looks at every actor of the process."""

    def __init__(
        self,
        organizations: Organizations,
        services: Sequence[Service],
        *,
        states: Mapping[str, State] | None = None,
    ) -> None:
        """Take what else is known of service actors' states, by actor."""
        self._organizations = organizations
        self._services = services
        self._states = dict(states or {})
        self._sampled_s = -inf
        self._processed: dict[str, int] = {}
        self._rates: dict[str, int] = {}

    def actors(
        self, *, kind: str | None = None, sort: str = "address", limit: int = 100
    ) -> list[ActorView]:
        """Return views of the actors of a kind (`organization`, `service`; None: all), sorted."""
        views: list[ActorView] = []
        if kind in (None, "service"):
            views.extend(map(self._service, self._services))
        if kind in (None, "organization"):
            views.extend(map(self._organization, self._organizations.cells))
        return sorted(views, key=_SORTS[sort])[:limit]

    async def sample(self) -> None:
        """Measure how many messages a second each organization gets.

        Compares with the last sample when that is fresh, else takes one and waits a second.
        """
        if trio.current_time() - self._sampled_s > SAMPLE_FRESH_S:
            self._take_sample()
            await trio.sleep(SAMPLE_S)
        elapsed_s = trio.current_time() - self._sampled_s
        if elapsed_s >= SAMPLE_S:
            before = self._processed
            self._take_sample()
            self._rates = {
                key: rate
                for key, now in self._processed.items()
                if (rate := round((now - before.get(key, 0)) / elapsed_s)) > 0
            }

    def _take_sample(self) -> None:
        self._sampled_s = trio.current_time()
        self._processed = {
            cell.organization_id: cell.processed for cell in self._organizations.cells
        }

    def service(self, name: str) -> Service | None:
        """Return a service actor by its name."""
        return next((each for each in self._services if each.name == name), None)

    def crashes(self, limit: int) -> list[Failure]:
        """Return the latest crashes of all actors, newest first, from memory."""
        letters = [
            Failure(
                at_ms=letter.at_ms,
                address=letter.address,
                error=letter.error,
                where=json.loads(letter.detail_json).get("where", ""),
            )
            for letter in self._organizations.cells.dead_letters
        ]
        failures = [failure for each in self._services for failure in each.failures]
        found = sorted((*letters, *failures), key=lambda each: each.at_ms, reverse=True)
        return found[:limit]

    def actor(self, address: str) -> ActorView | None:
        """Return one actor by its address, `organization/<id>` or `service/<name>`."""
        kind, _, name = address.partition("/")
        if kind == "organization":
            cell = self._organizations.cells.get(name)
            return None if cell is None else self._organization(cell)
        named = [service for service in self._services if service.name == name]
        return self._service(named[0]) if kind == "service" and named else None

    def _organization(self, cell: Cell) -> ActorView:
        organizations = self._organizations
        now_ms = organizations.clock.now_ms()
        return ActorView(
            address=f"organization/{cell.organization_id}",
            kind="organization",
            phase=cell.phase.value,
            mailbox_depth=len(cell.mailbox or ()),
            mailbox_peak=cell.mailbox_peak,
            processed=cell.processed,
            strikes=len(cell.strikes_ms),
            restarts=cell.restarts,
            last_error=cell.last_error,
            idle_ms=max(0, now_ms - cell.touched_ms),
            age_ms=max(0, now_ms - cell.loaded_ms) if cell.loaded_ms else 0,
            rate_per_s=self._rates.get(cell.organization_id, 0),
            is_traced=cell.trace is not None,
            unflushed=organizations.ledger.waiting(cell.organization_id),
            state=self._organization_state(cell),
        )

    def _organization_state(self, cell: Cell) -> dict[str, Any]:
        state = cell.state
        if state is None:
            return {}
        now_ms = self._organizations.clock.now_ms()
        return {
            "plan": state.terms.plan.value,
            "quota_state": quota_state(state, now_ms).value,
            "billing_period": state.period.label,
            "used_ms": state.period.used_ms,
            "recorded_ms": state.period.recorded_ms,
            "projected_ms": projected_ms(state, now_ms),
            "running_tasks": len(state.running),
            "active_agents": len(state.agents),
            "terms_seq": state.terms.seq,
            "seq": state.seq,
            "timer_at": None if cell.timer_ms is None else rfc3339(cell.timer_ms),
        }

    def _service(self, service: Service) -> ActorView:
        ledger = self._organizations.ledger
        is_ledger = service.name == "ledger"
        state = self._service_state(service.name)
        return ActorView(
            address=f"service/{service.name}",
            kind="service",
            phase=service.phase,
            strikes=service.strikes,
            restarts=service.restarts,
            last_error=service.last_error or state.pop("trouble", None),
            mailbox_depth=ledger.unflushed if is_ledger else state.get("waiting", 0),
            mailbox_peak=ledger.unflushed_peak if is_ledger else 0,
            processed=ledger.flushes if is_ledger else 0,
            unflushed=ledger.unflushed if is_ledger else 0,
            state=state,
        )

    def _ledger_trouble(self) -> str | None:
        """Tell what keeps facts from being committed; a frozen server raises nothing for long."""
        ledger = self._organizations.ledger
        if ledger.failing_since_ms is not None:
            return ledger.last_error
        waited_s = int(ledger.oldest_age_s)
        return f"PostgreSQL has not answered for {waited_s} s" if waited_s >= SLOW_S else None

    def _service_state(self, name: str) -> dict[str, Any]:
        organizations = self._organizations
        ledger, activation, timers = (
            organizations.ledger,
            organizations.cells.activation,
            organizations.cells.timers,
        )
        figures: dict[str, dict[str, Any]] = {
            "ledger": {
                "unflushed": ledger.unflushed,
                "unflushed_peak": ledger.unflushed_peak,
                "journal_fill_percent": round(ledger.fill * 100),
                "oldest_unflushed_ms": round(ledger.oldest_age_s * SECOND_MS),
                "breaker": "closed" if ledger.failing_since_ms is None else "open",
                "rejected": ledger.rejected,
                "flushes": ledger.flushes,
                "flush_failures": ledger.flush_failures,
                "failing_since": (
                    None if ledger.failing_since_ms is None else rfc3339(ledger.failing_since_ms)
                ),
                "last_error": ledger.last_error,
                "trouble": self._ledger_trouble(),
            },
            "activation": {
                "loads": activation.loads,
                "load_failures": activation.load_failures,
            },
            "timers": {"armed": len(timers), "lateness_peak_ms": timers.lateness_peak_ms},
        }
        more = self._states.get(name)
        return figures.get(name, {}) | ({} if more is None else more())
