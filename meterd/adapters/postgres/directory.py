"""Organizations and tasks as stored: creation, lists and look-ups (`Directory`).

Lists go on where they stopped by the key they are ordered by, so pages neither skip nor repeat
what was there all the time, however much is added meanwhile.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import asyncpg
import attrs

from meterd.adapters.postgres import records
from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.statements import statements
from meterd.core.ids import fact_id
from meterd.core.organization import Hold
from meterd.core.plan import contract_fields
from meterd.core.task import Task, TaskState
from meterd.core.units import INSTANT_MS_MAX, to_datetime
from meterd.errors import CustomerTakenError
from meterd.ports.directory import NewOrganization, OrganizationSummary


CUSTOMER_CONSTRAINT = "organizations_stripe_customer_id_key"
"""The unique constraint of `organizations.stripe_customer_id`."""


@attrs.define(eq=False, slots=False)
class PostgresDirectory:
    """`Directory` on tables `organizations`, `organization_terms` and `tasks`.

    Errors: every method StoreUnavailableError, StoreRejectedError. Source: queries/directory.sql.
    """

    pools: PostgresPools

    async def create_organization(self, new: NewOrganization) -> bool:
        """Create it with its audit entry; False when the id is taken.

        Errors: CustomerTakenError when another organization has the Stripe customer.
        """
        arguments = _creation(new)

        async def work(connection: Connection) -> bool:
            text = statements("directory")["create_organization"]
            with customer_conflicts():
                return await connection.fetchval(text, *arguments) is not None

        return await self.pools.write("create an organization", work)

    async def claim_customer(self, organization_id: str, customer_id: str | None) -> None:
        """Link a Stripe customer before the actor hears of it; CustomerTakenError if taken."""

        async def work(connection: Connection) -> None:
            text = statements("directory")["claim_customer"]
            with customer_conflicts():
                await connection.execute(text, organization_id, customer_id)

        await self.pools.write("link a Stripe customer", work)

    async def organizations(
        self, *, after: str | None, limit: int
    ) -> Sequence[OrganizationSummary]:
        """Return at most `limit` organizations ordered by id, after the given one."""

        async def work(connection: Connection) -> list[Any]:
            text = statements("directory")["organizations"]
            return list(await connection.fetch(text, after or "", limit))

        found = await self.pools.read("list organizations", work)
        return [
            OrganizationSummary(
                organization_id=record["id"],
                profile=records.profile_from(record),
                terms=records.terms_from(record["terms"]),
            )
            for record in found
        ]

    async def tasks(
        self,
        organization_id: str,
        *,
        state: TaskState | None,
        after: tuple[int, str] | None,
        limit: int,
    ) -> Sequence[Task]:
        """Return at most `limit` tasks, newest start first; `after` is the last one seen."""
        started_at_ms, task_id = after or (INSTANT_MS_MAX, "")
        state_text = None if state is None else state.value

        async def work(connection: Connection) -> list[Any]:
            text = statements("directory")["tasks"]
            started_at = to_datetime(started_at_ms)
            return list(
                await connection.fetch(
                    text, organization_id, state_text, started_at, task_id, limit
                )
            )

        found = await self.pools.read_of(organization_id, "list tasks", work)
        return [records.task_from(record) for record in found]


@contextlib.contextmanager
def customer_conflicts() -> Iterator[None]:
    """Turn the violation of the one constraint that is an expected outcome into its error."""
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != CUSTOMER_CONSTRAINT:
            raise
        raise CustomerTakenError("another organization has this Stripe customer") from error


def _creation(new: NewOrganization) -> list[Any]:
    profile, terms, period = new.profile, new.terms, new.period
    key, created_at_ms = new.organization_id, new.profile.created_at_ms
    after = {
        "name": profile.name,
        "stripe_customer_id": profile.stripe_customer_id,
        "plan": terms.plan.value,
        "contract": contract_fields(terms.contract),
    }
    return [
        key,
        profile.name,
        profile.stripe_customer_id,
        Hold.OPERATOR in profile.holds,
        Hold.PAYMENT in profile.holds,
        profile.hold_reason,
        to_datetime(created_at_ms),
        *records.terms_columns(key, terms)[1:],
        records.period_id(key, period),
        period.label,
        to_datetime(period.start_ms),
        to_datetime(period.end_ms),
        terms.limits.included_minutes,
        fact_id("aud", created_at_ms, key, 0),
        new.created_by,
        new.reason,
        json.dumps(after, sort_keys=True),
    ]
