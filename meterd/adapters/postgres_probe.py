"""Find out who answers at a port of this machine: our server, somebody else's, or nobody.

Rule 1: only a connection tells. A pid file outlives its process, and its number is reused.
Rule 2: a server is ours when it takes our password and names our cluster as its data directory.
The coroutine here runs on the asyncio loop; everything asyncpg can raise ends up as an `Answer`.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import asyncpg
import attrs


CONNECT_TIMEOUT_S = 5.0
"""Seconds to connect and ask; a server on this machine answers in milliseconds unless frozen."""

HOST = "127.0.0.1"
USER = "meterd"
DATABASE = "meterd"


class Presence(Enum):
    """What stands behind the port."""

    NOBODY = "nobody"
    """Nothing listens, or what listened went away in the middle."""
    NOT_READY = "not ready"
    """A PostgreSQL that is starting, recovering, stopping or full; whose is not known."""
    SILENT = "silent"
    """Something that takes connections and says nothing: a frozen server, or no server at all."""
    STRANGER = "stranger"
    """Something that is not our server."""
    OURS = "ours"


@attrs.frozen(kw_only=True)
class Answer:
    """What a probe found; the last two are known when the server is ours."""

    presence: Presence
    detail: str = ""
    postmaster_pid: int | None = None
    has_database: bool = False


async def probe(port: int, password: str, cluster: Path) -> Answer:
    """Connect to the port and ask which cluster it serves. Runs on the asyncio loop.

    `cluster` is absolute and without symbolic links, as it was given to the server.
    """
    try:
        connection = await asyncpg.connect(
            host=HOST,
            port=port,
            user=USER,
            password=password,
            database="postgres",
            ssl=False,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=CONNECT_TIMEOUT_S,
        )
        try:
            # The server reads its own pid file: asked over the connection, it is no stale one.
            row = await connection.fetchrow(
                "SELECT current_setting('data_directory') AS directory,"
                " split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int AS pid,"
                " EXISTS (SELECT FROM pg_database WHERE datname = $1) AS has_database",
                DATABASE,
            )
        finally:
            connection.terminate()
    except TimeoutError:
        return Answer(presence=Presence.SILENT, detail="no answer in time")
    except (asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError) as error:
        return Answer(presence=Presence.NOT_READY, detail=str(error))
    except (
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.UndefinedFileError,
        asyncpg.InsufficientPrivilegeError,
        asyncpg.InvalidCatalogNameError,
    ) as error:
        return Answer(presence=Presence.STRANGER, detail=str(error))
    except asyncpg.OperatorInterventionError as error:  # shut down while we asked
        return Answer(presence=Presence.NOT_READY, detail=str(error))
    except (asyncpg.ConnectionDoesNotExistError, OSError) as error:
        return Answer(presence=Presence.NOBODY, detail=str(error))
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        return Answer(presence=Presence.STRANGER, detail=str(error))
    if row is None or row["directory"] != str(cluster):
        return Answer(presence=Presence.STRANGER, detail="it serves another data directory")
    return Answer(
        presence=Presence.OURS, postmaster_pid=row["pid"], has_database=row["has_database"]
    )
