"""`KeyStore`: keys by their digest, revoked once, seen by every process."""

from __future__ import annotations

import attrs

from tests.contract.conftest import Store
from tests.make import NOW_MS, make_key, make_new


async def test_a_key_is_found_by_its_digest_only(store: Store) -> None:
    """The key itself is nowhere, so this is how every request is authenticated."""
    await store.create_organization(make_new())
    key = make_key()

    assert await store.add_key(key, b"digest")
    assert await store.add_key(key, b"digest")

    assert await store.find_key(b"digest") == key
    assert await store.find_key(b"other") is None


async def test_a_key_needs_its_organization_unless_it_is_an_admins(store: Store) -> None:
    """A key of nobody would authenticate somebody later."""
    admin = make_key("key_admin", organization_id=None, scopes=frozenset({"admin"}))

    assert not await store.add_key(make_key(organization_id="org_none"), b"1")
    assert await store.add_key(admin, b"2")

    assert await store.find_key(b"1") is None
    assert await store.find_key(b"2") == admin
    assert await store.keys_of(None, after=None, limit=9) == [admin]
    assert (await store.valid_keys(None), await store.valid_keys("org_none")) == (1, 0)


async def test_keys_are_listed_per_organization_newest_first(store: Store) -> None:
    """One tenant's list never shows another's keys."""
    await store.create_organization(make_new())
    await store.create_organization(make_new("org_2"))
    old, new = make_key("key_1"), make_key("key_2", created_at_ms=NOW_MS + 1)
    other = make_key("key_3", organization_id="org_2")
    for number, key in enumerate((old, other, new)):
        await store.add_key(key, bytes([number]))

    assert await store.keys_of("org_1", after=None, limit=9) == [new, old]
    assert await store.keys_of("org_2", after=None, limit=9) == [other]
    assert await store.keys_of(None, after=None, limit=9) == []


async def test_keys_are_read_in_pages_each_once(store: Store) -> None:
    """Keys of one instant are told apart by their ids; revoked ones are listed, not counted."""
    await store.create_organization(make_new())
    made = [make_key(f"key_{number}", created_at_ms=NOW_MS + number // 3) for number in range(7)]
    for number, key in enumerate(made):
        await store.add_key(key, bytes([number]))
    await store.revoke_key("org_1", "key_0", at_ms=NOW_MS)

    seen: list[str] = []
    after = None
    while page := await store.keys_of("org_1", after=after, limit=2):
        assert len(page) <= 2
        seen += [key.id for key in page]
        after = (page[-1].created_at_ms, page[-1].id)

    assert seen == [f"key_{number}" for number in range(6, -1, -1)]
    assert await store.valid_keys("org_1") == 6


async def test_the_first_revocation_counts_and_is_seen_by_all(store: Store) -> None:
    """Every process asks whether the keys it knows are still good; a repeat changes nothing."""
    await store.create_organization(make_new())
    await store.create_organization(make_new("org_2"))
    key = make_key()
    await store.add_key(key, b"digest")
    assert await store.revoked_among([key.id]) == []
    assert await store.revocations() == 0
    revoked = attrs.evolve(key, revoked_at_ms=NOW_MS + 5)

    assert await store.revoke_key("org_2", key.id, at_ms=NOW_MS) is None
    assert await store.revoke_key(None, key.id, at_ms=NOW_MS) is None
    assert await store.revoke_key("org_1", "key_none", at_ms=NOW_MS) is None
    assert await store.revoke_key("org_1", key.id, at_ms=NOW_MS + 5) == revoked
    assert await store.revoke_key("org_1", key.id, at_ms=NOW_MS + 9) == revoked

    assert await store.find_key(b"digest") == revoked
    assert await store.revoked_among([key.id, "key_none"]) == [key.id]
    assert await store.revoked_among([]) == []
    assert await store.revocations() == 1


async def test_there_is_one_pepper_for_ever(store: Store) -> None:
    """Another pepper would make every key unknown."""
    assert await store.pepper(b"first") == b"first"
    assert await store.pepper(b"second") == b"first"
