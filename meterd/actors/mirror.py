"""The mirror: keeps every changed quota readable outside, without ever holding anybody up.

Rule 1: a decision only notes that its organization has changed; many changes are one writing.
Rule 2: what cannot be written waits as a mark, so memory is bounded by the organizations there are.
Rule 3: after failures in a row the breaker opens and one try at a time asks whether the outside is
        back. Then everything in memory is written again: it may have lost all it had.
Rule 4: keys live longer than the pauses between refreshes, so a missing key means that meterd has
        not been heard of for that long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs
import structlog
import trio

from meterd.actors.cell import Phase
from meterd.actors.organizations import Organizations
from meterd.core.quota import QuotaView
from meterd.core.supervision import backoff_ms
from meterd.core.units import MINUTE_MS, SECOND_MS
from meterd.errors import MeterdError, PortalClosedError, SinkUnavailableError
from meterd.ports.mirror import QuotaSink


log = structlog.get_logger(__name__)

BATCH_MAX: Final = 500
"""Quotas in one round trip: encoding them takes some ten milliseconds."""

ENCODED_AT_ONCE: Final = 50
"""Quotas encoded before everybody else gets a turn."""

OPENS_AFTER: Final = 3
"""Failures in a row that open the breaker."""


@attrs.frozen(kw_only=True)
class MirrorPolicy:
    """How quotas are mirrored."""

    interval_ms: int = 250
    """Least time between two writings: changes in between are coalesced."""
    ttl_ms: int = 10 * MINUTE_MS
    refresh_ms: int = 3 * MINUTE_MS
    """How often organizations in memory are written although nothing has changed."""
    retry_min_ms: int = 500
    retry_max_ms: int = 30 * SECOND_MS


class Mirror:
    """Writes changed quotas to a sink, for ever."""

    def __init__(
        self,
        organizations: Organizations,
        sink: QuotaSink,
        *,
        encode: Callable[[QuotaView], bytes],
        jitter: Iterator[float],
        policy: MirrorPolicy | None = None,
    ) -> None:
        self._organizations = organizations
        self._sink = sink
        self._encode = encode
        self._jitter = jitter
        self._policy = policy or MirrorPolicy()
        self._changed: dict[str, None] = {}
        self._kick = trio.Event()
        self._failures_in_a_row = 0
        self._refreshed_at = trio.current_time()
        self.written = 0
        self.failures = 0
        self.last_error: str | None = None

    @property
    def is_open(self) -> bool:
        """Tell whether the breaker is open: the outside has not taken anything lately."""
        return self._failures_in_a_row >= OPENS_AFTER

    @property
    def waiting(self) -> int:
        """Return how many organizations have changed since they were last written."""
        return len(self._changed)

    @property
    def figures(self) -> dict[str, Any]:
        """Return what an operator sees."""
        return {
            "breaker": "open" if self.is_open else "closed",
            "waiting": self.waiting,
            "written": self.written,
            "failures": self.failures,
            "last_error": self.last_error,
            "trouble": self.last_error if self.is_open else None,
        }

    def note(self, organization_id: str) -> None:
        """Write this organization soon; synchronous, never waits."""
        self._changed[organization_id] = None
        self._kick.set()

    async def run(self) -> None:
        """Write what changes, for ever."""
        while True:
            pause_s = self._policy.interval_ms / SECOND_MS
            try:
                await self._write_changed()
            except (SinkUnavailableError, PortalClosedError) as error:
                pause_s = self._after_failure(error)
            self._refresh()
            await trio.sleep(pause_s)
            if not self._changed:
                self._kick = trio.Event()
                with trio.move_on_at(self._refreshed_at + self._policy.refresh_ms / SECOND_MS):
                    await self._kick.wait()

    async def _write_changed(self) -> None:
        """Write everything that is noted now, a batch at a time."""
        for _ in range(-(-len(self._changed) // BATCH_MAX)):
            names = list(self._changed)[: 1 if self.is_open else BATCH_MAX]
            for name in names:
                del self._changed[name]
            try:
                batch = await self._encoded(names)
                if batch:
                    await self._sink.put(batch, ttl_ms=self._policy.ttl_ms)
            except BaseException:
                self._changed |= dict.fromkeys(names)  # they are still to be written
                raise
            self._after_success(len(batch))

    async def _encoded(self, names: list[str]) -> list[tuple[str, bytes]]:
        found = []
        for count, name in enumerate(names):
            if count % ENCODED_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            cell = self._organizations.cells.get(name)
            if cell is None or cell.phase is not Phase.READY:
                continue  # it is noted again when it changes again
            try:
                view = self._organizations.glimpse_nowait(name)
            except MeterdError:
                continue
            if view is not None:
                found.append((name, self._encode(view)))
        return found

    def _after_success(self, count: int) -> None:
        self.written += count
        if count and self._failures_in_a_row:
            if self.is_open:
                log.info("mirror_is_back", waiting=self.waiting)
            self._failures_in_a_row = 0
            self._note_all()  # it may have been wiped meanwhile

    def _after_failure(self, error: Exception) -> float:
        """Count a failure; return the seconds to wait."""
        self.failures += 1
        self._failures_in_a_row += 1
        self.last_error = str(error)
        if self._failures_in_a_row == OPENS_AFTER:
            log.warning("mirror_unavailable", error=str(error), waiting=self.waiting)
        policy, tries = self._policy, self._failures_in_a_row
        delay_ms = backoff_ms(tries, least_ms=policy.retry_min_ms, most_ms=policy.retry_max_ms)
        return delay_ms * (0.5 + next(self._jitter)) / SECOND_MS

    def _refresh(self) -> None:
        if trio.current_time() >= self._refreshed_at + self._policy.refresh_ms / SECOND_MS:
            self._refreshed_at = trio.current_time()
            self._note_all()

    def _note_all(self) -> None:
        for cell in self._organizations.cells:
            if cell.phase is Phase.READY:
                self._changed[cell.organization_id] = None
