"""`/metrics` for Prometheus: without a key, so keep it away from the internet at your proxy."""

from __future__ import annotations

from quart import Blueprint, Response, request

from meterd.web.reply import Reply
from meterd.web.requests import response, services


metrics = Blueprint("metrics", __name__)


@metrics.get("/metrics")
async def show() -> Response:
    """Return every metric as text, in the format that is asked for."""
    text, media_type = await services().metrics.exposition(request.headers.get("accept", ""))
    return response(Reply(200, text, (("content-type", media_type),)))
