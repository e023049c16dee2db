"""Notifications, the webhook endpoints they go to, and organizations' own thresholds.

Revision ID: 0006
"""

from __future__ import annotations

from meterd.adapters.postgres.migrations.sql import run_sql_beside


revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the tables of `0006_notifications.sql`."""
    run_sql_beside(__file__)
