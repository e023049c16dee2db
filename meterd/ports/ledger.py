"""Where facts become durable, and what an actor is loaded from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from meterd.core.event import EventKey, KnownEvent
from meterd.core.journal import OrganizationBatch, StoredOrganization
from meterd.core.period import Period
from meterd.core.plan import Terms
from meterd.core.task import Task
from meterd.ports.trail import DeadLetter


class LedgerStore(Protocol):
    """Where facts become durable and organizations are read back."""

    async def load(self, organization_ids: Sequence[str]) -> Mapping[str, StoredOrganization]:
        """Return the organizations that exist, in one round trip; absent ids do not exist."""
        ...

    async def flush(self, batches: Sequence[OrganizationBatch]) -> None:
        """Write the batches in one transaction, each fact once however often it is sent.

        Errors: OwnershipLostError when the owner epoch has moved on: nothing was written.
        """
        ...

    async def recall_task(self, organization_id: str, task_id: str) -> Task | None:
        """Return a task as stored, whatever its state."""
        ...

    async def recall_period(self, organization_id: str, label: str) -> tuple[Period, Terms] | None:
        """Return a closed period as stored, with the terms at its end."""
        ...

    async def recall_events(
        self, organization_id: str, keys: Sequence[EventKey]
    ) -> Sequence[KnownEvent]:
        """Return those of the events with these (source, id) that are stored."""
        ...

    async def recall_events_named(
        self, organization_id: str, event_id: str
    ) -> Sequence[KnownEvent]:
        """Return the events with this id, whatever their source: two at most."""
        ...

    async def organizations_at_work(self) -> Sequence[str]:
        """Return the organizations with running tasks: they are activated at a start."""
        ...

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Write dead letters; a letter with a known id changes nothing."""
        ...
