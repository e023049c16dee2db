"""What an organization is told about itself: durable, once, and with an id of its own.

A notification is written with the facts that caused it, so it is sent if and only if they hold.
Who wants to know (webhooks, the live feed) reads it from there.
"""

from __future__ import annotations

import enum

import attrs


class NotificationKind(enum.Enum):
    """What can be told; the values are the `type` of outgoing webhooks."""

    THRESHOLD_REACHED = "usage.threshold_reached"
    GRACE_STARTED = "quota.grace_started"
    LIMIT_REACHED = "quota.limit_reached"
    RECOVERED = "quota.recovered"
    TASK_LOST = "task.lost"
    SUBSCRIPTION_UPDATED = "subscription.updated"
    PAYMENT_FAILED = "invoice.payment_failed"


@attrs.frozen(kw_only=True)
class Notification:
    """One thing that happened to an organization."""

    id: str
    at_ms: int
    kind: NotificationKind
    data_json: str
    seq: int
    """The fact it came with."""
