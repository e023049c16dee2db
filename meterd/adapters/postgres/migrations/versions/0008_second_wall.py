"""Row-level security: a second wall between organizations, and checksums of migrations.

Revision ID: 0008
"""

from __future__ import annotations

from meterd.adapters.postgres.migrations.sql import run_sql_beside


revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Run `0008_second_wall.sql`."""
    run_sql_beside(__file__)
