"""One API request from bytes to bytes: key, route, types, idempotency, handler, expansion."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from http import HTTPStatus

import attrs

from meterd.testing.fake_stripe.errors import Json, StripeRefusedError
from meterd.testing.fake_stripe.expansion import check_paths, expanded
from meterd.testing.fake_stripe.forms import decode_form, params_type, typed
from meterd.testing.fake_stripe.idempotency import IdempotencyKeys
from meterd.testing.fake_stripe.judge import check_request
from meterd.testing.fake_stripe.routes import Handler, Route, all_routes
from meterd.testing.fake_stripe.world import API_VERSION, World


@attrs.frozen(kw_only=True)
class Answer:
    """A complete HTTP answer."""

    status: int
    body: bytes
    headers: Mapping[str, str]


@attrs.frozen(kw_only=True)
class Call:
    """An API request as it came in; header names are lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@attrs.frozen(kw_only=True)
class Logged:
    """One line of the request log tests may look at."""

    request_id: str
    method: str
    path: str
    params: Json
    idempotency_key: str | None
    status: int
    was_replayed: bool


class Api:
    """Answers calls against one world. Never awaits."""

    def __init__(self, world: World, list_events: Handler) -> None:
        self._world = world
        self._routes = all_routes(list_events)
        self._keys = IdempotencyKeys(world)
        self.log: list[Logged] = []

    def answer(self, call: Call, *, breaks_after: bool = False) -> Answer:
        """Do what the call asks; `breaks_after`: do it, then answer 500 and remember that."""
        request_id = self._world.new_id("req")
        key = call.headers.get("idempotency-key") if call.method == "POST" else None
        encoded = call.body.decode("utf-8", "replace") if call.method == "POST" else call.query
        params: Json = {}
        was_replayed = False
        try:
            self._authorize(call)
            self._check_version(call)
            route, ids = self._find(call)
            params = typed(params_type(route.params), decode_form(encoded))
            fingerprint = hashlib.sha256(
                f"{call.method} {call.path} {encoded}".encode()
            ).hexdigest()
            kept = self._keys.replay(key, fingerprint) if key else None
            if kept is not None:
                was_replayed = True
                headers = {
                    "original-request": kept.request_id,
                    "idempotent-replayed": "true",
                }
                answer = self._reply(request_id, kept.status, kept.body, key, headers)
            else:
                status, body = self._perform(route, ids, params, request_id, key)
                if breaks_after:
                    status, body = HTTPStatus.INTERNAL_SERVER_ERROR, error_body(api_error())
                if key:
                    self._keys.keep(
                        key, fingerprint, status=status, body=body, request_id=request_id
                    )
                answer = self._reply(request_id, status, body, key, {})
        except StripeRefusedError as refused:
            answer = self._reply(request_id, refused.status, error_body(refused), key, {})
        self.log.append(
            Logged(
                request_id=request_id,
                method=call.method,
                path=call.path,
                params=params,
                idempotency_key=key,
                status=answer.status,
                was_replayed=was_replayed,
            )
        )
        return answer

    def refusal(self, refused: StripeRefusedError) -> Answer:
        """Return an answer without any work."""
        request_id = self._world.new_id("req")
        return self._reply(request_id, refused.status, error_body(refused), None, {})

    def _authorize(self, call: Call) -> None:
        scheme, _, credentials = call.headers.get("authorization", "").partition(" ")
        key = credentials.strip()
        if scheme.lower() == "basic":
            try:
                key = base64.b64decode(credentials, validate=True).decode().rpartition(":")[0]
            except (binascii.Error, UnicodeDecodeError):
                key = ""
        wanted = self._world.settings.api_key
        if not key or (wanted is not None and key != wanted):
            raise StripeRefusedError(
                "Invalid API Key provided" if key else "You did not provide an API key.",
                status=HTTPStatus.UNAUTHORIZED,
                is_validation=True,
            )

    def _check_version(self, call: Call) -> None:
        asked = call.headers.get("stripe-version", API_VERSION)
        if asked != API_VERSION:
            raise StripeRefusedError(
                f"The fake speaks {API_VERSION} only, not {asked}.", is_validation=True
            )

    def _find(self, call: Call) -> tuple[Route, tuple[str, ...]]:
        for route in self._routes:
            match = route.pattern.match(call.path)
            if match and route.method == call.method:
                return route, match.groups()
        raise StripeRefusedError(
            f"Unrecognized request URL ({call.method}: {call.path}).",
            status=HTTPStatus.NOT_FOUND,
            is_validation=True,
        )

    def _perform(
        self,
        route: Route,
        ids: tuple[str, ...],
        params: Json,
        request_id: str,
        key: str | None,
    ) -> tuple[int, bytes]:
        check_request(params_type(route.params), params)
        unmodelled = sorted(set(params) - route.modelled)
        if unmodelled:
            raise StripeRefusedError(
                f"The fake does not model this parameter: {unmodelled[0]}",
                code="parameter_not_modelled",
                param=unmodelled[0],
                is_validation=True,
            )
        check_paths(route.path, params.get("expand", []))
        world = self._world
        world.request_id, world.idempotency_key = request_id, key
        try:
            answer = route.handler(world, params, *ids)
            body = expanded(world, answer, params.get("expand", []))
        except StripeRefusedError as refused:
            if refused.is_validation:
                raise
            return refused.status, error_body(refused)
        finally:
            world.request_id = world.idempotency_key = None
        return HTTPStatus.OK, json.dumps(body).encode()

    def _reply(
        self, request_id: str, status: int, body: bytes, key: str | None, extra: dict[str, str]
    ) -> Answer:
        headers = {
            "content-type": "application/json",
            "request-id": request_id,
            "stripe-version": API_VERSION,
            **extra,
        }
        if key is not None and key.isprintable():
            headers["idempotency-key"] = key
        return Answer(status=int(status), body=body, headers=headers)


def api_error() -> StripeRefusedError:
    """500: Stripe itself failed."""
    return StripeRefusedError(
        "An unknown error occurred", status=HTTPStatus.INTERNAL_SERVER_ERROR, kind="api_error"
    )


def rate_limit_error() -> StripeRefusedError:
    """429: too many requests."""
    return StripeRefusedError(
        "Request rate limit exceeded. Learn more about rate limits here"
        " https://stripe.com/docs/rate-limits.",
        status=HTTPStatus.TOO_MANY_REQUESTS,
        code="rate_limit",
    )


def error_body(refused: StripeRefusedError) -> bytes:
    """Return the refusal as JSON bytes."""
    return json.dumps(refused.body()).encode()
