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
    assert await store.keys_of(None) == [admin]


async def test_keys_are_listed_per_organization_newest_first(store: Store) -> None:
    """One tenant's list never shows another's keys."""
    await store.create_organization(make_new())
    await store.create_organization(make_new("org_2"))
    old, new = make_key("key_1"), make_key("key_2", created_at_ms=NOW_MS + 1)
    other = make_key("key_3", organization_id="org_2")
    for number, key in enumerate((old, other, new)):
        await store.add_key(key, bytes([number]))

    assert await store.keys_of("org_1") == [new, old]
    assert await store.keys_of("org_2") == [other]
    assert await store.keys_of(None) == []


async def test_the_first_revocation_counts_and_is_seen_by_all(store: Store) -> None:
    """Every process polls for revocations; a repeat must not move one out of its window."""
    await store.create_organization(make_new())
    await store.create_organization(make_new("org_2"))
    key = make_key()
    await store.add_key(key, b"digest")
    revoked = attrs.evolve(key, revoked_at_ms=NOW_MS + 5)

    assert await store.revoke_key("org_2", key.id, at_ms=NOW_MS) is None
    assert await store.revoke_key(None, key.id, at_ms=NOW_MS) is None
    assert await store.revoke_key("org_1", "key_none", at_ms=NOW_MS) is None
    assert await store.revoke_key("org_1", key.id, at_ms=NOW_MS + 5) == revoked
    assert await store.revoke_key("org_1", key.id, at_ms=NOW_MS + 9) == revoked

    assert await store.find_key(b"digest") == revoked
    assert await store.revoked_since(NOW_MS + 5) == [key.id]
    assert await store.revoked_since(NOW_MS + 6) == []


async def test_there_is_one_pepper_for_ever(store: Store) -> None:
    """Another pepper would make every key unknown."""
    assert await store.pepper(b"first") == b"first"
    assert await store.pepper(b"second") == b"first"
