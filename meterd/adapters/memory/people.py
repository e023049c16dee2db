"""The twin in memory of one person's data: `People`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import trio

from meterd.adapters.memory.store import Database
from meterd.core.task import Task
from meterd.core.units import rfc3339
from meterd.core.usage import UsageRow
from meterd.ports.people import SIGNED_IN


@attrs.define(eq=False)
class MemoryPeople:
    """`People` on a `Database`."""

    database: Database

    async def held(self, organization_id: str, user_id: str) -> Mapping[str, list[dict[str, Any]]]:
        """Return everything stored under a person's id, as JSON values."""
        await trio.lowlevel.checkpoint()
        record = self.database.organizations[organization_id]
        tasks = [each for each in record.tasks.values() if each.info.user_id == user_id]
        rows = [each for each in record.rows.values() if each.user_id == user_id]
        keys = [key for key, _ in self.database.keys.values()]
        endpoints = self.database.webhooks.endpoints.values()
        return {
            "tasks": [_task(each) for each in sorted(tasks, key=lambda each: each.task_id)],
            "records": [
                _row(each) for each in sorted(rows, key=lambda each: (each.at_ms, each.id))
            ],
            "keys": [{"id": each.id} for each in _made_by(keys, organization_id, user_id)],
            "endpoints": [
                {"id": each.id} for each in _made_by(endpoints, organization_id, user_id)
            ],
        }

    async def erase(self, organization_id: str, user_id: str, pseudonym: str) -> tuple[int, int]:
        """Put a pseudonym in a person's place; return how many rows and tasks it was."""
        await trio.lowlevel.checkpoint()
        record = self.database.organizations[organization_id]
        rows = [each for each in record.rows.values() if each.user_id == user_id]
        tasks = [each for each in record.tasks.values() if each.info.user_id == user_id]
        for row in rows:
            record.rows[row.id] = attrs.evolve(row, user_id=pseudonym, metadata_json="{}")
        for task in tasks:
            info = attrs.evolve(task.info, user_id=pseudonym, metadata_json="{}")
            record.tasks[task.task_id] = attrs.evolve(task, info=info)
        keys, made = self.database.keys, SIGNED_IN + pseudonym
        for key in _made_by([key for key, _ in keys.values()], organization_id, user_id):
            keys[key.id] = (attrs.evolve(key, created_by=made), keys[key.id][1])
        endpoints = self.database.webhooks.endpoints
        for endpoint in _made_by(list(endpoints.values()), organization_id, user_id):
            endpoints[endpoint.id] = attrs.evolve(endpoint, created_by=made)
        return len(rows), len(tasks)


def _made_by(found: Iterable[Any], organization_id: str, user_id: str) -> list[Any]:
    return [
        each
        for each in found
        if (each.organization_id, each.created_by) == (organization_id, SIGNED_IN + user_id)
    ]


def _task(task: Task) -> dict[str, Any]:
    return {
        "task_id": task.task_id,
        "state": task.state.value,
        "metered_ms": task.metered_ms,
        "metadata": json.loads(task.info.metadata_json),
    }


def _row(row: UsageRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "quantity_ms": row.quantity_ms,
        "timestamp": rfc3339(row.at_ms),
        "metadata": json.loads(row.metadata_json),
    }
