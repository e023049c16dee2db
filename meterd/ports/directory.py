"""Organizations and tasks as stored: how they are made, listed and looked up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from meterd.core.organization import Profile
from meterd.core.period import Period
from meterd.core.plan import Terms
from meterd.core.task import Task, TaskState


@attrs.frozen(kw_only=True)
class NewOrganization:
    """What is written when an organization is created: its first terms and period."""

    organization_id: str
    profile: Profile
    terms: Terms
    period: Period
    created_by: str
    reason: str


@attrs.frozen(kw_only=True)
class OrganizationSummary:
    """One line of the list of organizations, as stored."""

    organization_id: str
    profile: Profile
    terms: Terms


class Directory(Protocol):
    """Organizations and tasks as stored: creation, lists and look-ups."""

    async def create_organization(self, new: NewOrganization) -> bool:
        """Create it with its audit entry; False when the id is taken.

        Errors: CustomerTakenError when another organization has the Stripe customer.
        """
        ...

    async def claim_customer(self, organization_id: str, customer_id: str | None) -> None:
        """Link a Stripe customer before the actor hears of it; CustomerTakenError if taken."""
        ...

    async def organizations(
        self, *, after: str | None, limit: int
    ) -> Sequence[OrganizationSummary]:
        """Return organizations ordered by id, after the given one."""
        ...

    async def tasks(
        self,
        organization_id: str,
        *,
        state: TaskState | None,
        after: tuple[int, str] | None,
        limit: int,
    ) -> Sequence[Task]:
        """Return tasks, newest start first; `after` is the (started_at_ms, task_id) seen last."""
        ...
