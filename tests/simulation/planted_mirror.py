"""Bugs planted on the way to Redis; see `planted`."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from meterd.actors.cells import Cells
from meterd.actors.mirror import Mirror
from meterd.core import quota
from tests.simulation.planted import bug


@bug
def what_was_not_written_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Take the mark off before the writing, and leave it off when that fails."""
    encoded = Mirror._encoded

    async def once(self: Mirror, names: list[str]) -> Any:
        batch = await encoded(self, names)
        names.clear()
        return batch

    patch.setattr(Mirror, "_encoded", once)
    patch.setattr(Mirror, "_after_success", lambda _mirror, _count: None)


@bug
def an_emptied_redis_stays_empty(patch: pytest.MonkeyPatch) -> None:
    """Write changes only: who does not change is not there after a restart of Redis."""
    patch.setattr(Mirror, "_note_all", lambda _mirror: None)


@bug
def only_what_is_durable_news_is_mirrored(patch: pytest.MonkeyPatch) -> None:
    """Leave out what only time has changed."""
    commit = Cells._commit

    def quiet(self: Cells, cell: Any, state: Any, decision: Any) -> None:
        on_change, self.on_change = self.on_change, None
        try:
            commit(self, cell, state, decision)
        finally:
            self.on_change = on_change
        if decision.facts is not None and decision.facts.tasks and on_change is not None:
            on_change(cell.organization_id)

    patch.setattr(Cells, "_commit", quiet)
    patch.setattr(Mirror, "_note_all", lambda _mirror: None)


@bug
def a_quota_shows_reported_use_only(patch: pytest.MonkeyPatch) -> None:
    """Leave out what running tasks have not reported: more room than there is."""
    view = quota.view

    def optimistic(state: Any, now_ms: int, agent_id: str | None = None) -> Any:
        return attrs.evolve(view(state, now_ms, agent_id), projected_ms=state.period.used_ms)

    patch.setattr("meterd.actors.organizations.view", optimistic)
