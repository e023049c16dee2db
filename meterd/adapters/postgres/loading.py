"""Reading back: whole organizations for their actors, single tasks and periods for look-ups.

Rule 1: an organization is read in one statement, so from one snapshot: never a position without
the rows that were written with it.
Rule 2: as many organizations as are asked for come in one round trip; unknown ids are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from meterd.adapters.postgres import records
from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.statements import statements
from meterd.core.event import EventKey, KnownEvent
from meterd.core.journal import StoredOrganization
from meterd.core.period import Period
from meterd.core.plan import Terms
from meterd.core.task import LOST_KEPT_MAX, LOST_REPORTS_MS, Task
from meterd.core.units import to_datetime
from meterd.errors import StoreRejectedError
from meterd.ports.clock import Clock


NONSENSE: Final = (ArithmeticError, AssertionError, LookupError, TypeError, ValueError)
"""What turning stored values into ours raises when somebody has tampered with them."""

ERROR_CHARACTERS_MAX: Final = 200


@attrs.define(eq=False, slots=False)
class LedgerReader:
    """The reading half of `LedgerStore`."""

    pools: PostgresPools
    clock: Clock

    async def load(self, organization_ids: Sequence[str]) -> Mapping[str, StoredOrganization]:
        """Return the organizations that exist.

        Units:  any number of ids; 10,000 take about a second.
        Errors: StoreUnavailableError; StoreRejectedError when one is stored incompletely.
        Source: queries/load.sql.
        """
        lost_after = to_datetime(self.clock.now_ms() - LOST_REPORTS_MS)
        arguments = (list(organization_ids), lost_after, LOST_KEPT_MAX)

        async def work(connection: Connection) -> list[Any]:
            text = statements("load")["load"]
            return list(await connection.fetch(text, *arguments))

        found = await self.pools.read("load organizations", work)
        return {record["id"]: _readable(record) for record in found}

    async def recall_task(self, organization_id: str, task_id: str) -> Task | None:
        """Return a task as stored. Errors: StoreUnavailableError. Source: queries/load.sql."""

        async def work(connection: Connection) -> Any:
            text = statements("load")["recall_task"]
            return await connection.fetchrow(text, organization_id, task_id)

        record = await self.pools.read("recall a task", work)
        return None if record is None else records.task_from(record)

    async def recall_period(self, organization_id: str, label: str) -> tuple[Period, Terms] | None:
        """Return a closed period and its terms. Errors, source: as `recall_task`."""

        async def work(connection: Connection) -> Any:
            text = statements("load")["recall_period"]
            return await connection.fetchrow(text, organization_id, label)

        record = await self.pools.read("recall a period", work)
        if record is None:
            return None
        return records.period_from(record["period"]), records.terms_from(record["terms"])

    async def recall_events(
        self, organization_id: str, keys: Sequence[EventKey]
    ) -> Sequence[KnownEvent]:
        """Return those of these events that are stored. Errors as `recall_task`.

        Units:  1,000 keys take a few milliseconds. Source: queries/events.sql.
        """
        sources, ids = [key[0] for key in keys], [key[1] for key in keys]

        async def work(connection: Connection) -> list[Any]:
            text = statements("events")["recall_events"]
            return list(await connection.fetch(text, organization_id, sources, ids))

        found = await self.pools.read("recall events", work)
        return [records.known_event_from(record) for record in found]

    async def recall_events_named(
        self, organization_id: str, event_id: str
    ) -> Sequence[KnownEvent]:
        """Return two at most of the events with this id. Errors, source: as `recall_events`."""

        async def work(connection: Connection) -> list[Any]:
            text = statements("events")["recall_events_named"]
            return list(await connection.fetch(text, organization_id, event_id))

        found = await self.pools.read("recall an event", work)
        return [records.known_event_from(record) for record in found]

    async def organizations_at_work(self) -> Sequence[str]:
        """Return the ids of organizations with running tasks. Errors, source: as `recall_task`."""

        async def work(connection: Connection) -> list[str]:
            found = await connection.fetch(statements("load")["at_work"])
            return [record["organization_id"] for record in found]

        return await self.pools.read("find organizations at work", work)


def _readable(record: Mapping[str, Any]) -> StoredOrganization:
    """Return an organization; what makes no sense is refused, so that it costs nobody else."""
    try:
        return _organization(record)
    except NONSENSE as error:
        said = f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS_MAX]
        raise StoreRejectedError(
            "load an organization", f"what is stored of {record['id']} makes no sense: {said}"
        ) from error


def _organization(record: Mapping[str, Any]) -> StoredOrganization:
    terms, *earlier = [records.terms_from(entry) for entry in record["terms"]]
    periods = [records.period_from(entry) for entry in record["periods"]]
    if not periods or periods[0].closed:
        raise StoreRejectedError("load an organization", f"{record['id']} has no open period")
    named = {period.terms_seq for period in periods[1:]}
    return StoredOrganization(
        organization_id=record["id"],
        seq=record["seq"],
        profile=records.profile_from(record),
        terms=terms,
        earlier_terms=tuple(entry for entry in earlier if entry.seq in named),
        period=periods[0],
        closed_periods=tuple(periods[1:]),
        tasks=tuple(records.task_from(entry) for entry in record["tasks"]),
    )
