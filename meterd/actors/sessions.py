"""Session tokens of people who signed in with Clerk: verified here, never asked for anywhere.

Rule 1: RS256 and nothing else, by a key of the issuer's published set; every claim that is relied
        on is required, and its times are judged by our clock with five seconds of leeway.
Rule 2: the set is kept an hour. An unknown key id has it read again, once in five minutes at most:
        invented ids cost the issuer nothing. While it cannot be read the old set serves for a day.
Rule 3: organization and role come from the token. Who has no organization in it is nobody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import jwt
import structlog
import trio

from meterd.actors.keyring import UNKNOWN, Principal, Unknown
from meterd.core.ids import ORGANIZATION_ID
from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from meterd.errors import KeySetUnavailableError, StoreUnavailableError
from meterd.ports.clock import Clock
from meterd.ports.keys import KeySetSource
from meterd.ports.people import SIGNED_IN


log = structlog.get_logger(__name__)

ALGORITHM: Final = "RS256"
LEEWAY_MS: Final = 5 * SECOND_MS
REQUIRED: Final = ("exp", "iat", "nbf", "iss", "sub", "sid")
TOKEN_CHARACTERS_MAX: Final = 8_192

FRESH_MS: Final = HOUR_MS
"""How long a key set is used without looking."""
RETRY_MS: Final = 5 * MINUTE_MS
"""Least time between two readings that unknown key ids cause."""
FAILED_RETRY_MS: Final = 10 * SECOND_MS
"""Least time between two readings while the issuer does not answer."""
STALE_MS: Final = DAY_MS
"""How long a key set serves when it cannot be read again."""

KEYS_MAX: Final = 32
RSA_BITS_MIN: Final = 2_048

ROLES: Final[Mapping[str, frozenset[str]]] = {
    "admin": frozenset({"read", "manage"}),
    "member": frozenset({"read"}),
}


class Sessions:
    """Verifies session tokens of one issuer."""

    def __init__(
        self,
        source: KeySetSource,
        *,
        issuer: str,
        parties: frozenset[str],
        clock: Clock,
    ) -> None:
        """`parties` are the pages whose tokens are taken (`azp`)."""
        self._source = source
        self._issuer = issuer
        self._parties = parties
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at_ms: int | None = None
        self._tried_at_ms: int | None = None
        self._has_failed = False
        self._reading = trio.Lock()
        self.readings = 0

    def verify_nowait(self, token: str) -> Principal | Unknown | None:
        """Return whose token it is, None for nobody, UNKNOWN when the key set must be read."""
        kid = _key_id(token) if len(token) <= TOKEN_CHARACTERS_MAX else None
        if kid is None:
            return None
        now_ms = self._clock.now_ms()
        age_ms = None if self._read_at_ms is None else now_ms - self._read_at_ms
        key = self._keys.get(kid) if age_ms is not None and age_ms < STALE_MS else None
        is_fresh = age_ms is not None and age_ms < FRESH_MS
        if self._may_read(now_ms) and (key is None or not is_fresh):
            return UNKNOWN
        return None if key is None else self._principal(token, key, now_ms)

    async def verify(self, token: str) -> Principal | None:
        """Return whose token it is, reading the key set when it is time to.

        Errors: StoreUnavailableError when there is no key set at all.
        """
        async with self._reading:  # who waited finds what the first one read
            found = self.verify_nowait(token)
            if found is UNKNOWN:
                await self._read()
                found = self.verify_nowait(token)
        if found is None and not self._keys:
            raise StoreUnavailableError("read the issuer's keys")
        assert not isinstance(found, Unknown), token
        return found

    def _may_read(self, now_ms: int) -> bool:
        if self._tried_at_ms is None:
            return True
        pause_ms = FAILED_RETRY_MS if self._has_failed else RETRY_MS
        return now_ms - self._tried_at_ms >= pause_ms

    async def _read(self) -> None:
        self.readings += 1
        self._tried_at_ms = self._clock.now_ms()
        try:
            keys = _keys_of(await self._source.read())
        except KeySetUnavailableError as error:
            self._has_failed = True
            log.warning("key_set_unavailable", error=str(error))
            return
        self._has_failed = False
        self._keys, self._read_at_ms = keys, self._clock.now_ms()

    def _principal(self, token: str, key: jwt.PyJWK, now_ms: int) -> Principal | None:
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=self._issuer,
                options={
                    "require": list(REQUIRED),
                    # Judged below, by our clock.
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                    "verify_aud": False,
                },
            )
        except (jwt.PyJWTError, ValueError, RecursionError):
            return None
        times = [_instant_ms(claims[name]) for name in ("nbf", "iat", "exp")]
        if None in times:
            return None
        nbf_ms, iat_ms, exp_ms = (each or 0 for each in times)
        is_of_now = max(nbf_ms, iat_ms) - LEEWAY_MS <= now_ms < exp_ms + LEEWAY_MS
        party = claims.get("azp")
        if not is_of_now or not isinstance(party, str) or party not in self._parties:
            return None
        organization_id, role = _membership(claims)
        scopes = ROLES.get(role.removeprefix("org:"))
        if scopes is None or ORGANIZATION_ID.fullmatch(organization_id) is None:
            return None
        subject = claims["sub"]
        if not isinstance(subject, str) or not isinstance(claims["sid"], str):
            return None
        return Principal(
            key_id=f"{SIGNED_IN}{subject}"[:128],
            organization_id=organization_id,
            scopes=scopes,
            name=subject,
            ends_at_ms=exp_ms,
        )


def _key_id(token: str) -> str | None:
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    kid = header.get("kid")
    return kid if isinstance(kid, str) and header.get("alg") == ALGORITHM else None


def _keys_of(document: bytes) -> dict[str, jwt.PyJWK]:
    """Return the RSA signing keys of a set by id; others are not for us.

    Errors: KeySetUnavailableError when it is no key set.
    """
    try:
        content = json.loads(document)
        entries = content["keys"][:KEYS_MAX]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise KeySetUnavailableError("the answer is not a key set") from error
    found = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
            continue
        if entry.get("kty") != "RSA" or entry.get("use", "sig") != "sig":
            continue
        if entry.get("alg", ALGORITHM) != ALGORITHM:
            continue
        try:
            key = jwt.PyJWK.from_dict(entry, algorithm=ALGORITHM)
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        if key.key.key_size >= RSA_BITS_MIN:
            found[entry["kid"]] = key
    return found


def _instant_ms(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40:
        return None
    return value * SECOND_MS


def _membership(claims: Mapping[str, Any]) -> tuple[str, str]:
    """Return organization and role, from either version of Clerk's claims."""
    compact = claims.get("o")
    if isinstance(compact, dict):
        found = (compact.get("id"), compact.get("rol"))
    else:
        found = (claims.get("org_id"), claims.get("org_role"))
    organization_id, role = found
    if isinstance(organization_id, str) and isinstance(role, str):
        return organization_id, role
    return "", ""
