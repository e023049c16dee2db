"""Keys: their form, who they speak for, and how fast a revocation works."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

import random

import pytest
import trio
from hypothesis import given, strategies as st

from meterd.actors import keyring as module
from meterd.actors.keyring import UNKNOWN, KeyRing, Principal, has_key_form, make_key
from meterd.adapters.ids import IdSource
from meterd.adapters.memory.store import Database
from meterd.core.units import MINUTE_MS
from meterd.errors import OrganizationUnknownError, OverloadedError, StoreUnavailableError
from tests.served import ADMIN_KEY, Store, TrioClock, open_world


@given(st.binary(min_size=32, max_size=32))
def test_a_made_key_has_the_form_and_one_wrong_character_does_not(chance: bytes) -> None:
    """The checksum finds every single typo without asking the database."""
    key = make_key(chance)
    at = chance[0] % 38 + len("mk_live_")
    typo = key[:at] + ("a" if key[at] != "a" else "b") + key[at + 1 :]

    assert len(key) == len("mk_live_") + 32 + 6
    assert has_key_form(key)
    assert not has_key_form(typo)
    assert not has_key_form(key + "0")


def test_different_chance_makes_different_keys() -> None:
    """All 190 bits are used."""
    source = random.Random(3)
    keys = {make_key(source.randbytes(32)) for _ in range(1_000)}

    assert len(keys) == 1_000


def no_words(text: str) -> None:
    """Take what would be said to an operator."""
    assert not text, text


async def open_ring(store: Store, *, pepper: str | None = None) -> KeyRing:
    """Return a key ring on a store."""
    return await KeyRing.open(
        store,
        clock=store.clock,
        ids=IdSource(store.clock.now_ms, random.Random(5)),
        chance=random.Random(6).randbytes,
        say=no_words,
        pepper=pepper,
        admin_key=ADMIN_KEY,
    )


def make_store() -> Store:
    """Return an empty store."""
    database = Database()
    return Store(database, epoch=database.take(), clock=TrioClock())


async def test_a_key_speaks_for_its_organization_from_memory_after_the_first_time(
    autojump_clock: trio.abc.Clock,
) -> None:
    """The hot path must not ask the store again."""
    async with open_world() as world:
        await world.add()
        ring = world.services.keyring
        key = await world.key("agent")

        assert ring.authenticate_nowait(key) is UNKNOWN
        principal = await ring.authenticate(key)
        assert principal == ring.authenticate_nowait(key)
        assert isinstance(principal, Principal)
        assert (principal.organization_id, principal.scopes) == ("org_1", frozenset({"agent"}))
        assert world.store.lookups == 1


async def test_the_key_itself_is_nowhere_in_the_store(autojump_clock: trio.abc.Clock) -> None:
    """A stolen database opens nothing."""
    async with open_world() as world:
        await world.add()
        key = await world.key()

        assert key not in repr(world.store.database)
        assert repr(key.encode())[2:-1] not in repr(world.store.database)


async def test_what_has_not_the_form_of_a_key_costs_no_look_up(
    autojump_clock: trio.abc.Clock,
) -> None:
    """Strangers must not reach the database's pool."""
    async with open_world() as world:
        for bearer in ("", "x", "mk_live_" + "0" * 38, "mk_live_ä", ADMIN_KEY[:-1], "\ud800"):
            assert await world.services.keyring.authenticate(bearer) is None

        assert world.store.lookups == 0


async def test_a_stranger_with_a_wellformed_key_is_looked_up_once(
    autojump_clock: trio.abc.Clock,
) -> None:
    """That nobody has this key is remembered, in a bounded place."""
    async with open_world() as world:
        stranger = make_key(b"s" * 32)
        for _ in range(5):
            assert await world.services.keyring.authenticate(stranger) is None

        assert world.store.lookups == 1


