"""`People`: what is held of a person, and what is left when the person is taken out."""

from __future__ import annotations

import attrs
import pytest

from meterd.adapters.memory.people import MemoryPeople
from meterd.adapters.memory.store import MemoryStore
from meterd.adapters.postgres.people import PostgresPeople
from meterd.ports.people import SIGNED_IN, People
from tests.contract.conftest import Store
from tests.make import make_batch, make_key, make_new, make_row, make_task


@pytest.fixture
def people(store: Store) -> People:
    """Give the store of people's data beside the store."""
    if isinstance(store, MemoryStore):
        return MemoryPeople(store.database)
    return PostgresPeople(store.pools)


async def test_a_person_is_held_erased_and_then_a_pseudonym(store: Store, people: People) -> None:
    """Everything under the name is found, everything is renamed, and nothing of others is."""
    await store.create_organization(make_new())
    await store.create_organization(make_new("org_2"))
    jane, joe = make_task("t1"), make_task("t2")
    jane = attrs.evolve(
        jane, info=attrs.evolve(jane.info, user_id="jane", metadata_json='{"n": 1}')
    )
    joe = attrs.evolve(joe, info=attrs.evolve(joe.info, user_id="joe"))
    row = attrs.evolve(make_row(), user_id="jane", metadata_json='{"n": 2}')
    await store.flush([make_batch(started=(jane, joe), rows=(row,))])
    key = attrs.evolve(make_key(), created_by=SIGNED_IN + "jane")
    await store.add_key(key, b"digest")

    before = await people.held("org_1", "jane")
    elsewhere = await people.held("org_2", "jane")
    done = await people.erase("org_1", "jane", "erased_1")
    after = await people.held("org_1", "jane")
    renamed = await people.held("org_1", "erased_1")
    others = await people.held("org_1", "joe")

    assert [each["task_id"] for each in before["tasks"]] == ["t1"]
    assert [each["metadata"] for each in before["records"]] == [{"n": 2}]
    assert [each["id"] for each in before["keys"]] == [key.id]
    assert done == (1, 1)
    for nothing in (after, elsewhere):
        assert {name: list(found) for name, found in nothing.items()} == {
            "tasks": [],
            "records": [],
            "keys": [],
            "endpoints": [],
        }
    assert [each["metadata"] for each in renamed["tasks"]] == [{}]
    assert [each["quantity_ms"] for each in renamed["records"]] == [row.quantity_ms]
    assert [each["id"] for each in renamed["keys"]] == [key.id]
    assert [each["task_id"] for each in others["tasks"]] == ["t2"]
    [stored] = await store.keys_of("org_1", after=None, limit=9)
    assert stored.created_by == SIGNED_IN + "erased_1"
    assert (await people.erase("org_1", "jane", "erased_2")) == (0, 0)
