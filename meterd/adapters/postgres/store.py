"""Everything meterd keeps in PostgreSQL behind one object: what the ports ask for.

The nouns have files of their own: ledger.py writes facts, loading.py reads them back, keys.py and
directory.py do what their names say. `PostgresStore` is their sum for who needs all of it.
"""

from __future__ import annotations

import attrs

from meterd.adapters.postgres.answers import PostgresAnswers
from meterd.adapters.postgres.directory import PostgresDirectory
from meterd.adapters.postgres.keys import PostgresKeys
from meterd.adapters.postgres.ledger import LedgerWriter
from meterd.adapters.postgres.loading import LedgerReader
from meterd.adapters.postgres.pool import PostgresPools
from meterd.adapters.postgres.usage import PostgresUsage
from meterd.ports.clock import Clock


@attrs.define(eq=False, slots=False)
class PostgresStore(
    LedgerWriter, LedgerReader, PostgresKeys, PostgresDirectory, PostgresUsage, PostgresAnswers
):
    """`LedgerStore`, `KeyStore`, `Directory`, `UsageBooks` on a pair of pools, for one epoch."""

    pools: PostgresPools
    epoch: int = attrs.field(kw_only=True)
    clock: Clock = attrs.field(kw_only=True)
