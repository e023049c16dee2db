"""Migrations: bring a database to the revision this meterd was written for, and no further.

Rule 1: Alembic orders the revisions and writes the text; asyncpg runs it, one transaction a
revision, so a migration that is killed anywhere has not happened and is simply run again.
Rule 2: every transaction takes the same advisory lock and looks again where the database is:
two processes that start together migrate it once.
Rule 3: a database written by a newer meterd is refused. Nothing is ever downgraded.
Rule 4: what a revision said when it was run is kept as a checksum; one that was edited since is
refused, because two databases of the same revision must be the same.
Rule 5: Alembic is loaded when a revision has to be run: most starts find nothing to do.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import hashlib
import io
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import attrs

from meterd.adapters.asyncio_thread import AsyncioThread
from meterd.adapters.postgres.errors import translated
from meterd.adapters.postgres.pool import CONNECT_S
from meterd.errors import ConfigError, StoreRejectedError


SCRIPTS = Path(__file__).parent / "migrations"

LOCK_KEY = 0x6D65746572640001
"""Key of the advisory lock: "meterd" in ASCII and a number of our own. The owner's is another."""

MIGRATE_S = 3_600.0
"""Seconds a migration may take; building an index on a large ledger takes many minutes."""

VERSION_TABLE = "alembic_version"

CHECKSUM_TABLE = "migration_checksums"
"""Made by revision 0008; what ran before it is written down with it."""

# It tells what it loads, and how it writes text ("non-transactional DDL"): not how it is run.
logging.getLogger("alembic").setLevel(logging.WARNING)


@attrs.frozen(kw_only=True)
class Revision:
    """One step: where it starts from (None: an empty database), its name and what it does."""

    id: str
    down_id: str | None
    title: str
    sha256: str
    """Of its SQL file, in hexadecimal."""


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

        Errors: as `current`; StoreRejectedError when a newer meterd wrote the database, or when a
        revision that was run said something else then.
        """
        known = self._revisions()
        pending = _after(known, await self.current())
        _assert_unedited(known, await self.portal.run(_checksums_of, self.dsn))
        return pending

    async def may_run(self) -> bool:
        """Tell whether the role of the URL may change the tables. Errors: as `current`."""
        return await self.portal.run(_may_run, self.dsn)

    async def upgrade(self, say: Callable[[str], None] = lambda _: None) -> tuple[str, ...]:
        """Run what is pending and return the ids that were run by this call.

        `say` gets a sentence before each revision, and one in all for an empty database. Safe to
        repeat, to run twice at once and to kill. Errors: as `pending`.
        """
        done: list[str] = []
        is_empty = False
        while pending := await self.pending():
            step = pending[0]
            if step.down_id is None:
                is_empty = True
                say(f"making the tables (migrations {step.id} to {pending[-1].id})")
            elif not is_empty:
                say(f"migrating the database to {step.id}: {step.title}")
            run = tuple(each for each in self._revisions() if each.id <= step.id)
            if await self.portal.run(_run_step, self.dsn, step, self._text_of(step), run):
                done.append(step.id)
        return tuple(done)

    def _revisions(self) -> tuple[Revision, ...]:
        """Return all revisions that this meterd knows, oldest first."""
        files = (self.scripts / "versions").glob("[0-9]*.py")
        followers = {revision.down_id: revision for revision in map(_revision, files)}
        line: list[Revision] = []
        while (step := followers.pop(line[-1].id if line else None, None)) is not None:
            line.append(step)
        assert not followers, "revisions are one line without branches"
        return tuple(line)

    def _text_of(self, step: Revision) -> str:
        """Return the SQL of one step, with the change of the version table at its end."""
        from alembic.operations import Operations  # noqa: PLC0415  # rule 5
        from alembic.runtime.migration import MigrationContext  # noqa: PLC0415
        from alembic.script import ScriptDirectory  # noqa: PLC0415

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


async def assert_can_migrate(migrations: Migrations) -> None:
    """Refuse what cannot end well, before a meterd that runs is disturbed.

    Errors: ConfigError when revisions are pending and the role may not run them; as `pending`.
    """
    pending = await migrations.pending()
    if pending and not await migrations.may_run():
        raise ConfigError(
            f"The database needs migration {pending[0].id} and its role may not change tables: "
            "run `meterd migrate --grant-service ROLE` as their owner"
        )


def _revision(path: Path) -> Revision:
    """Read what a revision says of itself, without running it."""
    tree = ast.parse(path.read_text("utf-8"))
    said = {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return Revision(
        id=said["revision"],
        down_id=said["down_revision"],
        title=(ast.get_docstring(tree) or path.stem).partition("\n")[0].rstrip("."),
        sha256=hashlib.sha256(path.with_suffix(".sql").read_bytes()).hexdigest(),
    )


def _assert_unedited(known: tuple[Revision, ...], recorded: Mapping[str, str]) -> None:
    for revision in known:
        if recorded.get(revision.id, revision.sha256) != revision.sha256:
            raise StoreRejectedError(
                "use this database",
                f"its migration {revision.id} was run with another text than this meterd's: "
                "install the released version again, a released migration is never edited",
            )


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


async def _checksums_of(dsn: str) -> dict[str, str]:
    with translated("read the checksums of migrations"):
        async with asyncio.timeout(MIGRATE_S), _connected(dsn) as connection:
            if await connection.fetchval("SELECT to_regclass($1)", CHECKSUM_TABLE) is None:
                return {}
            rows = await connection.fetch(f"SELECT revision, sha256 FROM {CHECKSUM_TABLE}")  # noqa: S608  # a constant
            return {row["revision"]: row["sha256"] for row in rows}


async def _may_run(dsn: str) -> bool:
    with translated("look at the role's rights"):
        async with asyncio.timeout(MIGRATE_S), _connected(dsn) as connection:
            return bool(
                await connection.fetchval(
                    """
                    SELECT has_schema_privilege(current_schema(), 'CREATE') AND NOT EXISTS (
                        SELECT FROM pg_class WHERE oid = to_regclass($1)
                            AND NOT pg_has_role(relowner, 'USAGE')
                    )
                    """,
                    VERSION_TABLE,
                )
            )


async def _run_step(dsn: str, step: Revision, text: str, run: tuple[Revision, ...]) -> bool:
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
            if await connection.fetchval("SELECT to_regclass($1)", CHECKSUM_TABLE) is not None:
                await connection.executemany(
                    f"INSERT INTO {CHECKSUM_TABLE} (revision, sha256) VALUES ($1, $2) "  # noqa: S608  # a constant
                    "ON CONFLICT DO NOTHING",
                    [(each.id, each.sha256) for each in run],
                )
            return True


async def _current(connection: asyncpg.Connection[asyncpg.Record]) -> str | None:
    if await connection.fetchval("SELECT to_regclass($1)", VERSION_TABLE) is None:
        return None
    revision: str | None = await connection.fetchval(
        f"SELECT version_num FROM {VERSION_TABLE}"  # noqa: S608  # a constant
    )
    return revision
