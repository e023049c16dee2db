"""One real service with two tenants, for all tests of a module: they only attack it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.conftest import execute, sibling
from tests.security.fortress import Fortress, open_fortress


@pytest.fixture(scope="module")
def fortress(postgres_server_url: str, template_database: str) -> Iterator[Fortress]:
    """Give a service on a database of its own, with a victim and an attacker."""
    name = f"meterd_fortress_{os.getpid()}"
    execute(postgres_server_url, f"CREATE DATABASE {name} TEMPLATE {template_database}")
    try:
        with open_fortress(sibling(postgres_server_url, name)) as fortress:
            yield fortress
    finally:
        execute(postgres_server_url, f"DROP DATABASE {name} WITH (FORCE)")
