"""What a refusing answer means: the exception it becomes, and whether waiting may cure it."""

from __future__ import annotations

from collections.abc import Mapping

from meterd.client import wire
from meterd.client.errors import MeterdClientError, refusal
from meterd.client.quota import Quota, quota_in
from meterd.client.wire import Message


TRANSIENT_CODES = frozenset(
    {
        "actor_crashed",
        "internal_error",
        "organization_quarantined",
        "overloaded",
        "request_timeout",
        "shutting_down",
        "store_unavailable",
    }
)
"""Errors that pass: the same message is sent again after a back-off."""


def refusal_in(message: Message, *, quota: Quota | None, stopped: bool) -> MeterdClientError:
    """Give the exception of a `denied`, a `stop` or a refusing `error`.

    `quota` is the last one known, for a message that carries none.
    """
    code = wire.text(message, "code", absent="refused")
    inside = message.get("quota")
    upgrade_url = wire.text(message, "upgrade_url") or (
        wire.text(inside, "upgrade_url") if isinstance(inside, Mapping) else ""
    )
    return refusal(
        code,
        wire.text(message, "message", absent=code),
        quota=quota_in(message) or quota,
        upgrade_url=upgrade_url or None,
        resets_at=wire.text(message, "resets_at") or None,
        stopped=stopped,
    )
