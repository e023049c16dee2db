"""What browsers must be told before pages of other origins may show usage (CORS).

Rule 1: only pages in `live_origins`, and only what a dashboard reads, the ticket for the live feed
included.
Rule 2: cookies play no part: the page sends a session token or its server's key in a header.

Source: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final


PATHS: Final = ("/v1/usage", "/v1/usage/", "/v1/invoice/preview")
"""A path that ends in a slash stands for everything below it."""

PREFLIGHT: Final = (
    ("access-control-allow-methods", "GET, POST"),
    ("access-control-allow-headers", "authorization, content-type, idempotency-key"),
    ("access-control-max-age", "600"),
)
EXPOSED: Final = (("access-control-expose-headers", "retry-after, x-request-id"),)


def cors_headers(
    method: str, path: str, origin: str | None, allowed: Collection[str]
) -> tuple[tuple[str, str], ...]:
    """Return the headers for a page of `origin`; only caches hear of it when it may not ask."""
    if not any(path == each or (each[-1] == "/" and path.startswith(each)) for each in PATHS):
        return ()
    vary = (("vary", "Origin"),)
    if origin is None or origin not in allowed:
        return vary
    told = (("access-control-allow-origin", origin), *vary)
    return (*told, *(PREFLIGHT if method == "OPTIONS" else EXPOSED))
