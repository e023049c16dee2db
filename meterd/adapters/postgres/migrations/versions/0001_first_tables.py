"""The first tables.

Revision ID: 0001
"""

from __future__ import annotations

from meterd.adapters.postgres.migrations.sql import run_sql_beside


revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables of `0001_first_tables.sql`."""
    run_sql_beside(__file__)
