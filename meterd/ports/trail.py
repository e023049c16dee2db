"""What was done and what went wrong, as stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs


@attrs.frozen(kw_only=True)
class DeadLetter:
    """A message or a batch of facts that made its actor or the store fail."""

    id: str
    at_ms: int
    address: str
    kind: str
    """`message` or `facts`."""
    error: str
    detail_json: str = "{}"


@attrs.frozen(kw_only=True)
class AuditRecord:
    """An entry of the audit log: who changed what, why, from what to what."""

    id: str
    at_ms: int
    actor: str
    """The id of the key that asked, or the program."""
    action: str
    organization_id: str | None = None
    reason: str = ""
    before_json: str = "{}"
    after_json: str = "{}"


class Trail(Protocol):
    """What was done and what went wrong, as operators read it; nothing of it ever changes."""

    async def note(self, record: AuditRecord) -> None:
        """Write that something is about to be changed; a known id changes nothing."""
        ...

    async def audit(
        self,
        *,
        organization_id: str | None,
        action: str | None,
        after: tuple[int, str] | None,
        limit: int,
    ) -> Sequence[AuditRecord]:
        """Return entries, newest first; `after` is the (at_ms, id) seen last."""
        ...

    async def dead_letters(
        self, *, address: str | None, after: tuple[int, str] | None, limit: int
    ) -> Sequence[DeadLetter]:
        """Return dead letters, newest first; `after` is the (at_ms, id) seen last."""
        ...
