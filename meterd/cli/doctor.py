"""`meterd doctor`: is everything meterd needs as it must be, and if not, what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator

import attrs
import click
import trio

from meterd.adapters import examination
from meterd.adapters.asyncio_thread import open_asyncio_thread
from meterd.adapters.clock import SystemClock
from meterd.adapters.embedded_postgres import attach_embedded_postgres
from meterd.adapters.examination import FINE, WARNING, WRONG, Finding
from meterd.cli import ExitCode
from meterd.cli._admin import show_table
from meterd.cli._examples import examples
from meterd.cli._options import configured
from meterd.config import Config, LoadedConfig
from meterd.errors import EmbeddedPostgresError


EMBEDDED_S = 20
"""Seconds that the embedded server may take: who asks has no patience, recovery has much."""


@click.command(
    epilog=examples(
        "meterd doctor --config meterd.toml", "meterd doctor --data-dir /var/lib/meterd --json"
    )
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@configured("data_dir", "database_url", "connections_max")
def command(*, loaded: LoadedConfig, as_json: bool) -> ExitCode:
    """Check configuration, database, clock, disk, Stripe and Redis, and say what to do.

    Changes nothing, and works beside a running meterd. Exit code 1 when something is wrong.
    """
    findings = [*_configuration(loaded), *trio.run(_examine, loaded.config)]
    if as_json:
        click.echo(json.dumps({"findings": [attrs.asdict(each) for each in findings]}, indent=2))
    else:
        show_table(
            ("STATE", "WHAT", "DETAIL"), [(each.state, each.what, each.detail) for each in findings]
        )
        for each in findings:
            if each.advice:
                click.echo(f"{each.what}: {each.advice}")
    return ExitCode.FAILED if any(each.state == WRONG for each in findings) else ExitCode.OK


def _configuration(loaded: LoadedConfig) -> Iterator[Finding]:
    if loaded.unknown_variables:
        detail = f"unknown: {', '.join(loaded.unknown_variables)}"
        yield Finding("configuration", WARNING, detail, "correct them; see meterd config")
    else:
        yield Finding("configuration", FINE, "every setting makes sense")
    config = loaded.config
    if config.allow_unsafe_database:
        advice = "switch allow_unsafe_database off outside of tests"
        yield Finding("safety", WRONG, "an unsafe database is allowed", advice)
    if config.stripe_api_key is not None and not config.stripe_webhook_secrets:
        advice = "set METERD_STRIPE_WEBHOOK_SECRETS; meterd stripe setup tells the secret"
        yield Finding("webhook", WARNING, "Stripe's events cannot be verified", advice)


async def _examine(config: Config) -> list[Finding]:
    findings = [
        examination.examine_account(),
        examination.examine_descriptors(config.connections_max),
    ]
    if config.data_dir is not None:
        findings.append(examination.examine_disk(config.data_dir))
    findings += await _database(config)
    if config.stripe_api_key is not None:
        key = config.stripe_api_key.get_secret_value()
        findings.append(await examination.examine_stripe(key, config.stripe_api_base))
    if config.redis_url is not None:
        findings.append(await examination.examine_redis(config.redis_url.get_secret_value()))
    return findings


async def _database(config: Config) -> list[Finding]:
    clock = SystemClock()
    async with open_asyncio_thread() as portal:
        if config.database_url is not None:
            dsn = config.database_url.get_secret_value()
            return await examination.examine_database(portal, dsn, clock)
        assert config.data_dir is not None, "the configuration names one of the two"
        try:
            with trio.move_on_after(EMBEDDED_S):
                async with attach_embedded_postgres(portal, config.data_dir) as server:
                    return await examination.examine_database(portal, server.dsn, clock)
            detail = f"the embedded PostgreSQL does not answer within {EMBEDDED_S} s"
            advice = "see meterd's log: it recovers, or cannot write (is the disk full?)"
            return [Finding("database", WRONG, detail, advice)]
        except EmbeddedPostgresError as error:
            advice = "meterd serve creates it at its first start; else see the log of PostgreSQL"
            return [Finding("database", WARNING, str(error), advice)]
