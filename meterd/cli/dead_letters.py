"""`meterd dead-letters`: what a running meterd has set aside because it could not be done."""

from __future__ import annotations

import click

from meterd.cli._admin import Admin, asks_meterd, show_json, show_table
from meterd.cli._examples import examples


@click.command(epilog=examples("meterd dead-letters --organization acme --limit 10"))
@click.option("--organization", metavar="ID", help="Only of this organization.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, show_default=True)
@asks_meterd
def command(*, admin: Admin, as_json: bool, organization: str | None, limit: int) -> None:
    """List messages that crashed their actor and facts that PostgreSQL refused, newest first.

    The admin key comes from METERD_ADMIN_KEY.
    """
    address = None if organization is None else f"organization/{organization}"
    found = admin.get("dead-letters", address=address, limit=limit)["data"]
    if as_json:
        show_json(found)
        return
    if not found:
        click.echo("no dead letters")
        return
    rows = [(one["at"], one["kind"], one["address"], one["error"]) for one in found]
    show_table(("AT", "KIND", "ACTOR", "ERROR"), rows)
