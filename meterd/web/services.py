"""What the web needs of the rest of meterd, in one frozen bundle that the composition root fills.

The web translates: requests to messages, outcomes to answers. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from meterd.actors.keyring import KeyRing
from meterd.actors.organizations import Organizations
from meterd.core.task import Task
from meterd.ports import Clock, Directory, Ids


class TaskReader(Protocol):
    """Reads one task; the ledger store does."""

    async def recall_task(self, organization_id: str, task_id: str) -> Task | None:
        """Return a task as stored, whatever its state."""
        ...


@attrs.frozen(kw_only=True)
class WebServices:
    """Everything behind the routes."""

    organizations: Organizations
    keyring: KeyRing
    directory: Directory
    tasks: TaskReader
    clock: Clock
    ids: Ids
    readiness: Callable[[], Sequence[str]]
    """What keeps meterd from being ready, in words without secrets; empty when it is."""
    upgrade_url: str | None = None
    body_bytes_max: int = 1024 * 1024
    stream_message_bytes_max: int = 1024 * 1024
    stream_idle_ms: int = 120_000
