"""Usage events, sums per day, remembered answers, and the indexes that lists of the ledger need.

Revision ID: 0005
"""

from __future__ import annotations

from meterd.adapters.postgres.migrations.sql import run_sql_beside


revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the tables of `0005_events_and_days.sql`."""
    run_sql_beside(__file__)
