"""How a revision says what it does: with the SQL file of its own name."""

from __future__ import annotations

from pathlib import Path

from alembic import op


def run_sql_beside(revision_file: str) -> None:
    """Emit `<revision>.sql` verbatim; comments, `%` and `:` in it mean what PostgreSQL says."""
    sql = Path(revision_file).with_suffix(".sql").read_text("utf-8")
    # The text that follows is Alembic's: a last statement without its semicolon must not join it.
    op.get_context().impl.static_output(f"{sql}\n;")
