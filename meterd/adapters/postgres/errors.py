"""What asyncpg and the network raise, translated once.

Rule 1: unavailable means "the same thing may work later, and a write may or may not have
happened"; rejected means "PostgreSQL understood and refused, and will refuse again".
Rule 2: when in doubt it is an outage. Retrying a refused batch costs time; treating an outage as
refused would set customers' facts aside.
Rule 3: messages name the SQLSTATE and the constraint, never DETAIL lines, which quote rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import asyncpg

from meterd.errors import StoreRejectedError, StoreUnavailableError


UNAVAILABLE_CLASSES = frozenset(
    {
        "08",  # connection exception
        "25",  # invalid transaction state: a standby is read-only until it is promoted
        "28",  # invalid authorization: while passwords are rotated
        "3D",  # invalid catalog name: while a database is being restored
        "40",  # transaction rollback: serialization failure, deadlock
        "53",  # insufficient resources: disk full, out of memory, too many connections
        "55",  # object not in prerequisite state: a lock that is held
        "57",  # operator intervention: shutdown, start-up, statement time-out
        "58",  # system error: I/O error
    }
)
"""SQLSTATE classes that pass. https://www.postgresql.org/docs/18/errcodes-appendix.html"""

RIGHT_MISSING = "42501"
"""Insufficient privilege: an operator's slip, mended by a grant. No fact is set aside for it."""


@contextlib.contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn what asyncpg raises into StoreUnavailableError or StoreRejectedError.

    `action` continues "store failed to …". A cancel passes through: it is no error.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        if is_outage(error):
            raise StoreUnavailableError(action, _described(error)) from error
        raise StoreRejectedError(action, _described(error)) from error
    except asyncpg.ClientConfigurationError as error:
        # A URL that makes no sense. (A value that does not fit its type is a PostgresError.)
        raise StoreRejectedError(action, str(error)) from error
    except TimeoutError as error:
        raise StoreUnavailableError(action, "no answer in time, outcome unknown") from error
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        # A dead connection shows as any of these, depending on what it was doing.
        raise StoreUnavailableError(action, str(error) or type(error).__name__) from error


def is_outage(error: asyncpg.PostgresError) -> bool:
    """Tell whether PostgreSQL may answer differently later."""
    state = error.sqlstate
    return state is None or state[:2] in UNAVAILABLE_CLASSES or state == RIGHT_MISSING


def _described(error: asyncpg.PostgresError) -> str:
    constraint = getattr(error, "constraint_name", None)
    text = f"{error.sqlstate} {error.args[0] if error.args else type(error).__name__}"
    return f"{text} [{constraint}]" if constraint else text
