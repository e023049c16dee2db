"""`/healthz` (the process runs) and `/readyz` (it can do its work): for probes, without a key."""

from __future__ import annotations

import msgspec
from quart import Blueprint, Response

from meterd.web.reply import json_reply
from meterd.web.requests import response, services


health = Blueprint("health", __name__)


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The process runs."""

    status: str


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether requests can be served."""

    status: str
    missing: list[str]


@health.get("/healthz")
async def alive() -> Response:
    """Answer, which is all that liveness asks."""
    return response(json_reply(200, Health(status="ok")))


@health.get("/readyz")
async def ready() -> Response:
    """Return 200 when requests can be served, else 503 with what is missing."""
    bundle = services()
    missing = bundle.readiness.missing(unread_since_ms=bundle.keyring.failing_since_ms)
    if missing:
        content = Readiness(status="not_ready", missing=missing)
        return response(json_reply(503, content, (("retry-after", "1"),)))
    return response(json_reply(200, Readiness(status="ready", missing=[])))
