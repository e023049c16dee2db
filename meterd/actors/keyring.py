"""API keys: who may speak, from memory where possible, and revoked within a second.

Rule 1: a key exists outside of its owner only as HMAC-SHA256 under the pepper; what is compared,
        cached and looked up is that digest, so nothing here depends on a key's characters.
Rule 2: keys that meterd makes carry a checksum: a mistyped or invented one costs no look-up.
Rule 3: nothing grows with what strangers send: caches are bounded, look-ups at once are bounded.
Rule 4: a revocation by any process is seen by `watch`; one made here takes effect at once.
"""

from __future__ import annotations

import enum
import hmac
import re
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

import attrs
import structlog
import trio

from meterd.core.units import SECOND_MS
from meterd.errors import (
    OrganizationUnknownError,
    OverloadedError,
    PortalClosedError,
    StoreUnavailableError,
)
from meterd.ports.clock import Clock
from meterd.ports.ids import Ids
from meterd.ports.keys import KeyStore, StoredKey


log = structlog.get_logger(__name__)

KEY_PREFIX: Final = "mk_live_"
SECRET_CHARACTERS: Final = 32
"""Base62 characters of chance in a key: 190 bits."""
CHECKSUM_CHARACTERS: Final = 6
"""Base62 characters of the CRC-32 of what is before them."""

SECRET_BYTES: Final = 32
"""Chance taken per key: 256 bits, so that reducing it to base62 leaves no measurable bias."""

ADMIN_SCOPE: Final = "admin"
ORGANIZATION_SCOPES: Final = frozenset({"agent", "read", "manage"})

BOOTSTRAP_KEY_ID: Final = "key_bootstrap"
"""Who did it, in the audit log, when the admin key of the configuration was used."""

KNOWN_MAX: Final = 50_000
"""Keys kept in memory; the least recently used one is looked up again."""
UNKNOWN_MAX: Final = 10_000
"""Digests remembered as no key of ours."""
LOOKUPS_MAX: Final = 8
"""Look-ups in the store at once: strangers with keys of good form must not fill its pool."""
LOOKUPS_WAITING_MAX: Final = 1_000
"""Look-ups that may wait for one of those; more are refused with 503."""

WATCH_INTERVAL_MS: Final = 500
"""How often other processes' revocations are looked for: half of the promised second."""
REVOKED_MAX: Final = 10_000
"""Revoked keys remembered, the latest: for look-ups and streams that begin meanwhile."""

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KEY: Final = re.compile(
    rf"{KEY_PREFIX}[0-9A-Za-z]{{{SECRET_CHARACTERS}}}[0-9A-Za-z]{{{CHECKSUM_CHARACTERS}}}",
    re.ASCII,
)


@attrs.frozen(kw_only=True)
class Principal:
    """Who is speaking, and what they may do."""

    key_id: str
    organization_id: str | None
    """`None`: an operator."""
    scopes: frozenset[str]
    name: str = ""
    ends_at_ms: int | None = None
    """When it is nobody any more: a signed-in person's; `None`: when it is revoked."""


