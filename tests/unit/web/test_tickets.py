"""Tickets for the live feed: once, for a minute, and bounded for each organization."""

from __future__ import annotations

import random

import pytest

from meterd.actors.keyring import Principal
from meterd.errors import OverloadedError
from meterd.web.tickets import TICKET_MS, TICKETS_PER_ORGANIZATION_MAX, Tickets
from tests.make import FixedClock


def principal(organization_id: str) -> Principal:
    """Return somebody who may read."""
    return Principal(key_id="key_1", organization_id=organization_id, scopes=frozenset({"read"}))


def test_a_ticket_is_good_once_and_for_a_minute() -> None:
    """A used one and an old one are worth as much as one that never was."""
    clock = FixedClock()
    tickets = Tickets(clock, random.Random(1).randbytes)
    (used, _), (old, _) = (tickets.give(principal("org_1")) for _ in range(2))

    assert tickets.take(used) == principal("org_1")
    assert tickets.take(used) is None
    clock.at_ms += TICKET_MS
    assert tickets.take(old) is None
    assert tickets.take("tkt_") is None


def test_one_organization_cannot_take_all_tickets() -> None:
    """Who asks hundreds of times a minute waits; others, and those who use theirs, do not."""
    clock = FixedClock()
    tickets = Tickets(clock, random.Random(1).randbytes)
    given = [tickets.give(principal("org_1"))[0] for _ in range(TICKETS_PER_ORGANIZATION_MAX)]

    with pytest.raises(OverloadedError):
        tickets.give(principal("org_1"))
    tickets.give(principal("org_2"))
    tickets.take(given[0])
    tickets.give(principal("org_1"))
    with pytest.raises(OverloadedError):
        tickets.give(principal("org_1"))
    clock.at_ms += TICKET_MS
    tickets.give(principal("org_1"))
