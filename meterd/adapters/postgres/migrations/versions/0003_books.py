"""Jobs, daily metrics, revenue snapshots and reports.

Revision ID: 0003
"""

from __future__ import annotations

from meterd.adapters.postgres.migrations.sql import run_sql_beside


revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the tables of `0003_books.sql`."""
    run_sql_beside(__file__)
