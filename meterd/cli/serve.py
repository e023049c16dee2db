"""`meterd serve`: run the service until it is told to stop."""

from __future__ import annotations

import gc
import resource
import sys

import click
import trio

from meterd.cli._examples import examples
from meterd.cli._options import configured
from meterd.config import Config, LoadedConfig
from meterd.system import Meterd, run_meterd


COLLECT_EVERY = 10_000
"""Objects between two looks for cycles: more than the facts of one flush, 0.3 ms a look."""


@click.command(
    epilog=examples(
        "meterd serve --data-dir /var/lib/meterd",
        "METERD_DATABASE_URL=postgresql://meterd@db/meterd meterd serve --bind 0.0.0.0:8080",
    )
)
@configured()
def command(*, loaded: LoadedConfig) -> None:
    """Run meterd: meter agents, enforce plans, keep the ledger.

    Prints one line to standard output when it accepts requests; everything else goes to standard
    error. SIGTERM or Ctrl-C stops it cleanly: nothing acknowledged is lost.
    """
    _raise_descriptor_limit()
    trio.run(_serve, loaded.config)


async def _serve(config: Config) -> None:
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[Meterd]) -> None:
            await run_meterd(config, say=_say, task_status=task_status)

        meterd = await nursery.start(run)
        _calm_collector()
        print(f"meterd ready on {meterd.url}", flush=True)


def _calm_collector() -> None:
    """Let the cycle collector leave alone what lives for ever, and look at the rest less often.

    States and facts hold no cycles, and facts live for one flush: with the interpreter's threshold
    of 700 a quarter of a heartbeat's time went into looking at facts that were about to go.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY, 5, 10)


def _say(text: str) -> None:
    print(f"meterd: {text}", file=sys.stderr, flush=True)


def _raise_descriptor_limit() -> None:
    """Allow as many open files as the system lets us: one connection is one file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
