"""Activation: organizations are read from the store in groups, when their first message arrives.

Requests that arrive together share one round trip. While the store is away they wait here and are
tried again after a back-off; that is never a strike against an organization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import structlog
import trio

from meterd.core.journal import StoredOrganization
from meterd.core.supervision import backoff_ms
from meterd.core.units import SECOND_MS
from meterd.errors import PortalClosedError, StoreRejectedError, StoreUnavailableError
from meterd.ports.ledger import LedgerStore


log = structlog.get_logger(__name__)

GROUP_MAX = 500
"""Organizations read in one round trip."""

RETRY_MIN_MS = 50
RETRY_MAX_MS = 2_000


class Activation:
    """Reads organizations for the directory, many at a time."""

    def __init__(
        self,
        store: LedgerStore,
        *,
        jitter: Iterator[float],
        on_loaded: Callable[[str, StoredOrganization | None], None],
        on_waiting: Callable[[Sequence[str], Exception], None],
        on_unreadable: Callable[[str, Exception], None],
    ) -> None:
        self._store = store
        self._jitter = jitter
        self._on_loaded = on_loaded
        self._on_waiting = on_waiting
        self._on_unreadable = on_unreadable
        self._wanted: dict[str, None] = {}
        self._kick = trio.Event()
        self._idle = trio.Event()
        self.loads = 0
        self.load_failures = 0

    def request(self, organization_id: str) -> None:
        """Read this organization soon; asking twice is asking once."""
        self._wanted.setdefault(organization_id)
        self._kick.set()

    async def settled(self) -> None:
        """Return when nothing is left to read."""
        while self._wanted:
            if self._idle.is_set():
                self._idle = trio.Event()
            await self._idle.wait()

    async def run(self) -> None:
        """Read what was asked for, for ever."""
        tries = 0
        while True:
            await self._kick.wait()
            self._kick = trio.Event()
            while self._wanted:
                group = list(self._wanted)[:GROUP_MAX]
                try:
                    await self._read(group)
                except (StoreUnavailableError, PortalClosedError) as error:
                    tries += 1
                    self.load_failures += 1
                    self._on_waiting(group, error)
                    delay_ms = backoff_ms(tries, least_ms=RETRY_MIN_MS, most_ms=RETRY_MAX_MS)
                    await trio.sleep(delay_ms * (0.5 + next(self._jitter)) / SECOND_MS)
                    continue
                tries = 0
                await trio.lowlevel.checkpoint()
            self._idle.set()

    async def _read(self, group: Sequence[str]) -> None:
        """Read a group; one organization that cannot be read does not keep the others waiting."""
        try:
            found = await self._store.load(group)
        except StoreRejectedError as error:
            if len(group) > 1:
                middle = len(group) // 2
                await self._read(group[:middle])
                await self._read(group[middle:])
                return
            self._wanted.pop(group[0], None)
            self._on_unreadable(group[0], error)
            return
        self.loads += len(group)
        for organization_id in group:
            self._wanted.pop(organization_id, None)
            self._on_loaded(organization_id, found.get(organization_id))
