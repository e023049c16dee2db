"""An index for the events of customers that nobody knew when they came.

Revision ID: 0009
"""

from __future__ import annotations

from meterd.adapters.postgres.migrations.sql import run_sql_beside


revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Create what `0009_strangers.sql` says."""
    run_sql_beside(__file__)
