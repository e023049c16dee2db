"""`meterd actors`: what every actor of a running meterd does, and an operator's hands on them."""

from __future__ import annotations

import json
import time
from typing import Any

import click
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from meterd.actors.inspection import SORTS
from meterd.cli import ExitCode, refuse
from meterd.cli._admin import Admin, asks_meterd, show_json, show_table
from meterd.cli._examples import examples


TOP_TITLES = (
    *("ACTOR", "PHASE", "MSG/S", "MAILBOX", "PEAK", "UNFLUSHED", "STRIKES", "RESTARTS", "IDLE S"),
    "LAST ERROR",
)
ERROR_CHARACTERS = 60

address_argument = click.argument("address", metavar="ACTOR")
reason_option = click.option("--reason", help="Why; kept in the audit log.")


@click.group()
def command() -> None:
    """Show and steer the actors of a running meterd.

    An ACTOR is an organization's id, or an address such as service/ledger. The admin key comes
    from METERD_ADMIN_KEY.
    """


@command.command(
    epilog=examples(
        "meterd actors top --sort strikes", "meterd actors top --kind service --every 2"
    )
)
@click.option("--sort", type=click.Choice(SORTS), default="rate", show_default=True)
@click.option("--kind", type=click.Choice(("organization", "service")), help="Only these.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=20, show_default=True)
@click.option("--every", type=click.FloatRange(0.5, 3_600), help="Again and again, in seconds.")
@asks_meterd
def top(
    *, admin: Admin, as_json: bool, sort: str, kind: str | None, limit: int, every: float | None
) -> None:
    """List the busiest actors, or the first in another order."""
    while True:
        found = admin.get("actors", sort=sort, kind=kind, limit=limit)["data"]
        if as_json:
            show_json(found)
        else:
            if every is not None:
                click.clear()
            show_table(TOP_TITLES, [_row(actor) for actor in found])
        if every is None:
            return
        time.sleep(every)


@command.command(
    epilog=examples("meterd actors show acme", "meterd actors show service/ledger --json")
)
@address_argument
@asks_meterd
def show(*, admin: Admin, as_json: bool, address: str) -> None:
    """Show everything that is known of one actor."""
    actor = admin.get(f"actors/{_address(address)}")
    if as_json:
        show_json(actor)
        return
    for name, value in actor.items():
        if isinstance(value, dict):
            click.echo(f"{name}:")
            for inner, each in value.items():
                click.echo(f"  {inner}: {each}")
        else:
            click.echo(f"{name}: {value}")


@command.command(
    epilog=examples(
        "meterd actors trace acme --live", 'meterd actors trace acme --on --reason "ticket 17"'
    )
)
@address_argument
@click.option("--live", is_flag=True, help="Show messages as they happen, until Ctrl-C.")
@click.option(
    "--on/--off", "switch", default=None, help="Write messages down from now on, or stop."
)
@reason_option
@asks_meterd
def trace(
    *,
    admin: Admin,
    as_json: bool,
    address: str,
    live: bool,
    switch: bool | None,
    reason: str | None,
) -> None:
    """Show an organization's last messages and what came of them."""
    where = f"actors/{_address(address)}/trace"
    if switch is not None:
        body = {"on": switch} | ({} if reason is None else {"reason": reason})
        admin.post(where, body)
        click.echo(f"trace of {address} is {'on' if switch else 'off'}", err=True)
        return
    if live:
        _watch(admin, where, as_json=as_json)
        return
    entries = admin.get(where)["data"]
    if as_json:
        show_json(entries)
        return
    if not entries:
        click.echo("nothing: switch it on with --on, or watch with --live", err=True)
    for entry in entries:
        click.echo(_line(entry))


@command.command(epilog=examples('meterd actors restart service/ledger --reason "mended"'))
@address_argument
@reason_option
@asks_meterd
def restart(*, admin: Admin, as_json: bool, address: str, reason: str | None) -> None:
    """Read an organization again from the store, or start a service actor again."""
    _hand(admin, "restart", address, reason, as_json=as_json)


@command.command(epilog=examples('meterd actors release acme --reason "mended"'))
@address_argument
@reason_option
@asks_meterd
def release(*, admin: Admin, as_json: bool, address: str, reason: str | None) -> None:
    """Forgive a quarantined organization at once."""
    _hand(admin, "release", address, reason, as_json=as_json)


@command.command(epilog=examples("meterd actors passivate acme"))
@address_argument
@reason_option
@asks_meterd
def passivate(*, admin: Admin, as_json: bool, address: str, reason: str | None) -> None:
    """Let an idle organization leave memory."""
    _hand(admin, "passivate", address, reason, as_json=as_json)


def _hand(admin: Admin, verb: str, address: str, reason: str | None, *, as_json: bool) -> None:
    body = {} if reason is None else {"reason": reason}
    actor = admin.post(f"actors/{_address(address)}/{verb}", body)
    if as_json:
        show_json(actor)
    elif actor["in_memory"]:
        click.echo(f"{actor['address']} is {actor['phase']}")
    else:
        click.echo(f"{actor['address']} has left memory")


def _watch(admin: Admin, where: str, *, as_json: bool) -> None:
    url = "ws" + admin.url.removeprefix("http") + f"/admin/v1/{where}"
    try:
        with connect(url, additional_headers=admin.headers, proxy=None) as socket:
            for text in socket:
                message = json.loads(text)
                if as_json:
                    click.echo(json.dumps(message))
                elif message["type"] == "message":
                    click.echo(_line(message))
                elif message["type"] == "skipped":
                    click.echo(f"({message['count']} messages were not shown)")
            code, reason = socket.close_code, socket.close_reason
    except (OSError, InvalidHandshake, ConnectionClosed) as error:
        refuse(f"the live trace cannot be shown: {error}", ExitCode.FAILED)
    except KeyboardInterrupt:
        return
    refuse(f"the live trace ended with {code}: {reason}", ExitCode.FAILED)


def _line(entry: dict[str, Any]) -> str:
    skipped = f"  ({entry['skipped']} before were not written down)" if entry["skipped"] else ""
    return f"{entry['at']}  {entry['message']} -> {entry['outcome']}{skipped}"


def _row(actor: dict[str, Any]) -> tuple[Any, ...]:
    error = actor["last_error"]
    return (
        actor["address"],
        actor["phase"],
        actor["rate_per_s"],
        actor["mailbox"]["depth"],
        actor["mailbox"]["peak"],
        actor["unflushed"],
        actor["strikes"],
        actor["restarts"],
        actor["idle_ms"] // 1_000,
        "" if error is None else error[:ERROR_CHARACTERS],
    )


def _address(text: str) -> str:
    return text if "/" in text else f"organization/{text}"
