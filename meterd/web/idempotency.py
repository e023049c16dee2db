"""`Idempotency-Key`: a state-changing POST that is sent again is answered, not done, again.

Rule 1: a key belongs to an organization (or to the operators) and to one route; it is kept for 24
hours. The same key with another body is refused, and so is one whose first request is in flight.
Rule 2: only an answer with 2xx is kept, encrypted: some show what is shown once.
Rule 3: a process may die between the effect and the keeping. What it had begun is on record, so the
next request with the key is a retry: it is done again, and every effect below is found instead of
doubled. Events have ids; a task, an adjustment and a key get theirs from `effect_id`; the rest is
the same the second time. Routes ask `is_retry` where that takes a look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import Final

import attrs
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from quart import Response, g, has_request_context, request

from meterd.core.ids import fact_id
from meterd.core.units import DAY_MS
from meterd.errors import MeterdError, StoreError
from meterd.ports.ids import Ids
from meterd.web.auth import has_scope
from meterd.web.problems import ProblemError
from meterd.web.raw_paths import raw_path
from meterd.web.requests import asker, services
from meterd.web.services import WebServices


HEADER: Final = "idempotency-key"
REPLAYED: Final = "idempotency-replayed"

KEPT_MS: Final = DAY_MS
KEY_CHARACTERS_MAX: Final = 255

_NONCE_DIGITS: Final = 24

Handler = Callable[..., Awaitable[Response]]


@attrs.frozen(kw_only=True)
class Ticket:
    """A request under a key, as its handler may see it."""

    scope: str
    key_hash: bytes
    begun_at_ms: int
    is_retry: bool


class Kept(msgspec.Struct, frozen=True):
    """An answer as it is kept."""

    headers: list[tuple[str, str]]
    body: bytes


def effect_id(ids: Ids, prefix: str) -> str:
    """Return an id for what this request makes: under a key always the same one."""
    ticket = _ticket()
    if ticket is None:
        return ids.new(prefix)
    return fact_id(prefix, ticket.begun_at_ms, "idempotency", ticket.scope, ticket.key_hash.hex())


def is_retry() -> bool:
    """Tell whether this very request may have had its effect already, without an answer kept."""
    ticket = _ticket()
    return ticket is not None and ticket.is_retry


def _ticket() -> Ticket | None:
    return getattr(g, "ticket", None) if has_request_context() else None


def idempotent(handler: Handler, scopes: tuple[str, ...]) -> Handler:
    """Return a handler that honours the header; `scopes` are those that may ask for this route."""
    in_flight: set[tuple[str, bytes]] = set()

    @wraps(handler)
    async def answer(**arguments: str) -> Response:
        given = request.headers.getlist(HEADER)
        if not given:
            return await handler(**arguments)
        bundle = services()
        principal = await asker()
        is_operator = principal.organization_id is None
        if not (is_operator or has_scope(principal, scopes)):
            raise ProblemError("wrong_scope")
        scope = f"{principal.organization_id or '/admin'} {_place()}"
        key_hash = hashlib.sha256(_key(given).encode()).digest()
        place = (scope, key_hash)
        if place in in_flight:
            raise ProblemError("idempotency_in_flight", headers=(("retry-after", "1"),))
        in_flight.add(place)
        try:
            return await _answer_once(bundle, scope, key_hash, handler, arguments)
        finally:
            in_flight.discard(place)

    return answer


async def _answer_once(
    bundle: WebServices,
    scope: str,
    key_hash: bytes,
    handler: Handler,
    arguments: Mapping[str, str],
) -> Response:
    raw = await request.get_data(cache=True, as_text=False, parse_form_data=False)
    kind = ",".join(request.headers.getlist("content-type")).encode()
    fingerprint = hashlib.sha256(
        b"\0".join((kind, request.query_string, hashlib.sha256(raw).digest()))
    ).digest()
    now_ms = bundle.clock.now_ms()
    known = await bundle.directory.begin_answer(
        scope, key_hash, fingerprint, at_ms=now_ms, forget_before_ms=now_ms - KEPT_MS
    )
    if known.fingerprint != fingerprint:
        raise ProblemError("idempotency_key_reused")
    if known.status is not None and known.sealed is not None:
        kept = _opened(bundle, scope, key_hash, known.sealed)
        if kept is not None:
            return _replayed(known.status, kept)
    g.ticket = Ticket(
        scope=scope,
        key_hash=key_hash,
        begun_at_ms=known.begun_at_ms,
        is_retry=not known.is_new,
    )
    try:
        answer = await handler(**arguments)
    except MeterdError as error:
        if not error.transient:  # else nobody knows what became of it
            await _dropped(bundle, scope, key_hash)
        raise
    if not 200 <= answer.status_code < 300:  # noqa: PLR2004
        await _dropped(bundle, scope, key_hash)
        return answer
    body = await answer.get_data(as_text=False)
    kept = Kept([(name.lower(), value) for name, value in answer.headers.items()], body)
    try:
        await bundle.directory.keep_answer(
            scope,
            key_hash,
            status=answer.status_code,
            sealed=_sealed(bundle, scope, key_hash, kept),
        )
    except StoreError:
        return answer  # the effect is durable; who asks again is a retry
    return answer


async def _dropped(bundle: WebServices, scope: str, key_hash: bytes) -> None:
    try:
        await bundle.directory.drop_answer(scope, key_hash)
    except StoreError:
        return  # it stays on record without an answer: who asks again is a retry


def _place() -> str:
    """Return a digest of the path as it was sent: an encoded slash is not a bare one."""
    return hashlib.sha256(raw_path()).hexdigest()[:32]


def _key(given: list[str]) -> str:
    key = given[0]
    if len(given) != 1 or not 0 < len(key) <= KEY_CHARACTERS_MAX:
        raise ProblemError("idempotency_key_invalid")
    if not (key.isascii() and key.isprintable()):
        raise ProblemError("idempotency_key_invalid")
    return key


def _replayed(status: int, kept: Kept) -> Response:
    made = Response(kept.body, status=status)
    made.headers.pop("content-type", None)
    for name, value in kept.headers:
        if name != "content-length":
            made.headers.add(name, value)
    made.headers[REPLAYED] = "true"
    return made


def _cipher(bundle: WebServices, scope: str, key_hash: bytes) -> AESGCM:
    return AESGCM(bundle.keyring.secret_for(b"\0".join((b"answer", scope.encode(), key_hash))))


def _sealed(bundle: WebServices, scope: str, key_hash: bytes, kept: Kept) -> bytes:
    nonce = bytes.fromhex(bundle.ids.new("nonce")[-_NONCE_DIGITS:])
    plain = msgspec.msgpack.encode(kept)
    return nonce + _cipher(bundle, scope, key_hash).encrypt(nonce, plain, None)


def _opened(bundle: WebServices, scope: str, key_hash: bytes, sealed: bytes) -> Kept | None:
    """Return a kept answer, or None when it was kept under another pepper."""
    size = _NONCE_DIGITS // 2
    nonce, secret = sealed[:size], sealed[size:]
    try:
        plain: bytes = _cipher(bundle, scope, key_hash).decrypt(nonce, secret, None)
    except InvalidTag:
        return None
    return msgspec.msgpack.decode(plain, type=Kept)