class Unknown(enum.Enum):
    """Marks a bearer that only the store can judge."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN


class SessionTokens(Protocol):
    """Bearers that are not keys: session tokens somebody else signed."""

    def verify_nowait(self, token: str) -> Principal | Unknown | None:
        """Return whose it is, None for nobody, UNKNOWN when `verify` must look."""
        ...

    async def verify(self, token: str) -> Principal | None:
        """Return whose it is. Errors: StoreUnavailableError."""
        ...


def make_key(chance: bytes) -> str:
    """Return a new key made from 32 bytes of chance."""
    assert len(chance) == SECRET_BYTES, len(chance)
    body = KEY_PREFIX + _base62(int.from_bytes(chance), SECRET_CHARACTERS)
    return body + _checksum(body)


def has_key_form(text: str) -> bool:
    """Tell whether text has the form and the checksum of a key that meterd made."""
    if _KEY.fullmatch(text) is None:
        return False
    body = text[:-CHECKSUM_CHARACTERS]
    return hmac.compare_digest(text[-CHECKSUM_CHARACTERS:].encode(), _checksum(body).encode())


def _is_token(bearer: str) -> bool:
    """Tell whether a bearer has the three parts of a signed token; no key has a dot."""
    return bearer.count(".") == 2 and not bearer.startswith(KEY_PREFIX)  # noqa: PLR2004


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), CHECKSUM_CHARACTERS)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


class KeyRing:
    """Authenticates bearers; makes, lists and revokes keys."""

    def __init__(
        self,
        store: KeyStore,
        *,
        pepper: bytes,
        clock: Clock,
        ids: Ids,
        chance: Callable[[int], bytes],
        admin_key: str | None = None,
    ) -> None:
        """Take the pepper of this database; `chance(n)` returns n bytes nobody can guess."""
        self._store = store
        self._pepper = pepper
        self._mac = hmac.new(pepper, digestmod="sha256")
        self._clock = clock
        self._ids = ids
        self._chance = chance
        self._admin_digest = None if admin_key is None else self._digest(admin_key)
        self._known: OrderedDict[bytes, Principal] = OrderedDict()
        self._digests: dict[str, bytes] = {}
        self._unknown: OrderedDict[bytes, None] = OrderedDict()
        self._revoked: dict[str, None] = {}
        self._lookups = trio.CapacityLimiter(LOOKUPS_MAX)
        self._on_revoked: dict[str, list[Callable[[], None]]] = {}
        self._unasked: dict[str, None] = {}
        """Keys that came into use since the store was last asked about those in use."""
        self._revocations_seen = -1
        self.departures = 0
        """Keys that have left memory, revoked or not: who remembers one asks again after that."""
        self.sessions: SessionTokens | None = None
        """Who verifies session tokens; `None`: nobody signs in."""
        self.failing_since_ms: int | None = None
        """Since when revocations cannot be read: the store is away, even if nothing is written."""

    @classmethod
    async def open(
        cls,
        store: KeyStore,
        *,
        clock: Clock,
        ids: Ids,
        chance: Callable[[int], bytes],
        pepper: str | None = None,
        admin_key: str | None = None,
        say: Callable[[str], None],
    ) -> KeyRing:
        """Open the key ring of a database; says the admin key that a first start generates.

        Without `pepper` the database's own is used, made by whoever comes first.
        Errors: StoreUnavailableError, StoreRejectedError.
        """
        if pepper is None:
            secret = await store.pepper(chance(SECRET_BYTES))
        else:
            secret = pepper.encode()
        keyring = cls(
            store, pepper=secret, clock=clock, ids=ids, chance=chance, admin_key=admin_key
        )
        generated = await keyring.ensure_admin_key()
        if generated is not None:
            say(f"admin key, shown only this once: {generated}")
        return keyring

    # --- authentication ---------------------------------------------------------------------

    def authenticate_nowait(self, bearer: str) -> Principal | Unknown | None:
        """Return who it is, None for nobody, or UNKNOWN when the store must be asked."""
        if self.sessions is not None and _is_token(bearer):
            return self.sessions.verify_nowait(bearer)
        return self._remembered(bearer, self._digest(bearer))

    async def authenticate(self, bearer: str) -> Principal | None:
        """Return who it is, or None for nobody.

        Errors: StoreUnavailableError, OverloadedError when too many look-ups wait.
        """
        if self.sessions is not None and _is_token(bearer):
            return await self.sessions.verify(bearer)
        digest = self._digest(bearer)
        remembered = self._remembered(bearer, digest)
        if remembered is not UNKNOWN:
            return remembered
        if self._lookups.statistics().tasks_waiting >= LOOKUPS_WAITING_MAX:
            raise OverloadedError("the queue of key look-ups")
        async with self._lookups:
            remembered = self._remembered(bearer, digest)  # perhaps somebody asked meanwhile
            if remembered is not UNKNOWN:
                return remembered
            stored = await self._store.find_key(digest)
        if stored is None or stored.revoked_at_ms is not None or stored.id in self._revoked:
            self._unknown[digest] = None
            if len(self._unknown) > UNKNOWN_MAX:
                self._unknown.popitem(last=False)
            return None
        return self._remember(stored, digest)

    def secret_for(self, purpose: bytes) -> bytes:
        """Return 32 bytes that only this purpose has, and only who knows the pepper."""
        return hmac.digest(self._pepper, b"purpose:" + purpose, "sha256")

    def _digest(self, bearer: str) -> bytes:
        mac = self._mac.copy()  # already holds the pepper: half the time of beginning anew
        mac.update(bearer.encode("utf-8", "surrogatepass"))
        return mac.digest()

    def _remembered(self, bearer: str, digest: bytes) -> Principal | Unknown | None:
        known = self._known.get(digest)
        if known is not None:
            self._known.move_to_end(digest)
            return known
        if self._admin_digest is not None and hmac.compare_digest(digest, self._admin_digest):
            return Principal(
                key_id=BOOTSTRAP_KEY_ID,
                organization_id=None,
                scopes=frozenset({ADMIN_SCOPE}),
                name="bootstrap",
            )
        if digest in self._unknown or not has_key_form(bearer):
            return None
        return UNKNOWN

    def _remember(self, stored: StoredKey, digest: bytes) -> Principal:
        principal = Principal(
            key_id=stored.id,
            organization_id=stored.organization_id,
            scopes=stored.scopes,
            name=stored.name,
        )
        self._known[digest] = principal
        self._digests[stored.id] = digest
        self._unasked[stored.id] = None  # perhaps it was revoked after it was read
        if len(self._known) > KNOWN_MAX:
            _, oldest = self._known.popitem(last=False)
            del self._digests[oldest.key_id]
            self.departures += 1
        return principal

    # --- administration ---------------------------------------------------------------------

    async def create(
        self,
        organization_id: str | None,
        *,
        scopes: Collection[str],
        name: str = "",
        created_by: str,
        key_id: str | None = None,
    ) -> tuple[StoredKey, str]:
        """Return a new key, stored, and its text, which is never seen again.

        Errors: OrganizationUnknownError, StoreUnavailableError.
        """
        allowed = {ADMIN_SCOPE} if organization_id is None else ORGANIZATION_SCOPES
        assert scopes, "a key without scopes is good for nothing"
        assert allowed.issuperset(scopes), (organization_id, scopes)
        text = make_key(self._chance(SECRET_BYTES))
        stored = StoredKey(
            id=key_id or self._ids.new("key"),
            organization_id=organization_id,
            scopes=frozenset(scopes),
            name=name,
            last4=text[-4:],
            created_at_ms=self._clock.now_ms(),
            created_by=created_by,
            revoked_at_ms=None,
        )
        if not await self._store.add_key(stored, self._digest(text)):
            raise OrganizationUnknownError("no such organization")
        return stored, text

    async def keys_of(
        self, organization_id: str | None, *, after: tuple[int, str] | None = None, limit: int
    ) -> Sequence[StoredKey]:
        """Return an organization's keys (`None`: admin keys), newest first, revoked ones too.

        `after` is the (created_at_ms, id) seen last.
        """
        return await self._store.keys_of(organization_id, after=after, limit=limit)

    async def valid_keys(self, organization_id: str | None) -> int:
        """Return how many keys it has that are not revoked."""
        return await self._store.valid_keys(organization_id)

    async def revoke(
        self, organization_id: str | None, key_id: str, *, revoked_by: str = "operator"
    ) -> StoredKey | None:
        """Revoke a key; None when the organization has no such key. Repeats change nothing.

        Errors: StoreUnavailableError.
        """
        now_ms = self._clock.now_ms()
        stored = await self._store.revoke_key(
            organization_id, key_id, at_ms=now_ms, revoked_by=revoked_by
        )
        if stored is not None:
            self._forget({key_id})
        return stored

    async def ensure_admin_key(self) -> str | None:
        """Return the text of a new admin key, to be shown once, if nobody could sign in else.

        Errors: StoreUnavailableError.
        """
        if self._admin_digest is not None:
            return None
        if await self._store.valid_keys(None):
            return None
        _, text = await self.create(
            None, scopes={ADMIN_SCOPE}, name="generated at the first start", created_by="meterd"
        )
        return text

    # --- revocation ---------------------------------------------------------------------------

    def on_revoked(self, key_id: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back, synchronously, when this key is revoked; call the result to stop."""
        callbacks = self._on_revoked.setdefault(key_id, [])
        callbacks.append(callback)
        self._unasked[key_id] = None

        def stop() -> None:
            if callback in callbacks:
                callbacks.remove(callback)
            if not callbacks and self._on_revoked.get(key_id) is callbacks:
                del self._on_revoked[key_id]

        return stop

    def is_revoked(self, key_id: str) -> bool:
        """Tell whether a key was revoked lately, by anybody."""
        return key_id in self._revoked

    async def watch(self) -> None:
        """Hear of revocations by other processes, for ever.

        Asked is whether the keys in use here are still good, not what was revoked since when: who
        revokes has a clock of their own. While the store is away keys in memory stay valid, as
        organizations do.
        """
        while True:
            started_ms = self._clock.now_ms()
            try:
                revoked = await self._newly_revoked()
            except (StoreUnavailableError, PortalClosedError) as error:
                log.debug("revocations_unread", error=str(error))
                self.failing_since_ms = self.failing_since_ms or started_ms
            else:
                self.failing_since_ms = None
                self._forget(revoked)
            await trio.sleep(WATCH_INTERVAL_MS / SECOND_MS)

    async def _newly_revoked(self) -> Sequence[str]:
        """Return which keys in use are revoked.

        All are asked for when somebody has revoked a key since, and else those that are new in use:
        the number of revocations is cheap to ask for, tens of thousands of keys are not.
        Errors: StoreUnavailableError.
        """
        count = await self._store.revocations()
        if count == self._revocations_seen:
            asked = list(self._unasked)
        else:
            asked = list(dict.fromkeys((*self._digests, *self._on_revoked)))
        revoked = await self._store.revoked_among(asked) if asked else ()
        self._revocations_seen = count
        for key_id in asked:
            self._unasked.pop(key_id, None)
        return revoked

    def _forget(self, key_ids: Collection[str]) -> None:
        for key_id in key_ids:
            self._revoked[key_id] = None
            if len(self._revoked) > REVOKED_MAX:
                del self._revoked[next(iter(self._revoked))]
            digest = self._digests.pop(key_id, None)
            if digest is not None:
                del self._known[digest]
                self.departures += 1
            for callback in tuple(self._on_revoked.pop(key_id, ())):
                callback()
