"""The catalogue file: the default is the product's table, and mistakes are told all at once."""

from __future__ import annotations

from decimal import Decimal
from importlib import resources
from pathlib import Path

import attrs
import pytest

from meterd.adapters.catalogue import load_catalogue
from meterd.core.money import ZERO
from meterd.core.plan import Tier
from meterd.errors import ConfigError
from tests.organizations import make_catalogue


DEFAULT = (resources.files("meterd") / "plans.toml").read_text(encoding="utf-8")


def load(directory: Path, text: str) -> None:
    """Load a catalogue with this text."""
    file = directory / "plans.toml"
    file.write_text(text, encoding="utf-8")
    load_catalogue(file)


def test_the_default_catalogue_is_the_products() -> None:
    """What ships is what the price page says."""
    found = load_catalogue()

    expected = make_catalogue()
    for tier in (Tier.FREE, Tier.STARTER, Tier.PRO):
        assert found.plans[tier] == expected.plans[tier]
    enterprise = found.plans[Tier.ENTERPRISE]
    assert (enterprise.unlimited, enterprise.agents, enterprise.agent_minutes) == (True, None, 0)
    assert enterprise.overage_usd_per_minute == Decimal("0.05")
    assert (found.api_call_usd, found.websocket_minute_usd) == (ZERO, ZERO)


def test_a_file_of_the_operator_is_read(tmp_path: Path) -> None:
    """The path is the setting `plans`."""
    file = tmp_path / "mine.toml"
    text = DEFAULT.replace("agent_minutes = 1000 ", "").replace('"49.00"', '"59.90"')
    file.write_text(
        text.replace("agents = 20", 'agents = "unlimited"').replace(
            "stripe_price_ids = []", 'stripe_price_ids = ["price_1"]', 1
        ),
        encoding="utf-8",
    )

    found = load_catalogue(file)

    assert found.plans[Tier.STARTER].price_usd == Decimal("59.90")
    assert found.plans[Tier.PRO].agents is None
    assert found.plans[Tier.FREE].stripe_price_ids == ("price_1",)
    assert found.plans[Tier.PRO] == attrs.evolve(load_catalogue().plans[Tier.PRO], agents=None)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('price_usd = "49.00"', "price_usd = 49.00", r"plans\.starter\.price_usd is 49\.0"),
        ('price_usd = "49.00"', 'price_usd = "49.001"', "whole cents"),
        ('price_usd = "49.00"', 'price_usd = "1e3"', "quoted amount"),
        ('price_usd = "49.00"', 'price_usd = "-1"', "quoted amount"),
        ('price_usd = "49.00"', 'price_usd = "NaN"', "quoted amount"),
        ('price_usd = "49.00"', 'price_usd = "1_0"', "quoted amount"),
        ('price_usd = "49.00"', 'price_usd = "٤"', "quoted amount"),
        ("agents = 5", "agents = 0", r'plans\.starter\.agents is 0: 1 to .*"unlimited"'),
        ("agents = 5", "agents = true", "agents is True"),
        ("agents = 5", 'agents = "many"', "agents is 'many'"),
        ("agents = 5", "agnets = 5", "agnets is unknown"),
        ("agents = 5", "", r"plans\.starter\.agents is missing"),
        ("agent_minutes = 1000", "agent_minutes = 10.5", "agent_minutes is 10.5"),
        ("agent_minutes = 1000", "agent_minutes = -1", "agent_minutes is -1"),
        ("hard_limit = false", "hard_limit = 0", "true or false"),
        ('overage_usd_per_minute = "0.05"', 'overage_usd_per_minute = "1"', "under 1"),
        (
            'overage_usd_per_minute = "0.05"',
            'overage_usd_per_minute = "0.0000001"',
            "six decimals",
        ),
        ('overage = "unbilled"', 'overage = "free"', '"billed" or "unbilled"'),
        ("stripe_price_ids = []", "stripe_price_ids = [1]", "list of quoted Stripe"),
        (
            "stripe_price_ids = []",
            'stripe_price_ids = ["p"]',
            "has 'p', which already means free",
        ),
        ("[plans.pro]", "[plans.gold]", r"(?s)\[plans\.pro\] is missing.*plans\.gold is unknown"),
        ("[prices]", "[price]", r"(?s)\[prices\] is missing.*price is unknown"),
        ("[prices]", "[prices", "is not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_key(tmp_path: Path, old: str, new: str, problem: str) -> None:
    """A limit that is misread is money lost; meterd refuses to start instead."""
    assert old in DEFAULT

    with pytest.raises(ConfigError, match=problem):
        load(tmp_path, DEFAULT.replace(old, new))


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    """Nobody should have to start meterd once for each mistake."""
    text = DEFAULT.replace("agents = 5", "agents = 0").replace('"149.00"', '"x"')

    with pytest.raises(ConfigError) as error:
        load(tmp_path, text + "\n[other]\n")

    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert all("plans.toml: " in line for line in lines)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A wrong path must not fall back to the default prices."""
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        load_catalogue(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_catalogue(tmp_path / "latin.toml")
