"""What closed periods owe, and how far each is charged.

Revision ID: 0004
"""

from __future__ import annotations

from meterd.adapters.postgres.migrations.sql import run_sql_beside


revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create what `0004_charges.sql` says."""
    run_sql_beside(__file__)
