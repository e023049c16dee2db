"""`meterd orgs`: the organizations of a running meterd, or one of them with its quota."""

from __future__ import annotations

from typing import Any

import click

from meterd.cli._admin import Admin, asks_meterd, show_json, show_table
from meterd.cli._examples import examples


TITLES = ("ID", "NAME", "PLAN", "SUSPENDED", "STRIPE CUSTOMER", "CREATED")
PAGE = 1_000


@click.command(epilog=examples("meterd orgs", "meterd orgs acme --json"))
@click.argument("organization", required=False, metavar="[ID]")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True)
@asks_meterd
def command(*, admin: Admin, as_json: bool, organization: str | None, limit: int) -> None:
    """List organizations, or show one with its plan, limits and quota.

    The admin key comes from METERD_ADMIN_KEY.
    """
    if organization is not None:
        _show_one(admin.get(f"organizations/{organization}"), as_json=as_json)
        return
    found = _all(admin, limit)
    if as_json:
        show_json(found)
        return
    show_table(
        TITLES,
        [
            (
                each["id"],
                each["name"],
                each["plan"],
                ", ".join(each["holds"]) or None,
                each["stripe_customer_id"],
                each["created_at"],
            )
            for each in found
        ],
    )


def _all(admin: Admin, limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = None
    while len(found) < limit:
        page = admin.get("organizations", limit=min(PAGE, limit - len(found)), cursor=cursor)
        found += page["data"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    return found


def _show_one(organization: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(organization)
        return
    for name, value in organization.items():
        if isinstance(value, dict):
            click.echo(f"{name}:")
            for inner, each in value.items():
                click.echo(f"  {inner}: {each}")
        else:
            click.echo(f"{name}: {value}")
