"""PostgreSQL: pools, migrations and the store, on asyncpg and its own thread."""
