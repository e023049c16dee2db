"""API keys as stored, and the keys of an issuer of session tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs


@attrs.frozen(kw_only=True)
class StoredKey:
    """An API key as stored; never the key itself."""

    id: str
    organization_id: str | None
    """`None`: an admin key."""
    scopes: frozenset[str]
    name: str
    last4: str
    created_at_ms: int
    created_by: str
    revoked_at_ms: int | None


class KeyStore(Protocol):
    """API keys, by the HMAC of the key under the pepper."""

    async def find_key(self, digest: bytes) -> StoredKey | None:
        """Return the key with this digest, revoked or not."""
        ...

    async def add_key(self, key: StoredKey, digest: bytes) -> bool:
        """Store a key; False when its organization does not exist."""
        ...

    async def keys_of(
        self, organization_id: str | None, *, after: tuple[int, str] | None, limit: int
    ) -> Sequence[StoredKey]:
        """Return an organization's keys (`None`: the admin keys), newest first.

        `after` is the (created_at_ms, id) seen last.
        """
        ...

    async def valid_keys(self, organization_id: str | None) -> int:
        """Return how many keys it has that are not revoked."""
        ...

    async def revoke_key(
        self, organization_id: str | None, key_id: str, *, at_ms: int, revoked_by: str = "operator"
    ) -> StoredKey | None:
        """Revoke a key of this organization; None when it has no such key. Repeats are fine."""
        ...

    async def revocations(self) -> int:
        """Return how many keys were ever revoked: a number that only grows."""
        ...

    async def revoked_among(self, key_ids: Sequence[str]) -> Sequence[str]:
        """Return which of these keys are revoked, whenever and by whomever."""
        ...

    async def pepper(self, candidate: bytes) -> bytes:
        """Return the database's pepper, storing the candidate if it has none yet."""
        ...


class KeySetSource(Protocol):
    """Where an issuer of session tokens publishes its keys."""

    async def read(self) -> bytes:
        """Return the JWKS document. Errors: KeySetUnavailableError."""
        ...
