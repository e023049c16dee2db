"""What Stripe tells: the inbox of events, and the objects as they were last seen.

Revision ID: 0002
"""

from __future__ import annotations

from meterd.adapters.postgres.migrations.sql import run_sql_beside


revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create what `0002_stripe_inbound.sql` says."""
    run_sql_beside(__file__)
