"""docs/reference/schema.md against a migrated database.

`WRITE_DOCS=1` writes the list of tables anew from the database; what people have written in its
last column and under its headings is kept.
"""

from __future__ import annotations

import os
import re

import attrs
import pytest

from meterd.adapters.postgres.pool import Connection, PostgresPools
from tests.integration.docs.pages import ROOT


PATH = ROOT / "docs/reference/schema.md"
HEADING = "## All tables"
FIRST_TABLE = re.compile(r"^### `", re.MULTILINE)

COLUMNS = """
SELECT c.table_name, c.column_name, format_type(a.atttypid, a.atttypmod), c.is_nullable = 'YES'
FROM information_schema.columns c
JOIN pg_attribute a ON a.attname = c.column_name
 AND a.attrelid = format('%I.%I', c.table_schema, c.table_name)::regclass
JOIN information_schema.tables t USING (table_schema, table_name)
WHERE c.table_schema = 'public' AND t.table_type = 'BASE TABLE'
ORDER BY c.table_name, c.ordinal_position
"""

PRISMA_TYPES = {
    "String": "text",
    "Int": "integer",
    "BigInt": "bigint",
    "Json": "jsonb",
    "@db.Decimal(10, 6)": "numeric(10,6)",
    "@db.Decimal(10, 2)": "numeric(10,2)",
    "@db.Timestamptz(6)": "timestamp with time zone",
}

PROMISED = {
    "usage_records": {
        "id": "text",
        "organization_id": "text",
        "user_id": "text",
        "resource_type": "text",
        "quantity": "integer",
        "unit_cost": "numeric(10,6)",
        "total_cost": "numeric(10,6)",
        "metadata": "jsonb",
        "timestamp": "timestamp with time zone",
        "billing_period": "text",
    },
    "subscription_usage": {
        "id": "text",
        "organization_id": "text",
        "billing_period": "text",
        "plan_tier": "text",
        "agent_minutes_used": "integer",
        "agent_minutes_limit": "integer",
        "api_calls_used": "bigint",
        "total_cost_usd": "numeric(10,2)",
        "overage_charges_usd": "numeric(10,2)",
        "last_updated": "timestamp with time zone",
    },
}


@attrs.frozen
class Column:
    """One column as the database has it."""

    name: str
    type: str
    is_nullable: bool


async def columns_of(pools: PostgresPools) -> dict[str, list[Column]]:
    """Return every table of a migrated database with its columns, in order."""

    async def fetch(connection: Connection) -> list[tuple[str, str, str, bool]]:
        return [tuple(row) for row in await connection.fetch(COLUMNS)]

    found: dict[str, list[Column]] = {}
    for table, name, kind, is_nullable in await pools.read("list the columns", fetch):
        found.setdefault(table, []).append(Column(name, kind, is_nullable))
    return found


def list_of(tables: dict[str, list[Column]], page: str) -> str:
    """Return the list of tables, with what the page says for people kept."""
    parts = []
    for table, columns in tables.items():
        about, meanings = said_of(table, page)
        rows = [
            f"| `{column.name}` | {column.type}{' or null' if column.is_nullable else ''} "
            f"| {meanings.get(column.name, '')} |".replace("|  |", "| |")
            for column in columns
        ]
        head = ["| column | type | meaning |", "|---|---|---|"]
        parts.append(
            "\n".join([f"### `{table}`", "", *([about, ""] if about else []), *head, *rows])
        )
    return "\n\n".join(parts) + "\n"


def said_of(table: str, page: str) -> tuple[str, dict[str, str]]:
    """Return what the page says of a table, and of each of its columns."""
    match = re.search(rf"^### `{table}`\n(.*?)(?=^### |\Z)", page, re.MULTILINE | re.DOTALL)
    section = match[1] if match else ""
    about = section.partition("| column")[0].strip()
    return about, dict(re.findall(r"^\| `(\w+)` \| [^|]* \| (.*?) ?\|$", section, re.MULTILINE))


async def test_the_page_lists_the_tables_as_they_are(pools: PostgresPools) -> None:
    """Whoever reads our tables trusts this page; a migration changes it in the same commit."""
    page = PATH.read_text(encoding="utf-8")
    tables = await columns_of(pools)
    start = FIRST_TABLE.search(page)
    kept = page[: start.start()] if start else page.rstrip() + "\n\n"
    written = kept + list_of(tables, page)
    if os.environ.get("WRITE_DOCS") == "1":
        PATH.write_text(written, encoding="utf-8")
        return

    assert page == written, (
        "run WRITE_DOCS=1 .venv/bin/pytest tests/integration/docs/test_schema.py"
    )


async def test_what_others_rely_on_is_there(pools: PostgresPools) -> None:
    """These names are a promise to other people's programs."""
    tables = await columns_of(pools)
    promises = PATH.read_text(encoding="utf-8").partition("## Prisma")[0]

    for table, promised in PROMISED.items():
        there = {column.name: column.type for column in tables[table]}
        assert {name: there.get(name) for name in promised} == promised
        assert [name for name in promised if f"`{name}`" not in promises] == []


@pytest.mark.parametrize("table", PROMISED)
async def test_the_prisma_fragment_fits(table: str, pools: PostgresPools) -> None:
    """An application generates its client from it: a wrong type fails at run time only."""
    page = PATH.read_text(encoding="utf-8")
    (body,) = re.findall(
        rf"^model \w+ {{\n((?:(?!^}}).)*?@@map\(\"{table}\"\)\n)}}", page, re.MULTILINE | re.DOTALL
    )
    there = {column.name: column for column in (await columns_of(pools))[table]}
    fields = re.findall(r"^  (\w+) +(\w+)(\??) *(.*)$", body, re.MULTILINE)

    for name, kind, optional, attributes in fields:
        mapped = re.search(r'@map\("(\w+)"\)', attributes)
        column = there[mapped[1] if mapped else name]
        native = re.search(r"@db\.\w+\([\d, ]+\)", attributes)
        assert column.type == PRISMA_TYPES[native[0] if native else kind], name
        assert column.is_nullable == bool(optional), name
    assert len(fields) == len(PROMISED[table])