async def test_what_strangers_leave_in_memory_is_bounded(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million invented keys must not become a million entries."""
    monkeypatch.setattr(module, "UNKNOWN_MAX", 10)
    monkeypatch.setattr(module, "KNOWN_MAX", 3)
    async with open_world() as world:
        await world.add()
        ring = world.services.keyring
        for number in range(50):
            await ring.authenticate(make_key(number.to_bytes(32)))
            await ring.authenticate(await world.key())

        assert len(ring._unknown) == 10
        assert len(ring._known) == len(ring._digests) == 3


async def test_too_many_look_ups_at_once_are_refused(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue before the store is bounded like every other."""
    monkeypatch.setattr(module, "LOOKUPS_WAITING_MAX", 2)
    async with open_world() as world:
        refused = 0

        async def ask(number: int) -> None:
            nonlocal refused
            try:
                await world.services.keyring.authenticate(make_key(number.to_bytes(32)))
            except OverloadedError:
                refused += 1

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, number)

        assert refused == 20 - module.LOOKUPS_MAX - 2


async def test_a_revoked_key_is_nobody_at_once_and_its_streams_hear_of_it(
    autojump_clock: trio.abc.Clock,
) -> None:
    """Here and now, not at the next poll."""
    async with open_world() as world:
        await world.add()
        ring = world.services.keyring
        key = await world.key()
        principal = await ring.authenticate(key)
        assert principal is not None
        heard = []
        ring.on_revoked(principal.key_id, lambda: heard.append(True))

        assert await ring.revoke("org_1", principal.key_id) is not None
        assert heard == [True]
        assert ring.is_revoked(principal.key_id)
        assert await ring.authenticate(key) is None
        assert await ring.revoke("org_1", principal.key_id) is not None
        assert await ring.revoke("org_2", principal.key_id) is None


async def test_a_revocation_by_another_process_works_within_a_second(
    autojump_clock: trio.abc.Clock,
) -> None:
    """`watch` reads what others have revoked."""
    async with open_world() as world:
        await world.add()
        ring = world.services.keyring
        key = await world.key()
        principal = await ring.authenticate(key)
        assert principal is not None
        heard = trio.Event()
        ring.on_revoked(principal.key_id, heard.set)
        now_ms = world.services.clock.now_ms()
        await world.store.revoke_key("org_1", principal.key_id, at_ms=now_ms)

        with trio.fail_after(1):
            await heard.wait()
        assert ring.authenticate_nowait(key) is not principal
        assert await ring.authenticate(key) is None


@pytest.mark.parametrize("clocks_apart_ms", [-10 * MINUTE_MS, 10 * MINUTE_MS])
async def test_a_revocation_by_another_clock_works_within_a_second(
    autojump_clock: trio.abc.Clock, clocks_apart_ms: int
) -> None:
    """A service does not follow a clock that is set by minutes; a command beside it does."""
    async with open_world() as world:
        await world.add()
        ring = world.services.keyring
        key = await world.key()
        principal = await ring.authenticate(key)
        assert principal is not None
        at_ms = world.services.clock.now_ms() + clocks_apart_ms
        await world.store.revoke_key("org_1", principal.key_id, at_ms=at_ms)

        await trio.sleep(1)

        assert await ring.authenticate(key) is None
        assert ring.is_revoked(principal.key_id)


async def test_a_revocation_during_a_look_up_is_not_overlooked(
    autojump_clock: trio.abc.Clock,
) -> None:
    """The row was read before it was revoked; what arrives late must not be cached."""
    async with open_world() as world:
        await world.add()
        ring = world.services.keyring
        key = await world.key()
        [stored] = await ring.keys_of("org_1", limit=9)
        found = world.store.find_key

        async def slow_find(digest: bytes) -> object:
            row = await found(digest)
            await ring.revoke("org_1", stored.id)
            return row

        world.store.find_key = slow_find  # type: ignore[method-assign, assignment]

        assert await ring.authenticate(key) is None
        assert await ring.authenticate(key) is None


