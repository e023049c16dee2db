"""Alembic's script directory: one revision a file in `versions/`, each with its SQL beside it."""
