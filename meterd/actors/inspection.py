"""What an operator sees of an actor, without sending it a message.

Views are built from the outside, so they work on a stuck, loading or quarantined actor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from meterd.actors.cell import Cell
from meterd.actors.organizations import Organizations
from meterd.actors.supervisor import Service
from meterd.core.quota import projected_ms, quota_state
from meterd.core.units import rfc3339


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
    unflushed: int = 0
    state: Mapping[str, Any] = attrs.Factory(dict)
    """Kind-specific figures; JSON values only."""


_SORTS: Mapping[str, Callable[[ActorView], Any]] = {
    "address": lambda actor: actor.address,
    "backlog": lambda actor: (-actor.mailbox_depth, -actor.unflushed, actor.address),
    "idle": lambda actor: (-actor.idle_ms, actor.address),
    "processed": lambda actor: (-actor.processed, actor.address),
    "restarts": lambda actor: (-actor.restarts, actor.address),
    "strikes": lambda actor: (-actor.strikes, actor.address),
    "unflushed": lambda actor: (-actor.unflushed, actor.address),
}

SORTS = tuple(_SORTS)
"""Orders in which actors can be listed."""


class Inspector:
    """Looks at every actor of the process."""

    def __init__(self, organizations: Organizations, services: Sequence[Service]) -> None:
        self._organizations = organizations
        self._services = services

    def actors(
        self, *, kind: str | None = None, sort: str = "address", limit: int = 100
    ) -> list[ActorView]:
        """Return views of the actors of a kind (`organization`, `service`; None: all), sorted."""
        views: list[ActorView] = []
        if kind in (None, "service"):
            views.extend(map(self._service, self._services))
        if kind in (None, "organization"):
            views.extend(map(self._organization, self._organizations.cells()))
        return sorted(views, key=_SORTS[sort])[:limit]

    def actor(self, address: str) -> ActorView | None:
        """Return one actor by its address, `organization/<id>` or `service/<name>`."""
        kind, _, name = address.partition("/")
        if kind == "organization":
            cell = self._organizations.cell(name)
            return None if cell is None else self._organization(cell)
        named = [service for service in self._services if service.name == name]
        return self._service(named[0]) if kind == "service" and named else None

    def _organization(self, cell: Cell) -> ActorView:
        organizations = self._organizations
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
            idle_ms=max(0, organizations.clock.now_ms() - cell.touched_ms),
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
        return ActorView(
            address=f"service/{service.name}",
            kind="service",
            phase=service.phase,
            strikes=service.strikes,
            restarts=service.restarts,
            last_error=service.last_error,
            unflushed=self._organizations.ledger.unflushed if service.name == "ledger" else 0,
            state=self._service_state(service.name),
        )

    def _service_state(self, name: str) -> dict[str, Any]:
        organizations = self._organizations
        ledger, activation, timers = (
            organizations.ledger,
            organizations.activation,
            organizations.timers,
        )
        figures: dict[str, dict[str, Any]] = {
            "ledger": {
                "unflushed": ledger.unflushed,
                "unflushed_peak": ledger.unflushed_peak,
                "flushes": ledger.flushes,
                "flush_failures": ledger.flush_failures,
                "failing_since": (
                    None if ledger.failing_since_ms is None else rfc3339(ledger.failing_since_ms)
                ),
                "last_error": ledger.last_error,
            },
            "activation": {
                "loads": activation.loads,
                "load_failures": activation.load_failures,
            },
            "timers": {"armed": len(timers), "lateness_peak_ms": timers.lateness_peak_ms},
        }
        return figures.get(name, {})
