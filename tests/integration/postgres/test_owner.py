"""Two owners of one real database: only one writes, and the other is told what to do."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.postgres.owner import LOCK_KEY, Ownership, holder_of, own_database
from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.store import PostgresStore
from meterd.errors import OwnedElsewhereError, OwnershipLostError
from tests.make import FixedClock, make_batch, make_new, make_stored, make_task


pytestmark = pytest.mark.slow


async def terminate_owner(pools: PostgresPools) -> Sequence[int]:
    """End the session that holds the lock, as if its host had died, and return its process."""

    async def work(connection: Connection) -> list[int]:
        found = await connection.fetch(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            " AND granted AND (classid::bigint << 32) | objid::bigint = $1"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            LOCK_KEY,
        )
        return [record["pid"] for record in found]

    return await pools.write("terminate the owner", work)


async def test_a_second_owner_waits_and_is_told_who_owns_it(
    portal: AsyncioThread, database_url: str
) -> None:
    """Two meterd on one database would both bill."""
    async with own_database(portal, database_url, owner="first:1", wait_ms=0) as first:
        with pytest.raises(OwnedElsewhereError, match=r"first:1, since .*--takeover"):
            async with own_database(portal, database_url, owner="second:2", wait_ms=300):
                pytest.fail("both own it")
        assert (await holder_of(portal, database_url)).epoch == first.epoch

    async with own_database(portal, database_url, owner="second:2", wait_ms=0) as second:
        assert second.epoch == first.epoch + 1
        assert (await holder_of(portal, database_url)).owner == "second:2"


async def test_an_owner_that_leaves_lets_the_waiting_one_in(
    portal: AsyncioThread, database_url: str
) -> None:
    """A rolling restart needs no operator."""
    epochs: list[int] = []

    async def successor() -> None:
        async with own_database(portal, database_url, owner="b", wait_ms=10_000) as second:
            epochs.append(second.epoch)

    async with (
        trio.open_nursery() as nursery,
        own_database(portal, database_url, owner="a", wait_ms=0) as first,
    ):
        epochs.append(first.epoch)
        nursery.start_soon(successor)
        await trio.sleep(0.3)
        assert epochs == [first.epoch]

    assert epochs == [first.epoch, first.epoch + 1]


async def test_takeover_fences_the_present_owner_and_makes_it_stop(
    portal: AsyncioThread, pools: PostgresPools, database_url: str
) -> None:
    """The operator's way out when the present owner hangs on another host."""
    async with own_database(portal, database_url, owner="old", wait_ms=0) as old:
        store = PostgresStore(pools, epoch=old.epoch, clock=FixedClock())
        await store.create_organization(make_new())
        await store.flush([make_batch(seq=1)])

        async with own_database(
            portal, database_url, owner="new", wait_ms=5_000, takeover=True
        ) as new:
            assert new.epoch > old.epoch
            with trio.fail_after(20), pytest.raises(OwnershipLostError, match="new has owned"):
                await old.keep()
            with pytest.raises(OwnershipLostError):
                await store.flush([make_batch(seq=2, started=(make_task(),))])

    assert await store.load(["org_1"]) == {"org_1": make_stored(seq=1)}


async def test_an_owner_whose_session_is_killed_gets_it_back_with_the_same_epoch(
    portal: AsyncioThread, pools: PostgresPools, database_url: str
) -> None:
    """PostgreSQL was restarted: nobody else came, so nothing has to be loaded anew."""
    heard: list[str] = []
    async with (
        own_database(portal, database_url, owner="a", wait_ms=0) as ownership,
        trio.open_nursery() as nursery,
    ):
        regained = trio.Event()

        def on_regained() -> None:
            heard.append("regained")
            regained.set()

        async def keep(ownership: Ownership) -> None:
            await ownership.keep(on_lost=lambda: heard.append("lost"), on_regained=on_regained)

        nursery.start_soon(keep, ownership)
        for _ in range(2):
            assert len(await terminate_owner(pools)) == 1
            with trio.fail_after(20):
                await regained.wait()
            regained = trio.Event()

        assert heard == ["lost", "regained"] * 2
        assert ownership.is_held
        assert (await holder_of(portal, database_url)).epoch == ownership.epoch
        store = PostgresStore(pools, epoch=ownership.epoch, clock=FixedClock())
        await store.create_organization(make_new())
        await store.flush([make_batch(seq=1)])
        nursery.cancel_scope.cancel()


async def test_an_owner_whose_session_is_killed_loses_to_one_that_was_waiting(
    portal: AsyncioThread, pools: PostgresPools, database_url: str
) -> None:
    """Whoever gets the lock raises the epoch, and the old owner stops instead of fighting."""
    async with (
        own_database(portal, database_url, owner="a", wait_ms=0) as first,
        trio.open_nursery() as nursery,
    ):
        taken = trio.Event()

        async def successor() -> None:
            async with own_database(portal, database_url, owner="b", wait_ms=10_000):
                taken.set()
                await trio.sleep_forever()

        nursery.start_soon(successor)
        await trio.sleep(0.3)
        await terminate_owner(pools)
        with trio.fail_after(20):
            await taken.wait()
            with pytest.raises(OwnershipLostError, match="b has owned"):
                await first.keep()
        nursery.cancel_scope.cancel()
