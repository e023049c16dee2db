"""`meterd keys` beside a running meterd: what it makes works, what it revokes stops working."""

from __future__ import annotations

import json

import pytest
import trio

from tests.integration.cli.programs import meterd
from tests.integration.service.books import query
from tests.integration.service.harness import running_meterd


pytestmark = pytest.mark.slow


async def test_a_key_is_made_used_listed_and_revoked_while_meterd_runs(database_url: str) -> None:
    """The way back in for an operator, and the first key of a script."""
    where = ("--database-url", database_url)
    async with running_meterd(*where) as service:
        await service.organization("acme", "starter")
        made = await meterd(
            "keys",
            "create",
            *("--organization", "acme", "--scope", "agent", "--scope", "read"),
            *("--name", "script", *where),
        )
        key = made.out.strip()
        async with service.client(key) as client:
            allowed = await client.get("/v1/quota")
            listed = await meterd("keys", "list", "--organization", "acme", "--json", *where)
            [mine] = [one for one in json.loads(listed.out) if one["name"] == "script"]
            revoked = await meterd("keys", "revoke", mine["id"], "--organization", "acme", *where)
            await trio.sleep(1)
            refused = await client.get("/v1/quota")
    audit = await query(
        database_url,
        "SELECT action, actor, organization_id FROM audit_log WHERE actor = 'meterd keys'"
        " ORDER BY action",
    )

    assert (made.code, made.out) == (0, f"{key}\n"), made.err
    assert key.startswith("mk_live_")
    assert allowed.status_code == 200
    assert key not in listed.out
    assert mine["last4"] == key[-4:]
    assert revoked.code == 0
    assert refused.status_code == 401
    assert [(row["action"], row["organization_id"]) for row in audit] == [
        ("key.create", "acme"),
        ("key.revoke", "acme"),
    ]


async def test_a_lost_admin_key_is_replaced_from_the_command_line(database_url: str) -> None:
    """Who can write to the database can let an operator in again."""
    where = ("--database-url", database_url)
    async with running_meterd(*where) as service:
        made = await meterd("keys", "create", *where)
        async with service.client(made.out.strip()) as client:
            answer = await client.get("/admin/v1/actors")

    assert made.code == 0
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("create", "--organization", "nobody", "--scope", "agent"), "no organization"),
        (("create", "--organization", "nobody"), "--scope"),
        (("create", "--organization", "nobody", "--scope", "admin"), "--scope"),
        (("create", "--scope", "agent"), "--scope"),
        (("revoke", "key_none"), "name an organization's with --organization"),
    ],
)
async def test_what_cannot_be_meant_is_refused_with_a_reason(
    database_url: str, arguments: tuple[str, ...], reason: str
) -> None:
    """Exit code 2, nothing on standard output that a script could take for a key."""
    ran = await meterd("keys", *arguments, "--database-url", database_url)

    assert ran.code == 2
    assert reason in ran.err
    assert ran.out == ""
