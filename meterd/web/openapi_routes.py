"""Every route that meterd answers; a test holds this table against those that are registered."""

from __future__ import annotations

from typing import Final

from meterd.web.health import Health, Readiness
from meterd.web.openapi_customer import CUSTOMER_ROUTES
from meterd.web.openapi_operator import OPERATOR_ROUTES
from meterd.web.openapi_route import OBJECT, Route


PUBLIC_ROUTES: Final = (
    Route(method="GET", path="/healthz", answers={200: Health}),
    Route(method="GET", path="/readyz", answers={200: Readiness, 503: Readiness}),
    Route(method="GET", path="/metrics", answers={200: "text/plain"}),
    Route(method="GET", path="/openapi.json", answers={200: OBJECT}),
    Route(method="GET", path="/docs", answers={200: "text/html"}),
    Route(method="GET", path="/docs/page.js", answers={200: "text/javascript"}),
)

ROUTES: Final[tuple[Route, ...]] = (*CUSTOMER_ROUTES, *OPERATOR_ROUTES, *PUBLIC_ROUTES)
