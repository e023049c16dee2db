"""The plan catalogue: a TOML file, checked whole before anything starts.

Every problem of a file is told at once, each with its key and what to write instead. Unknown keys
are problems: a misspelt limit that is ignored would be no limit. Money is a quoted string,
because a TOML number with a point is a float.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from importlib import resources
from pathlib import Path
from typing import Any

import attrs

from meterd.core.money import CENT, ZERO, is_rate
from meterd.core.plan import (
    AGENT_MINUTES_MAX,
    AGENTS_MAX,
    BASE_PRICE_USD_MAX,
    GRACE_PERCENT_MAX,
    Catalogue,
    Plan,
    Tier,
)
from meterd.errors import ConfigError


UNLIMITED = "unlimited"

MONEY_CHARACTERS_MAX = 20
"""Longer text is no amount; it also bounds the exponent that Decimal has to work out."""


@attrs.define
class _Table:
    """One table of the file being read; keeps what is wrong with it."""

    name: str
    values: Mapping[str, Any]
    problems: list[str]

    def take(self, key: str, wanted: str, read: Callable[[Any], Any], default: Any) -> Any:
        """Return what `read` makes of the value; None from it means that it is not `wanted`."""
        if key not in self.values:
            self.problems.append(f"{self.name}.{key} is missing: {wanted}")
            return default
        found = read(self.values[key])
        if found is None:
            self.problems.append(f"{self.name}.{key} is {self.values[key]!r}: {wanted}")
            return default
        return found

    def refuse_others(self, known: frozenset[str]) -> None:
        """Note every key that means nothing."""
        for key in self.values.keys() - known:
            self.problems.append(
                f"{self.name}.{key} is unknown: the keys are {', '.join(sorted(known))}"
            )


def load_catalogue(path: Path | None = None) -> Catalogue:
    """Return the catalogue in the file, or the one inside the package.

    Errors: ConfigError naming the file and every problem in it.
    """
    file = resources.files("meterd") / "plans.toml" if path is None else path
    name = "the plan catalogue of the package" if path is None else str(path)
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: is not TOML: {error}") from error
    problems: list[str] = []
    catalogue = _catalogue(document, problems)
    if problems:
        raise ConfigError("\n".join(f"{name}: {problem}" for problem in sorted(problems)))
    return catalogue


def _catalogue(document: Mapping[str, Any], problems: list[str]) -> Catalogue:
    problems += [
        f"{key} is unknown: the tables are prices and plans"
        for key in document.keys() - {"prices", "plans"}
    ]
    prices = _table(document, "prices", problems)
    rate = 'a quoted amount of dollars like "0.05", under 1 with at most six decimals'
    api_call_usd = prices.take("api_call_usd", rate, _rate, ZERO)
    websocket_minute_usd = prices.take("websocket_minute_usd", rate, _rate, ZERO)
    prices.refuse_others(frozenset({"api_call_usd", "websocket_minute_usd"}))
    plans = _table(document, "plans", problems)
    names = frozenset(tier.value for tier in Tier)
    plans.refuse_others(names)
    found = {
        tier: _plan(tier, _table(plans.values, tier.value, problems, within="plans."))
        for tier in Tier
    }
    problems += _shared_prices(found)
    return Catalogue(
        plans=found, api_call_usd=api_call_usd, websocket_minute_usd=websocket_minute_usd
    )


def _table(
    document: Mapping[str, Any], key: str, problems: list[str], *, within: str = ""
) -> _Table:
    values = document.get(key)
    if isinstance(values, dict):
        return _Table(within + key, values, problems)
    problems.append(f"[{within}{key}] is missing: it is a table")
    return _Table(within + key, {}, [])  # what is in a missing table is not missed one by one


_PLAN_KEYS = frozenset(
    {
        "price_usd",
        "agents",
        "agent_minutes",
        "grace_percent",
        "overage",
        "overage_usd_per_minute",
        "new_tasks_in_grace",
        "hard_limit",
        "stripe_price_ids",
    }
)


def _plan(tier: Tier, table: _Table) -> Plan:
    table.refuse_others(_PLAN_KEYS)
    agents = table.take(
        "agents", f'1 to {AGENTS_MAX}, or "{UNLIMITED}"', _agents, default=UNLIMITED
    )
    return Plan(
        tier=tier,
        price_usd=table.take(
            "price_usd",
            f'a quoted amount of dollars like "49.00", 0 to {BASE_PRICE_USD_MAX}, whole cents',
            _price,
            ZERO,
        ),
        agents=None if agents == UNLIMITED else agents,
        agent_minutes=table.take(
            "agent_minutes", f"0 to {AGENT_MINUTES_MAX}", _within(0, AGENT_MINUTES_MAX), 0
        ),
        grace_percent=table.take(
            "grace_percent", f"0 to {GRACE_PERCENT_MAX}", _within(0, GRACE_PERCENT_MAX), 0
        ),
        overage_usd_per_minute=table.take(
            "overage_usd_per_minute",
            'a quoted amount of dollars like "0.05", under 1 with at most six decimals',
            _rate,
            ZERO,
        ),
        unlimited=not table.take("hard_limit", "true or false", _flag, default=True),
        grace_billed=table.take("overage", '"billed" or "unbilled"', _overage, default=False),
        new_tasks_in_grace=table.take("new_tasks_in_grace", "true or false", _flag, default=True),
        stripe_price_ids=table.take(
            "stripe_price_ids", "a list of quoted Stripe price ids, may be empty", _price_ids, ()
        ),
    )


def _shared_prices(plans: Mapping[Tier, Plan]) -> Iterator[str]:
    """Yield a problem for each Stripe price that means two plans."""
    owners: dict[str, Tier] = {}
    for tier, plan in plans.items():
        for price_id in plan.stripe_price_ids:
            known = owners.setdefault(price_id, tier)
            if known is not tier:
                yield (
                    f"plans.{tier.value}.stripe_price_ids has {price_id!r}, "
                    f"which already means {known.value}"
                )


def _within(least: int, most: int) -> Callable[[Any], int | None]:
    def read(value: Any) -> int | None:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return value if is_number and least <= value <= most else None

    return read


def _agents(value: Any) -> int | str | None:
    return UNLIMITED if value == UNLIMITED else _within(1, AGENTS_MAX)(value)


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _overage(value: Any) -> bool | None:
    return {"billed": True, "unbilled": False}.get(value) if isinstance(value, str) else None


def _price_ids(value: Any) -> tuple[str, ...] | None:
    is_list = isinstance(value, list) and all(isinstance(item, str) and item for item in value)
    return tuple(value) if is_list else None


def _amount(value: Any) -> Decimal | None:
    if not isinstance(value, str) or not value.isascii() or len(value) > MONEY_CHARACTERS_MAX:
        return None
    if not value.replace(".", "", 1).isdigit():
        return None  # no sign, exponent, underscore or NaN
    try:
        return Decimal(value)
    except InvalidOperation:
        return None


def _rate(value: Any) -> Decimal | None:
    amount = _amount(value)
    return amount if amount is not None and is_rate(amount) else None


def _price(value: Any) -> Decimal | None:
    amount = _amount(value)
    if amount is None or amount > BASE_PRICE_USD_MAX or amount != amount.quantize(CENT):
        return None
    return amount
