"""People can be erased from the ledger: the one change that it allows.

Revision ID: 0007
"""

from __future__ import annotations

from meterd.adapters.postgres.migrations.sql import run_sql_beside


revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Run `0007_erasure.sql`."""
    run_sql_beside(__file__)
