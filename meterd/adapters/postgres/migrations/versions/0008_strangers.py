"""An index for the events of customers that nobody knew when they came.

Revision ID: 0008
"""

from __future__ import annotations

from meterd.adapters.postgres.migrations.sql import run_sql_beside


revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Create what `0008_strangers.sql` says."""
    run_sql_beside(__file__)
