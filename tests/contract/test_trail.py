"""What every trail promises: entries once, newest first, page by page; nothing of it changes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from meterd.adapters.memory.store import MemoryStore
from meterd.adapters.memory.trail import MemoryTrail
from meterd.adapters.postgres.trail import PostgresTrail
from meterd.ports.trail import AuditRecord, DeadLetter, Trail
from tests.contract.conftest import Store


AT_MS = 1_770_000_000_000


@pytest.fixture
async def trail(store: Store) -> AsyncIterator[Trail]:
    """Give the trail of the store under test."""
    if isinstance(store, MemoryStore):
        yield MemoryTrail(store.database)
    else:
        yield PostgresTrail(store.pools)


def make_record(number: int, **fields: str) -> AuditRecord:
    """Return an entry of an operator."""
    return AuditRecord(
        id=f"aud_{number}",
        at_ms=AT_MS + number,
        actor="key_1",
        action=fields.get("action", "actor.restart"),
        organization_id=fields.get("organization_id"),
        reason="because",
        before_json='{"phase": "ready"}',
    )


async def test_entries_come_back_newest_first_and_once(trail: Trail) -> None:
    """A retried write is one entry."""
    for number in (1, 2, 3, 2):
        await trail.note(make_record(number))

    first = await trail.audit(organization_id=None, action=None, after=None, limit=2)
    last = first[-1]
    rest = await trail.audit(
        organization_id=None, action=None, after=(last.at_ms, last.id), limit=2
    )

    assert [record.id for record in (*first, *rest)] == ["aud_3", "aud_2", "aud_1"]
    assert first[0] == make_record(3)


async def test_entries_are_found_by_organization_and_action(trail: Trail) -> None:
    """Who did what to this customer: the question behind most looks."""
    await trail.note(make_record(1, organization_id="org_1", action="user.erase"))
    await trail.note(make_record(2, organization_id="org_2", action="user.erase"))
    await trail.note(make_record(3, organization_id="org_1"))

    mine = await trail.audit(organization_id="org_1", action=None, after=None, limit=10)
    erased = await trail.audit(organization_id="org_1", action="user.erase", after=None, limit=10)

    assert [record.id for record in mine] == ["aud_3", "aud_1"]
    assert [record.id for record in erased] == ["aud_1"]


async def test_dead_letters_come_back_newest_first(store: Store, trail: Trail) -> None:
    """Of one actor or of all."""
    letters = [
        DeadLetter(
            id=f"dead_{number}",
            at_ms=AT_MS + number,
            address=f"organization/org_{number % 2}",
            kind="message",
            error="ValueError: no",
            detail_json='{"where": "x"}',
        )
        for number in range(4)
    ]
    await store.bury(letters)

    found = await trail.dead_letters(address=None, after=None, limit=3)
    more = await trail.dead_letters(address=None, after=(found[-1].at_ms, found[-1].id), limit=3)
    one = await trail.dead_letters(address="organization/org_1", after=None, limit=3)

    assert [*found, *more] == letters[::-1]
    assert [letter.id for letter in one] == ["dead_3", "dead_1"]
