"""Is this process able to do its work? What `/readyz` says, from what actors know of themselves.

Nothing is asked of the database for it: the ledger knows when its writes fail, the owner service
fails when the lock is lost, and a probe must not add load to a system in trouble.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from meterd.actors.organizations import Organizations
from meterd.actors.supervisor import Service
from meterd.ports.clock import Clock


STORE_FAILING_MS: Final = 2_000
"""A store that fails for longer than this makes meterd unready; shorter is a restart of it."""


class Readiness:
    """Collects what keeps meterd from being ready."""

    def __init__(
        self, organizations: Organizations, services: Sequence[Service], *, clock: Clock
    ) -> None:
        self._organizations = organizations
        self._services = services
        self._clock = clock
        self.is_accepting = False
        """Set once requests are served, cleared when a stop begins."""

    def missing(self, *, unread_since_ms: int | None = None) -> list[str]:
        """Return the names of what is missing, empty when meterd is ready.

        `unread_since_ms` is since when reading from the store fails: an idle meterd writes nothing.
        """
        ledger = self._organizations.ledger
        missing = []
        if not self.is_accepting:
            missing.append("accepting")
        before_ms = self._clock.now_ms() - STORE_FAILING_MS
        failing = (ledger.failing_since_ms, unread_since_ms)
        if any(since_ms is not None and since_ms <= before_ms for since_ms in failing):
            missing.append("store")
        if ledger.is_full:
            missing.append("backlog")
        missing += [service.name for service in self._services if service.phase != "ready"]
        return missing
