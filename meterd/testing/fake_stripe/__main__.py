"""`python -m meterd.testing.fake_stripe --port 0`: run the fake and print its URL."""

from __future__ import annotations

import signal
import sys

import click
import trio

from meterd.testing.fake_stripe.handle import open_fake_stripe
from meterd.testing.fake_stripe.world import Settings


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=12111, show_default=True, help="0 takes a free one.")
@click.option("--seed", default=0, show_default=True, help="Decides ids and faults.")
@click.option("--frozen", is_flag=True, help="Time moves only by POST /_fake/clock.")
@click.option("--api-key", default=None, help="The only key accepted; default: any.")
@click.option("--webhook-url", default=None, help="Endpoint to register at the start.")
@click.option("--webhook-secret", default=None, help="Its signing secret; default: a new one.")
def main(
    *,
    host: str,
    port: int,
    seed: int,
    frozen: bool,
    api_key: str | None,
    webhook_url: str | None,
    webhook_secret: str | None,
) -> None:
    """Run a fake Stripe until it is interrupted."""

    async def run() -> None:
        settings = Settings(api_key=api_key)
        async with open_fake_stripe(
            seed=seed, settings=settings, ticks=not frozen, host=host, port=port
        ) as fake:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                if webhook_url is not None:
                    secret = fake.add_endpoint(webhook_url, secret=webhook_secret)
                    click.echo(f"signing {webhook_url} with {secret}", err=True)
                click.echo(f"fake stripe ready on {fake.url}")
                sys.stdout.flush()
                async for _ in signals:
                    return

    trio.run(run)


if __name__ == "__main__":
    main()