async def test_keys_in_use_are_asked_for_when_somebody_was_revoked(
    autojump_clock: trio.abc.Clock,
) -> None:
    """Twice a second for tens of thousands of keys would keep a processor busy with nothing."""
    async with open_world() as world:
        await world.add()
        ring, store = world.services.keyring, world.store
        for _ in range(3):
            await ring.authenticate(await world.key())
        await trio.sleep(2)
        settled = store.keys_asked

        await trio.sleep(60)
        assert store.keys_asked == settled
        [first, *_] = await ring.keys_of("org_1", limit=9)
        await store.revoke_key("org_1", first.id, at_ms=world.services.clock.now_ms())
        await trio.sleep(60)

        assert store.keys_asked == settled + 3
        assert ring.is_revoked(first.id)


async def test_a_look_up_that_is_slower_than_the_look_for_revocations_is_looked_at_again(
    autojump_clock: trio.abc.Clock,
) -> None:
    """The key was good when it was read, and revoked before anybody here had it in use."""
    async with open_world() as world:
        await world.add()
        ring, store = world.services.keyring, world.store
        key = await world.key()
        [stored] = await ring.keys_of("org_1", limit=9)
        found = store.find_key

        async def slow_find(digest: bytes) -> object:
            row = await found(digest)
            await store.revoke_key("org_1", stored.id, at_ms=world.services.clock.now_ms())
            await trio.sleep(5)
            return row

        store.find_key = slow_find  # type: ignore[method-assign, assignment]
        await ring.authenticate(key)
        store.find_key = found  # type: ignore[method-assign]
        await trio.sleep(1)

        assert await ring.authenticate(key) is None


async def test_keys_in_memory_work_while_the_store_is_away(autojump_clock: trio.abc.Clock) -> None:
    """Enforcement does not stop with PostgreSQL; keys nobody knows cannot be judged."""
    async with open_world() as world:
        await world.add()
        ring = world.services.keyring
        known, other = await world.key(), await world.key()
        await ring.authenticate(known)
        world.store.is_away = True
        await trio.sleep(2)

        assert isinstance(await ring.authenticate(known), Principal)
        with pytest.raises(StoreUnavailableError):
            await ring.authenticate(other)


async def test_the_configured_admin_key_is_an_operators(autojump_clock: trio.abc.Clock) -> None:
    """It is never stored: taking it out of the configuration takes it away."""
    async with open_world() as world:
        principal = world.services.keyring.authenticate_nowait(ADMIN_KEY)

        assert isinstance(principal, Principal)
        assert (principal.organization_id, principal.scopes) == (None, frozenset({"admin"}))
        assert world.store.database.keys == {}


async def test_a_first_start_without_admin_key_makes_one_and_says_it_once(
    autojump_clock: trio.abc.Clock,
) -> None:
    """The second start finds it stored and has nothing to say."""
    store = make_store()
    said: list[str] = []
    for seed in (1, 2):
        ring = await KeyRing.open(
            store,
            clock=store.clock,
            ids=IdSource(store.clock.now_ms, random.Random(seed)),
            chance=random.Random(seed).randbytes,
            say=said.append,
        )

    assert len(said) == 1
    key = said[0].split()[-1]
    principal = await ring.authenticate(key)
    assert principal is not None
    assert principal.scopes == frozenset({"admin"})


async def test_another_pepper_knows_no_key(autojump_clock: trio.abc.Clock) -> None:
    """Changing the pepper revokes everything, as its documentation says."""
    store = make_store()
    ring = await open_ring(store, pepper="a" * 32)
    _, key = await ring.create(None, scopes={"admin"}, created_by="test")
    other = await open_ring(store, pepper="b" * 32)

    assert await ring.authenticate(key) is not None
    assert await other.authenticate(key) is None


async def test_a_key_of_no_organization_cannot_be_made(autojump_clock: trio.abc.Clock) -> None:
    """Its organization would have to be invented later."""
    ring = await open_ring(make_store())

    with pytest.raises(OrganizationUnknownError):
        await ring.create("org_none", scopes={"agent"}, created_by="test")
