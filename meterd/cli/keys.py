"""`meterd keys`: make, list and revoke API keys in the database, beside a running meterd.

What is created works at once; what is revoked is refused by a running meterd within a second.
"""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import click
import trio

from meterd.actors.keyring import ADMIN_SCOPE, ORGANIZATION_SCOPES, KeyRing
from meterd.adapters.clock import SystemClock
from meterd.adapters.ids import IdSource
from meterd.adapters.postgres.keys import PostgresKeys
from meterd.cli import ExitCode, refuse
from meterd.cli._database import open_database
from meterd.cli._examples import examples
from meterd.cli._options import DATABASE, configured
from meterd.config import Config, LoadedConfig
from meterd.core.units import rfc3339
from meterd.errors import OrganizationUnknownError
from meterd.ports.keys import StoredKey


T = TypeVar("T")

PAGE = 500
"""Keys read at once."""

BY_COMMAND_LINE = "meterd keys"
"""Who did it, in the audit log."""

organization_option = click.option(
    "--organization", metavar="ID", help="Whose keys; without it admin keys are meant."
)


@click.group()
def command() -> None:
    """Make, list and revoke API keys in the database.

    Works beside a running meterd, which refuses what was revoked within a second.
    """


@command.command(
    epilog=examples(
        "meterd keys create --organization acme --scope agent --name fleet",
        'meterd keys create --name "night shift"',
    )
)
@organization_option
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(sorted({ADMIN_SCOPE, *ORGANIZATION_SCOPES})),
    help="What the key may do; give it again for more. Admin keys have scope admin.",
)
@click.option("--name", default="", help="What you will know it by, at most 100 characters.")
@configured(*DATABASE)
def create(
    *, loaded: LoadedConfig, organization: str | None, scopes: tuple[str, ...], name: str
) -> None:
    """Make a key and print it, and nothing else: it is shown only this once."""
    wanted = set(scopes) or ({ADMIN_SCOPE} if organization is None else set())
    allowed = {ADMIN_SCOPE} if organization is None else ORGANIZATION_SCOPES
    if not wanted:
        raise click.BadParameter("say what the key may do", param_hint="--scope")
    if not allowed.issuperset(wanted):
        whose = "an admin key" if organization is None else "a key of an organization"
        raise click.BadParameter(
            f"{whose} can have: {', '.join(sorted(allowed))}", param_hint="--scope"
        )
    if len(name) > 100 or not name.isprintable():  # noqa: PLR2004  # as the help says
        raise click.BadParameter("at most 100 printable characters", param_hint="--name")

    async def make(keyring: KeyRing) -> str:
        _, text = await keyring.create(
            organization, scopes=wanted, name=name, created_by=BY_COMMAND_LINE
        )
        return text

    try:
        text = _on_keyring(loaded.config, make)
    except OrganizationUnknownError:
        refuse("no organization has this id", ExitCode.USAGE)
    click.echo(text)


@command.command("list", epilog=examples("meterd keys list --organization acme"))
@organization_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@configured(*DATABASE)
def show(*, loaded: LoadedConfig, organization: str | None, as_json: bool) -> None:
    """List keys, newest first, revoked ones too; a key itself is stored nowhere."""

    async def look(keyring: KeyRing) -> Sequence[StoredKey]:
        found: list[StoredKey] = []
        after = None
        while page := await keyring.keys_of(organization, after=after, limit=PAGE):
            found += page
            after = (page[-1].created_at_ms, page[-1].id)
        return found

    found = _on_keyring(loaded.config, look)
    if as_json:
        click.echo(json.dumps([_object(key) for key in found], indent=2))
        return
    if not found:
        click.echo("no keys", err=True)
    for key in found:
        state = "" if key.revoked_at_ms is None else f"  revoked {rfc3339(key.revoked_at_ms)}"
        click.echo(
            f"{key.id}  …{key.last4}  {','.join(sorted(key.scopes)):<18} "
            f"{rfc3339(key.created_at_ms)} by {key.created_by}  {key.name}{state}"
        )


@command.command(epilog=examples("meterd keys revoke key_0123 --organization acme"))
@click.argument("key_id")
@organization_option
@configured(*DATABASE)
def revoke(*, loaded: LoadedConfig, key_id: str, organization: str | None) -> None:
    """Revoke a key for ever; its open streams close. Repeats change nothing."""

    async def end(keyring: KeyRing) -> StoredKey | None:
        return await keyring.revoke(organization, key_id, revoked_by=BY_COMMAND_LINE)

    if _on_keyring(loaded.config, end) is None:
        if organization is None:
            refuse(
                "no admin key has this id; name an organization's with --organization",
                ExitCode.USAGE,
            )
        refuse("no key of this organization has this id", ExitCode.USAGE)
    click.echo(f"revoked {key_id}")


def _on_keyring(config: Config, use: Callable[[KeyRing], Awaitable[T]]) -> T:
    """Run something on the key ring of the configured database."""
    return trio.run(_opened, config, use)


async def _opened(config: Config, use: Callable[[KeyRing], Awaitable[T]]) -> T:
    clock, chance = SystemClock(), random.SystemRandom()
    async with open_database(config) as database:
        store = PostgresKeys(database.pools)
        pepper = config.key_pepper
        secret = (
            await store.pepper(chance.randbytes(32))
            if pepper is None
            else pepper.get_secret_value().encode()
        )
        return await use(
            KeyRing(
                store,
                pepper=secret,
                clock=clock,
                ids=IdSource(clock.now_ms, chance),
                chance=chance.randbytes,
            )
        )


def _object(key: StoredKey) -> dict[str, object]:
    return {
        "id": key.id,
        "organization_id": key.organization_id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "last4": key.last4,
        "created_at": rfc3339(key.created_at_ms),
        "created_by": key.created_by,
        "revoked_at": None if key.revoked_at_ms is None else rfc3339(key.revoked_at_ms),
    }
