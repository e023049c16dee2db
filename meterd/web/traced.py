"""A span for each HTTP request, put around the application and the hot path when traces are on."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope

from meterd.observe.spans import Spans
from meterd.web.front.hot import HotAnswer, HotPath, HotRequest, Repeatable


ROUTE: Final = "meterd.route"
"""Where the application tells, in the scope, which of its rules the request met."""

FAILED_FROM: Final = 500


class TracedApp:
    """An ASGI application whose HTTP requests have spans, named by their route."""

    def __init__(self, app: Any, spans: Spans) -> None:
        self._app = app
        self._spans = spans

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Serve one request, or one of the other kinds of scope, which have no span."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told: dict[str, Any] = dict(scope)
        method = str(told["method"])
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in told["headers"]}
        with self._spans(
            method, kind="server", headers=headers, attributes={"http.request.method": method}
        ) as span:

            async def send_and_look(event: ASGISendEvent) -> None:
                if event["type"] == "http.response.start":
                    span.tell("http.response.status_code", event["status"])
                await send(event)

            await self._app(scope, receive, send_and_look)
            route = dict(scope).get(ROUTE)
            if isinstance(route, str):
                span.rename(f"{method} {route}")
                span.tell("http.route", route)


def traced_hot_path(hot_path: HotPath, spans: Spans) -> HotPath:
    """Return the hot path with a span for each request; none is answered by repetition."""

    async def waited(request: HotRequest) -> HotAnswer:
        with spans(
            request.route.value, kind="server", attributes={"http.request.method": request.method}
        ):
            answer = hot_path(request)
            return _told_once(await answer if isinstance(answer, Awaitable) else answer)

    return waited


def _told_once(answer: HotAnswer) -> HotAnswer:
    """Return an answer that the front door will not give again by itself."""
    return answer.answer if isinstance(answer, Repeatable) else answer
