"""Migrations: bring a database to the revision this meterd was written for, and no further.

Rule 1: Alembic orders the revisions and writes the text; asyncpg runs it, one transaction a
revision, so a migration that is killed anywhere has not happened and is simply run again.
Rule 2: every transaction takes the same advisory lock and looks again where the database is:
two processes that start together migrate it once.
Rule 3: a database written by a newer meterd is refused. Nothing is ever downgraded.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import attrs
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory

from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.postgres.errors import translated
from meterd.adapters.postgres.pool import CONNECT_S
from meterd.errors import StoreRejectedError


SCRIPTS = Path(__file__).parent / "migrations"

LOCK_KEY = 0x6D65746572640001
"""Key of the advisory lock: "meterd" in ASCII and a number of our own. The owner's is another."""

MIGRATE_S = 3_600.0
"""Seconds a migration may take; building an index on a large ledger takes many minutes."""

VERSION_TABLE = "alembic_version"

# It tells how it writes text ("non-transactional DDL"), which is not how the text is run.
logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)


@attrs.frozen(kw_only=True)
class Revision:
    """One step: where it starts from (None: an empty database), its name and what it does."""

    id: str
    down_id: str | None
    title: str


@attrs.frozen
class Migrations:
    """The migrations of one database."""

    portal: AsyncioThread
    dsn: str = attrs.field(repr=False)
    scripts: Path = SCRIPTS

    async def current(self) -> str | None:
        """Return the database's revision, or None when it has no meterd tables.

        Errors: StoreUnavailableError, StoreRejectedError; PortalClosedError.
        """
        return await self.portal.run(_current_of, self.dsn)

    async def pending(self) -> tuple[Revision, ...]:
        """Return the revisions still to be run, in order.

        Errors: as `current`; StoreRejectedError when a newer meterd wrote the database.
        """
        return _after(self._revisions(), await self.current())

    async def upgrade(self, say: Callable[[str], None] = lambda _: None) -> tuple[str, ...]:
        """Run what is pending and return the ids that were run by this call.

        `say` gets a sentence before each revision. Safe to repeat, to run twice at once and to
        kill. Errors: as `pending`.
        """
        done: list[str] = []
        while pending := await self.pending():
            step = pending[0]
            say(f"migrating the database to {step.id}: {step.title}")
            if await self.portal.run(_run_step, self.dsn, step, self._text_of(step)):
                done.append(step.id)
        return tuple(done)

    def _revisions(self) -> tuple[Revision, ...]:
        """Return all revisions that this meterd knows, oldest first."""
        directory = ScriptDirectory(str(self.scripts))
        return tuple(_revision(script) for script in directory.walk_revisions())[::-1]

    def _text_of(self, step: Revision) -> str:
        """Return the SQL of one step, with the change of the version table at its end."""
        directory = ScriptDirectory(str(self.scripts))
        text = io.StringIO()

        def steps(_heads: Any, _context: MigrationContext) -> Any:
            return directory._upgrade_revs(step.id, step.down_id or "base")  # noqa: SLF001  # what alembic.command.upgrade calls

        context = MigrationContext.configure(
            dialect_name="postgresql",
            opts={
                "as_sql": True,
                "output_buffer": text,
                "transactional_ddl": False,  # the transaction around the step is ours
                "starting_rev": step.down_id,
                "version_table": VERSION_TABLE,
                "fn": steps,
                "script": directory,
            },
        )
        with Operations.context(context):
            context.run_migrations()
        return text.getvalue()


def _revision(script: Script) -> Revision:
    down_id = script.down_revision
    assert down_id is None or isinstance(down_id, str), "revisions are one line without branches"
    return Revision(id=script.revision, down_id=down_id, title=script.doc.rstrip("."))


def _after(known: tuple[Revision, ...], current: str | None) -> tuple[Revision, ...]:
    ids = [revision.id for revision in known]
    if current is None:
        return known
    if current not in ids:
        raise StoreRejectedError(
            "use this database",
            f"its schema {current} was written by a newer meterd, this one knows up to "
            f"{ids[-1]}: install the newer version again",
        )
    return known[ids.index(current) + 1 :]


# From here on everything runs on the asyncio loop.


@contextlib.asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(
        dsn,
        timeout=CONNECT_S,
        server_settings={
            "application_name": "meterd migrate",
            "statement_timeout": "0",  # MIGRATE_S bounds the whole step
            "timezone": "UTC",
        },
    )
    try:
        yield connection
    finally:
        connection.terminate()


async def _current_of(dsn: str) -> str | None:
    with translated("read the schema's revision"):
        async with asyncio.timeout(MIGRATE_S), _connected(dsn) as connection:
            return await _current(connection)


async def _run_step(dsn: str, step: Revision, text: str) -> bool:
    """Run one step in its transaction; False when another process was quicker."""
    with translated(f"migrate the database to {step.id}"):
        async with (
            asyncio.timeout(MIGRATE_S),
            _connected(dsn) as connection,
            connection.transaction(),
        ):
            await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
            if await _current(connection) != step.down_id:
                return False
            if step.down_id is None:  # Alembic creates it; an empty one is in the way
                await connection.execute(f"DROP TABLE IF EXISTS {VERSION_TABLE}")
            await connection.execute(text)
            return True


async def _current(connection: asyncpg.Connection[asyncpg.Record]) -> str | None:
    if await connection.fetchval("SELECT to_regclass($1)", VERSION_TABLE) is None:
        return None
    revision: str | None = await connection.fetchval(
        f"SELECT version_num FROM {VERSION_TABLE}"  # noqa: S608  # a constant
    )
    return revision
