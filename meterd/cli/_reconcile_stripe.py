"""`meterd reconcile stripe`: ask a running meterd to compare itself with Stripe.

It is asked over HTTP, because repairs are made by its actors and by nobody beside them.
Exit codes: 0 both sides agree, or agree again; 1 something differs that a person must look at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click
import httpx

from meterd.cli import ExitCode
from meterd.cli._examples import examples
from meterd.cli._options import configured
from meterd.config import LoadedConfig
from meterd.errors import ConfigError, MeterdError


TIMEOUT_S = 600
"""Seconds: Stripe lists a hundred objects a request, and it compares everything."""


@click.command(
    epilog=examples("meterd reconcile stripe --dry-run", "meterd reconcile stripe --json")
)
@click.option("--dry-run", is_flag=True, help="Tell differences; store and repair nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--url", envvar="METERD_URL", metavar="URL", help="The meterd to ask.  [METERD_URL]")
@configured("bind")
def stripe(*, loaded: LoadedConfig, dry_run: bool, as_json: bool, url: str | None) -> ExitCode:
    """Compare subscriptions, invoices, charges and events with Stripe, and repair them.

    Asks the meterd at --url, else at the configured address, with METERD_ADMIN_KEY.
    """
    config = loaded.config
    if config.admin_key is None:
        raise ConfigError("admin_key is not set: set METERD_ADMIN_KEY to an admin key.")
    host = "127.0.0.1" if config.bind.host in {"0.0.0.0", "::"} else config.bind.host  # noqa: S104 - compared only
    base = url or f"http://{f'[{host}]' if ':' in host else host}:{config.bind.port}"
    try:
        answer = httpx.post(
            f"{base.rstrip('/')}/admin/v1/reconcile/stripe",
            params={"dry_run": "true"} if dry_run else {},
            headers={"authorization": f"Bearer {config.admin_key.get_secret_value()}"},
            timeout=TIMEOUT_S,
        )
    except httpx.HTTPError as error:
        raise MeterdError(f"no meterd answers at {base}: {type(error).__name__}") from error
    if answer.status_code != httpx.codes.OK:
        raise MeterdError(f"meterd answered {answer.status_code}: {_detail(answer)}")
    found = answer.json()
    click.echo(json.dumps(found, indent=2) if as_json else _text(found))
    unrepaired = [each for each in found["differences"] if each["repair"] == "none"]
    is_open = dry_run and found["differences"]
    return ExitCode.FAILED if unrepaired or is_open or found["stopped"] else ExitCode.OK


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError):
        return "no reason given"


def _text(found: Mapping[str, Any]) -> str:
    lines = [
        f"{each['kind']}: {each['organization_id'] or '-'} {each['subject']}"
        f" (repair: {each['repair']})"
        for each in found["differences"]
    ]
    if found["stopped"]:
        lines.append(f"stopped: {found['stopped']}")
    charged, invoiced = found["charged_cents"], found["item_cents"]
    lines.append(
        f"Σ charges {_usd(charged)} {'=' if charged == invoiced else '≠'} "
        f"Σ invoice items {_usd(invoiced)}"
    )
    lines.append(
        f"{found['subscriptions']} subscriptions, {found['invoices']} invoices and "
        f"{found['items']} invoice items compared; {len(found['differences'])} differences, "
        f"{found['repaired']} repaired, {found['events_received']} lost events received"
    )
    return "\n".join(lines)


def _usd(cents: int) -> str:
    return f"{'-' if cents < 0 else ''}${abs(cents) // 100:,}.{abs(cents) % 100:02d}"
