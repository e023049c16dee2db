"""`meterd stripe`: set a Stripe account up, and look at the inbox of a running meterd.

`setup` and `smoke` ask Stripe with METERD_STRIPE_API_KEY; `events` and `retry` a running meterd.
Exit codes of these two: 0 everything is as it should be, 1 something is missing, differs or failed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence

import attrs
import click
import trio

from meterd.actors.stripe_following import RECONCILED, SIGNALS
from meterd.adapters.catalogue import load_catalogue
from meterd.adapters.clock import SystemClock
from meterd.adapters.stripe.client import open_stripe
from meterd.adapters.stripe.setup import StripeSetup
from meterd.adapters.stripe.smoke import Smoke, SmokeStep, refuse_live_key
from meterd.cli import ExitCode
from meterd.cli._admin import Admin, asks_meterd, show_json, show_table
from meterd.cli._examples import examples
from meterd.cli._options import configured
from meterd.config import Config, LoadedConfig
from meterd.errors import ConfigError


@click.group()
def command() -> None:
    """Set a Stripe account up, try a sandbox, and work with the inbox of Stripe's events."""


@command.command(
    epilog=examples(
        "meterd stripe setup",
        "meterd stripe setup --webhook-url https://example.com/api/webhooks/stripe --apply",
    )
)
@click.option("--apply", "applies", is_flag=True, help="Make it so; without it nothing is changed.")
@click.option("--webhook-url", metavar="URL", help="Where Stripe reaches meterd's webhook route.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@configured("plans")
def setup(
    *, loaded: LoadedConfig, applies: bool, webhook_url: str | None, as_json: bool
) -> ExitCode:
    """Look whether Stripe has the products, prices, portal and webhook that meterd needs.

    The key comes from METERD_STRIPE_API_KEY, the prices from the plan catalogue.
    """
    found = trio.run(_set_up, loaded.config, webhook_url, applies)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "steps": [attrs.asdict(step) for step in found.steps],
                    "webhook_secret": found.webhook_secret,
                },
                indent=2,
            )
        )
    else:
        rows = [(step.state, step.what, step.detail) for step in found.steps]
        show_table(("STATE", "WHAT", "DETAIL"), rows)
        if found.webhook_secret is not None:
            click.echo(f"METERD_STRIPE_WEBHOOK_SECRETS={found.webhook_secret}")
            click.echo("Stripe shows this secret only now: keep it.", err=True)
    is_open = any(step.state in {"missing", "differs"} for step in found.steps)
    return ExitCode.FAILED if is_open else ExitCode.OK


@command.command(epilog=examples("meterd stripe smoke --apply"))
@click.option("--apply", "applies", is_flag=True, help="Do it; without it nothing is asked.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@configured("plans")
def smoke(*, loaded: LoadedConfig, applies: bool, as_json: bool) -> ExitCode:
    """Try everything that meterd asks of Stripe in a sandbox, and take it away again.

    Takes test keys only. Makes a product, a price, a customer, a subscription and invoice items of
    its own; it charges nobody and leaves nothing active behind.
    """
    key = _key(loaded.config)
    refuse_live_key(key)
    if not applies:
        click.echo("This is a test key. With --apply objects are made in its sandbox, and removed.")
        return ExitCode.OK
    steps, is_fine = trio.run(_smoke, loaded.config, key)
    if as_json:
        click.echo(json.dumps({"steps": [attrs.asdict(step) for step in steps]}, indent=2))
    else:
        rows = [("fine" if step.is_fine else "FAILED", step.what, step.detail) for step in steps]
        show_table(("STATE", "WHAT", "DETAIL"), rows)
    return ExitCode.OK if is_fine else ExitCode.FAILED


@command.command(epilog=examples("meterd stripe events --state dead"))
@click.option("--state", type=click.Choice(("pending", "done", "dead")), help="Only these.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, show_default=True)
@asks_meterd
def events(*, admin: Admin, as_json: bool, state: str | None, limit: int) -> None:
    """List the events in the inbox of a running meterd, newest received first."""
    found = admin.get("stripe/events", state=state, limit=limit)["data"]
    if as_json:
        show_json(found)
        return
    show_table(
        ("RECEIVED", "ID", "TYPE", "STATE", "TRIES", "OUTCOME", "LAST ERROR"),
        [
            (
                one["received_at"],
                one["id"],
                one["type"],
                one["state"],
                one["attempts"],
                one["outcome"],
                one["last_error"],
            )
            for one in found
        ],
    )


@command.command(epilog=examples("meterd stripe retry evt_0123"))
@click.argument("event_id")
@asks_meterd
def retry(*, admin: Admin, as_json: bool, event_id: str) -> None:
    """Work an event off again, whatever became of it."""
    answer = admin.post(f"stripe/events/{event_id}/retry")
    if as_json:
        show_json(answer)
    else:
        click.echo(f"{answer['id']} is {answer['state']}")


async def _set_up(config: Config, webhook_url: str | None, applies: bool) -> StripeSetup:
    async with open_stripe(
        _key(config), jitter=_jitter(), api_base=config.stripe_api_base
    ) as payments:
        made = StripeSetup(
            payments,
            load_catalogue(config.plans),
            sorted(SIGNALS - {RECONCILED}),
            webhook_url,
            applies=applies,
        )
        await made.run()
        return made


async def _smoke(config: Config, key: str) -> tuple[Sequence[SmokeStep], bool]:
    run_id = f"{random.SystemRandom().getrandbits(48):012x}"
    now_ms = SystemClock().now_ms()
    async with open_stripe(key, jitter=_jitter(), api_base=config.stripe_api_base) as payments:
        run = Smoke(payments, run_id, now_ms)
        is_fine = await run.run()
        return run.steps, is_fine


def _key(config: Config) -> str:
    """Return the API key. Errors: ConfigError when there is none."""
    if config.stripe_api_key is None:
        raise ConfigError("stripe_api_key is not set: set METERD_STRIPE_API_KEY.")
    return config.stripe_api_key.get_secret_value()


def _jitter() -> Iterator[float]:
    """Yield numbers in [0, 1) that spread retries apart."""
    chance = random.SystemRandom()
    while True:
        yield chance.random()
