"""`meterd doctor` finds what is wrong on purpose, and nothing on a sound installation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meterd.testing.fake_stripe import open_fake_stripe
from tests.conftest import execute
from tests.integration.cli.programs import Ran, meterd
from tests.integration.service.harness import running_meterd


pytestmark = pytest.mark.slow

SECRETS = ("sk_test_PLANTED1234567890", "PLANTEDpassword99")


def findings(ran: Ran) -> dict[str, dict[str, Any]]:
    """Return what was found, by what was looked at."""
    return {each["what"]: each for each in json.loads(ran.out)["findings"]}


async def test_a_sound_installation_is_fine_beside_a_running_meterd(database_url: str) -> None:
    """Nothing is wrong, and it says who owns the database."""
    async with running_meterd("--database-url", database_url), open_fake_stripe(seed=1) as fake:
        settings = {
            "METERD_STRIPE_API_KEY": SECRETS[0],
            "METERD_STRIPE_API_BASE": fake.url,
            "METERD_STRIPE_WEBHOOK_SECRETS": "whsec_0123456789abcdef0123456789",
        }
        where = ("--database-url", database_url)
        ran = await meterd("doctor", "--json", *where, settings=settings)
    found = findings(ran)

    assert ran.code == 0, ran.out
    assert found["owner"]["detail"].startswith("owned by")
    for what in ("configuration", "database settings", "database rights", "clock", "schema"):
        assert found[what]["state"] == "fine", found[what]
    assert found["Stripe"]["state"] == "fine"
    assert SECRETS[0] not in ran.out + ran.err


async def test_what_is_wrong_is_named_with_what_to_do(database_url: str) -> None:
    """An unsafe server, a Stripe and a Redis that do not answer, a misspelt variable."""
    name = database_url.rpartition("/")[2]
    execute(database_url, f"ALTER DATABASE {name} SET synchronous_commit = off")
    settings = {
        "METERD_STRIPE_API_KEY": SECRETS[0],
        "METERD_STRIPE_API_BASE": "http://127.0.0.1:1",
        "METERD_REDIS_URL": f"redis://:{SECRETS[1]}@127.0.0.1:1/0",
        "METERD_TASK_TIMOUT_MS": "1000",
    }
    ran = await meterd("doctor", "--json", "--database-url", database_url, settings=settings)
    people = await meterd("doctor", "--database-url", database_url, settings=settings)
    found = findings(ran)

    assert ran.code == people.code == 1
    for what, state in (
        ("database settings", "wrong"),
        ("Stripe", "wrong"),
        ("Redis", "warning"),
        ("configuration", "warning"),
        ("webhook", "warning"),
    ):
        assert found[what]["state"] == state, found[what]
        assert found[what]["advice"]
    assert "synchronous_commit=off" in people.out
    assert not [each for each in SECRETS if each in ran.out + ran.err + people.out + people.err]


async def test_a_database_that_does_not_answer_is_one_finding() -> None:
    """No traceback: the sentence somebody needs at three in the morning."""
    url = f"postgresql://meterd:{SECRETS[1]}@127.0.0.1:1/meterd"
    ran = await meterd("doctor", "--json", "--database-url", url)

    assert ran.code == 1
    assert findings(ran)["database"]["state"] == "wrong"
    assert SECRETS[1] not in ran.out + ran.err
