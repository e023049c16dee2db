"""From an Authorization header to a principal, or to 401 and 403.

Rule 1: exactly one header, printable ASCII, of bounded length, scheme Bearer (RFC 6750).
Rule 2: the organization comes from the key alone; nothing in a URL or a body names a tenant.
Rule 3: 401 says the same whatever was wrong with the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from meterd.actors.keyring import UNKNOWN, KeyRing, Principal, Unknown
from meterd.web.problems import ProblemError


BEARER_CHARACTERS_MAX: Final = 8_192
"""Longest bearer that is looked at; a signed session token is of this order at most."""

_SCHEME: Final = "bearer "


def bearer_of(values: Sequence[str]) -> str | None:
    """Return the bearer in the Authorization headers of a request, None for anything unusual."""
    if len(values) != 1:
        return None
    value = values[0]
    if value[: len(_SCHEME)].lower() != _SCHEME:
        return None
    bearer = value[len(_SCHEME) :].strip(" ")
    if not 0 < len(bearer) <= BEARER_CHARACTERS_MAX:
        return None
    return bearer if bearer.isascii() and bearer.isprintable() else None


def principal_nowait(keyring: KeyRing, authorization: str | None) -> Principal | Unknown | None:
    """Return who sends this header value, None for nobody, UNKNOWN when the store must say."""
    bearer = None if authorization is None else bearer_of((authorization,))
    return None if bearer is None else keyring.authenticate_nowait(bearer)


async def authenticated(keyring: KeyRing, values: Sequence[str]) -> Principal:
    """Return who sends these Authorization headers.

    Errors: ProblemError `unauthorized`; StoreUnavailableError, OverloadedError.
    """
    bearer = bearer_of(values)
    principal = None if bearer is None else keyring.authenticate_nowait(bearer)
    if principal is UNKNOWN:
        assert bearer is not None
        principal = await keyring.authenticate(bearer)
    if principal is None:
        # RFC 6750, 3.1: the error code only when there was something to be wrong with.
        challenge = 'Bearer error="invalid_token"' if values else "Bearer"
        raise ProblemError("unauthorized", headers=(("www-authenticate", challenge),))
    assert isinstance(principal, Principal)
    return principal


def has_scope(principal: Principal, scopes: Sequence[str]) -> bool:
    """Tell whether a key of an organization has one of these scopes."""
    return principal.organization_id is not None and not principal.scopes.isdisjoint(scopes)


def organization_of(principal: Principal, *scopes: str) -> str:
    """Return the organization of a key that has one of these scopes.

    Errors: ProblemError `wrong_scope`.
    """
    if not has_scope(principal, scopes):
        raise ProblemError("wrong_scope")
    assert principal.organization_id is not None
    return principal.organization_id


def operator_of(principal: Principal) -> str:
    """Return the key id of an operator, which is how the audit log names them.

    Errors: ProblemError `wrong_scope`.
    """
    if principal.organization_id is not None or "admin" not in principal.scopes:
        raise ProblemError("wrong_scope")
    return principal.key_id
