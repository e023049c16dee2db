"""List answers: newest first, cut by cursor and limit, filtered by creation time.

Source: https://docs.stripe.com/api/pagination.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from meterd.testing.fake_stripe import shapes
from meterd.testing.fake_stripe.errors import Json, StripeRefusedError


LIMIT_DEFAULT = 10
LIMIT_MAX = 100


def page(url: str, records: Iterable[Json], params: Json) -> Json:
    """One page of the records, which come in the order they are listed."""
    found = [record for record in records if _created_in(record, params.get("created"))]
    limit = params.get("limit", LIMIT_DEFAULT)
    if not 1 <= limit <= LIMIT_MAX:
        raise StripeRefusedError(
            f"Invalid integer: limit must be between 1 and {LIMIT_MAX}",
            param="limit",
            is_validation=True,
        )
    if "starting_after" in params:
        found = found[_position(found, params["starting_after"], "starting_after") + 1 :]
        shown = found[:limit]
    elif "ending_before" in params:
        found = found[: _position(found, params["ending_before"], "ending_before")]
        shown = found[-limit:]
    else:
        shown = found[:limit]
    return shapes.list_of(url, copy.deepcopy(shown), has_more=len(found) > len(shown))


def _position(records: list[Json], cursor: str, param: str) -> int:
    for index, record in enumerate(records):
        if record["id"] == cursor:
            return index
    raise StripeRefusedError(
        f"No such object: '{cursor}'", code="resource_missing", param=param, is_validation=True
    )


def _created_in(record: Json, wanted: Json | int | None) -> bool:
    if wanted is None:
        return True
    created = record.get("created", record.get("date", 0))
    if isinstance(wanted, int):
        return bool(created == wanted)
    return bool(
        created > wanted.get("gt", -1)
        and created >= wanted.get("gte", 0)
        and created < wanted.get("lt", 1 << 62)
        and created <= wanted.get("lte", 1 << 62)
    )


def matching(records: Iterable[Json], params: Json, *names: str) -> list[Json]:
    """Return records whose fields equal the parameters of the same names, as far as given."""
    return [
        record
        for record in records
        if all(record.get(name) == params[name] for name in names if name in params)
    ]
