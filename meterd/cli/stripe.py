"""`meterd stripe`: the inbox of Stripe's events in a running meterd."""

from __future__ import annotations

import click

from meterd.cli._admin import Admin, asks_meterd, show_json, show_table


@click.group()
def command() -> None:
    """Show the inbox of Stripe's events in a running meterd, and work an event off again.

    The admin key comes from METERD_ADMIN_KEY.
    """


@command.command()
@click.option("--state", type=click.Choice(("pending", "done", "dead")), help="Only these.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, show_default=True)
@asks_meterd
def events(*, admin: Admin, as_json: bool, state: str | None, limit: int) -> None:
    """List events, newest received first."""
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


@command.command()
@click.argument("event_id")
@asks_meterd
def retry(*, admin: Admin, as_json: bool, event_id: str) -> None:
    """Work an event off again, whatever became of it."""
    answer = admin.post(f"stripe/events/{event_id}/retry")
    if as_json:
        show_json(answer)
    else:
        click.echo(f"{answer['id']} is {answer['state']}")
