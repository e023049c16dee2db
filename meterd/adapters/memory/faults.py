"""A store that fails on demand, in front of any other: what a network does to PostgreSQL.

A fault is drawn for each call by the function given, so one seed decides a whole run. Failing
*after* the work is the interesting one: the caller must treat it as unknown and repeat.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import attrs
import trio

from meterd.core.journal import OrganizationBatch, StoredOrganization
from meterd.core.period import Period
from meterd.core.plan import Terms
from meterd.core.task import Task
from meterd.errors import StoreUnavailableError
from meterd.ports.ledger import LedgerStore
from meterd.ports.trail import DeadLetter


T = TypeVar("T")


class Fault(enum.Enum):
    """What goes wrong with one call."""

    NONE = "none"
    BEFORE = "before"
    """It fails without having done anything."""
    AFTER = "after"
    """It does its work and fails all the same: the reply is lost."""
    STALL = "stall"
    """It does its work, but the answer takes `stall_s`; a cancel comes after the work."""
    GONE = "gone"
    """The caller has crashed: nothing happens, and no answer comes, ever."""


@attrs.define(eq=False)
class FaultyLedger:
    """`LedgerStore` in front of another one; `draw(action)` is asked before each call."""

    store: LedgerStore
    draw: Callable[[str], Fault]
    stall_s: float = 60.0
    """Seconds of Trio time; longer than any time-out of a caller by default."""

    async def load(self, organization_ids: Sequence[str]) -> Mapping[str, StoredOrganization]:
        """As the store behind, or StoreUnavailableError."""
        return await self._call("load", lambda: self.store.load(organization_ids))

    async def flush(self, batches: Sequence[OrganizationBatch]) -> None:
        """As the store behind, or StoreUnavailableError."""
        await self._call("flush", lambda: self.store.flush(batches))

    async def recall_task(self, organization_id: str, task_id: str) -> Task | None:
        """As the store behind, or StoreUnavailableError."""
        return await self._call(
            "recall_task", lambda: self.store.recall_task(organization_id, task_id)
        )

    async def recall_period(self, organization_id: str, label: str) -> tuple[Period, Terms] | None:
        """As the store behind, or StoreUnavailableError."""
        return await self._call(
            "recall_period", lambda: self.store.recall_period(organization_id, label)
        )

    async def organizations_at_work(self) -> Sequence[str]:
        """As the store behind, or StoreUnavailableError."""
        return await self._call("organizations_at_work", self.store.organizations_at_work)

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """As the store behind, or StoreUnavailableError."""
        await self._call("bury", lambda: self.store.bury(letters))

    async def _call(self, action: str, work: Callable[[], Awaitable[T]]) -> T:
        match self.draw(action):
            case Fault.NONE:
                return await work()
            case Fault.BEFORE:
                await trio.lowlevel.checkpoint()
                raise StoreUnavailableError(action, "failed before the work")
            case Fault.AFTER:
                await work()
                raise StoreUnavailableError(action, "failed after the work")
            case Fault.STALL:
                found = await work()
                await trio.sleep(self.stall_s)
                return found
            case Fault.GONE:
                return await trio.sleep_forever()
