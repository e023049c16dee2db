"""The application: routes, and one way to answer everything that goes wrong.

Whatever a handler or Quart itself raises becomes a problem document; nothing of the request and
nothing of our inside is in it. No path is redirected: a trailing or a double slash is a 404.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Final, cast

import attrs
import trio
from quart import Response, g, request
from quart.typing import ResponseTypes
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from meterd.errors import MeterdError
from meterd.observe.metrics import HTTP_REQUESTS, HTTP_SECONDS
from meterd.web.admin_actors import admin_actors
from meterd.web.admin_books import admin_books
from meterd.web.admin_organizations import admin_organizations
from meterd.web.admin_stripe import admin_stripe
from meterd.web.agent_stream import AgentGate, agent_stream
from meterd.web.billing import admin_billing, billing
from meterd.web.cors import cors_headers
from meterd.web.events import events
from meterd.web.front.hot import HotPath
from meterd.web.health import health
from meterd.web.hot import HotAnswers
from meterd.web.idempotency import Handler, idempotent
from meterd.web.keys import keys
from meterd.web.metrics import metrics
from meterd.web.openapi import openapi, registered, route_of
from meterd.web.people import people
from meterd.web.problems import KINDS, ProblemError, error_reply, problem_reply
from meterd.web.quota import quota
from meterd.web.raw_paths import is_of, methods_of, raw_path
from meterd.web.reply import COMMON_HEADERS, new_request_id
from meterd.web.requests import SERVICES, request_id, response
from meterd.web.services import WebServices
from meterd.web.settings import settings
from meterd.web.stream_transport import StreamGate
from meterd.web.stripe_webhook import stripe_webhook
from meterd.web.tasks import tasks
from meterd.web.traced import ROUTE
from meterd.web.trail import trail
from meterd.web.usage import usage
from meterd.web.usage_live import LiveGate, StreamGates, usage_live
from meterd.web.webhook_endpoints import webhook_endpoints


__all__ = ["Web", "WebServices", "create_app", "make_application"]

BODY_TIMEOUT_S: Final = 30
"""Seconds a body may take to arrive."""

_CODES: Final = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "request_timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
    500: "internal_error",
}


@attrs.frozen(kw_only=True)
class Web:
    """What the front door needs of the web: the application, and what goes past it."""

    app: QuartTrio
    hot_path: HotPath
    stream_gate: StreamGate
    new_request_id: Callable[[], str]


def create_app(services: WebServices) -> Web:
    """Return the application and what the front door serves itself; nothing is started.

    The gate's sessions run in the application's nursery, which its start-up opens.
    """
    app = make_application(services)
    return Web(
        app=app,
        hot_path=HotAnswers(services),
        stream_gate=StreamGates(AgentGate(services, lambda: app.nursery), LiveGate(services)),
        new_request_id=lambda: new_request_id(services.ids),
    )


def _honour_keys(app: QuartTrio) -> None:
    """Let every POST that changes state honour `Idempotency-Key`, but those that need none."""
    for method, path, endpoint in list(registered(app)):
        route = route_of(method, path)
        if method != "POST" or (route is not None and not route.takes_keys):
            continue
        scopes = () if route is None else route.scopes
        handler = cast("Handler", app.view_functions[endpoint])  # every handler is ours
        app.view_functions[endpoint] = idempotent(handler, scopes)


def _name_handshakes(app: QuartTrio, services: WebServices) -> None:
    """Let a refused WebSocket handshake have an id and headers like any other answer."""

    @app.before_websocket
    async def name_handshake() -> None:
        g.request_id = new_request_id(services.ids)

    @app.after_websocket
    async def add_handshake_headers(answer: ResponseTypes | None) -> ResponseTypes | None:
        if isinstance(answer, Response):  # None when the handshake went well
            _add_common_headers(answer)
        return answer


def _add_common_headers(answer: Response) -> None:
    for name, value in (*COMMON_HEADERS, ("x-request-id", request_id())):
        answer.headers[name] = value


def _answer_errors(app: QuartTrio) -> None:
    """Let every error be answered with a problem."""

    @app.errorhandler(MeterdError)
    async def show_error(error: MeterdError) -> Response:
        return response(error_reply(error, request_id()))

    @app.errorhandler(HTTPException)
    async def show_http_error(error: HTTPException) -> Response:
        code = _CODES.get(error.code or 500)
        if code is None:
            is_ours = (error.code or 500) >= KINDS["internal_error"].status
            code = "internal_error" if is_ours else "bad_request"
        headers = []
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            headers = [("allow", _allowed(app, error.valid_methods))]
        return response(problem_reply(code, request_id(), headers=headers))


def _allowed(app: QuartTrio, found: Iterable[str]) -> str:
    """Return the methods of the path asked for; `found` are those that routing knows.

    Routing counts `/v1/tasks/t/heartbeat` as a task, too, whose slash would be encoded.
    """
    rules = ((rule.rule, rule.methods or ()) for rule in app.url_map.iter_rules())
    return ", ".join(sorted(methods_of(rules, raw_path()) or set(found)))


def make_application(services: WebServices) -> QuartTrio:
    """Return the Quart application, which serves every route by itself."""
    app = QuartTrio("meterd.web", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = services.config.body_bytes_max
    app.config["BODY_TIMEOUT"] = BODY_TIMEOUT_S
    app.config["PROPAGATE_EXCEPTIONS"] = False
    app.url_map.merge_slashes = False
    app.extensions[SERVICES] = services
    for blueprint in (
        quota,
        tasks,
        agent_stream,
        admin_organizations,
        admin_actors,
        admin_books,
        health,
        metrics,
        trail,
        people,
        admin_billing,
        admin_stripe,
        billing,
        stripe_webhook,
        settings,
        keys,
        usage_live,
        webhook_endpoints,
        usage,
        events,
        openapi,
    ):
        app.register_blueprint(blueprint)
    _honour_keys(app)
    _name_handshakes(app, services)

    answered = services.metrics.tally(HTTP_REQUESTS)
    durations = services.metrics.histograms(HTTP_SECONDS)

    # Every hook is async: Quart runs plain functions in threads.
    @app.before_request
    async def name_request() -> None:
        g.request_id = new_request_id(services.ids)
        g.started_s = trio.current_time()
        # Quart reads `//admin` as `/admin`; what guards paths in front of it may not.
        if request.scope["path"].startswith("//"):
            raise ProblemError("not_found")
        if request.url_rule is not None and not is_of(request.url_rule.rule, raw_path()):
            raise ProblemError("not_found")

    @app.after_request
    async def add_headers(answer: Response) -> Response:
        # The rule, never the path: what strangers ask for must not make labels.
        route = request.url_rule.rule if request.url_rule is not None else "none"
        request.scope[ROUTE] = route  # type: ignore[typeddict-unknown-key]  # for `TracedApp`
        method = request.method if route != "none" else "any"
        answered[method, route, str(answer.status_code)] += 1
        durations[route,].observe(trio.current_time() - g.started_s)
        _add_common_headers(answer)
        origins = services.live.origins if services.live is not None else ()
        origin = request.headers.get("origin")
        for name, value in cors_headers(request.method, request.path, origin, origins):
            answer.headers[name] = value
        if "allow" in answer.headers and request.method == "OPTIONS":
            answer.headers["allow"] = _allowed(app, answer.allow)
        if answer.status_code == HTTPStatus.NO_CONTENT or request.method == "OPTIONS":
            answer.headers.pop("content-type", None)  # Quart names a type even for no content
        return answer

    _answer_errors(app)
    return app
