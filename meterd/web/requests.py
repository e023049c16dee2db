"""Reading a Quart request strictly, and writing a `Reply` as a Quart response.

Rule 1: whoever may not ask is told so before anything else of the request is looked at.
Rule 2: bodies and queries go through `meterd.web.codec`; Quart's own parsers are not used.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec
from quart import Response, current_app, g, request

from meterd.actors.keyring import Principal
from meterd.core.ids import is_printable_name
from meterd.core.units import INSTANT_MS_MAX
from meterd.errors import Problem, RequestInvalidError
from meterd.web.auth import authenticated, operator_of, organization_of
from meterd.web.codec import BadJsonError, decode, parse_json
from meterd.web.problems import ProblemError
from meterd.web.reply import Reply
from meterd.web.services import WebServices


T = TypeVar("T", bound=msgspec.Struct)
Item = TypeVar("Item")

SERVICES: Final = "meterd.services"

LIMIT_MAX: Final = 1_000
"""Items on one page."""
LIMIT_DEFAULT: Final = 100

QUERY_FIELDS_MAX: Final = 20
CURSOR_CHARACTERS_MAX: Final = 1_024

_JSON_TYPE = re.compile(r"application/json[ \t]*(;[ \t]*charset=\"?utf-8\"?[ \t]*)?", re.IGNORECASE)
_LIMIT = re.compile(r"[1-9][0-9]{0,3}", re.ASCII)


def services() -> WebServices:
    """Return what stands behind the routes."""
    return cast("WebServices", current_app.extensions[SERVICES])


def request_id() -> str:
    """Return the id of the request being answered."""
    return cast("str", g.request_id)


async def asker() -> Principal:
    """Return who asks. Errors: ProblemError (401); StoreUnavailableError, OverloadedError."""
    return await authenticated(services().keyring, request.headers.getlist("authorization"))


async def organization(*scopes: str) -> str:
    """Return the organization of the key, which must have one of the scopes.

    Errors: ProblemError (401, 403); StoreUnavailableError, OverloadedError.
    """
    principal = await asker()
    return organization_of(principal, *scopes)


async def member(*scopes: str) -> tuple[str, str]:
    """Return organization and id of the key, which must have one of the scopes.

    The id names who did something in the audit log. Errors: as `organization`.
    """
    principal = await asker()
    return organization_of(principal, *scopes), principal.key_id


async def operator() -> str:
    """Return the key id of the operator who asks; errors as `organization`."""
    principal = await asker()
    return operator_of(principal)


async def body_as(kind: type[T]) -> T:
    """Return the JSON body as a `kind`.

    Errors: ProblemError (413, 415), BadJsonError (400), RequestInvalidError (422).
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ProblemError("unsupported_media_type", detail="Send the body without compression.")
    types = request.headers.getlist("content-type")
    if len(types) != 1 or not _JSON_TYPE.fullmatch(types[0]):
        raise ProblemError("unsupported_media_type")
    raw = await request.get_data(cache=True, as_text=False, parse_form_data=False)
    return decode(kind, parse_json(raw))


async def body_or_default(kind: type[T]) -> T:
    """Return the JSON body as a `kind`, or a `kind` without fields when there is no body at all.

    Errors: as `body_as`.
    """
    raw = await request.get_data(cache=True, as_text=False, parse_form_data=False)
    return await body_as(kind) if raw else kind()


def query(*known: str) -> Mapping[str, str]:
    """Return the parameters of the query, each at most once and each known.

    Errors: RequestInvalidError.
    """
    try:
        pairs = parse_qsl(
            request.query_string.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=QUERY_FIELDS_MAX,
        )
    except ValueError:
        raise RequestInvalidError([Problem("", "the query is malformed")]) from None
    found = dict(pairs)
    problems = []
    if not found.keys() <= set(known):
        names = ", ".join(known) or "none"
        problems.append(
            Problem("", f"the query has a parameter that is not known; known are: {names}")
        )
    if len(found) != len(pairs):
        problems.append(Problem("", "the query has a parameter twice"))
    if problems:
        raise RequestInvalidError(problems)
    return found


def name_in(parameters: Mapping[str, str], field: str) -> str | None:
    """Return a parameter that names an agent or a task. Errors: RequestInvalidError."""
    value = parameters.get(field)
    if value is not None and not is_printable_name(value):
        raise RequestInvalidError([Problem(f"/{field}", "must be 1 to 128 printable characters")])
    return value


def limit_in(parameters: Mapping[str, str]) -> int:
    """Return the page size. Errors: RequestInvalidError."""
    text = parameters.get("limit", str(LIMIT_DEFAULT))
    if not _LIMIT.fullmatch(text) or int(text) > LIMIT_MAX:
        raise RequestInvalidError([Problem("/limit", f"must be an integer from 1 to {LIMIT_MAX}")])
    return int(text)


def integer_in(parameters: Mapping[str, str], field: str, *, default: int, largest: int) -> int:
    """Return a parameter that is an integer from 1 on. Errors: RequestInvalidError."""
    text = parameters.get(field, str(default))
    if not _LIMIT.fullmatch(text) or int(text) > largest:
        raise RequestInvalidError([Problem(f"/{field}", f"must be an integer from 1 to {largest}")])
    return int(text)


def choice_in(parameters: Mapping[str, str], field: str, choices: tuple[str, ...]) -> str | None:
    """Return a parameter that is one of some words. Errors: RequestInvalidError."""
    value = parameters.get(field)
    if value is not None and value not in choices:
        raise RequestInvalidError([Problem(f"/{field}", f"must be one of {', '.join(choices)}")])
    return value


def make_cursor(*parts: str | int) -> str:
    """Return where a page ended, as text that means nothing to others."""
    return base64.urlsafe_b64encode(msgspec.json.encode(parts)).rstrip(b"=").decode()


def cursor_in(parameters: Mapping[str, str], kinds: tuple[type, ...]) -> list[Any] | None:
    """Return the parts of a cursor that `make_cursor` made. Errors: RequestInvalidError."""
    text = parameters.get("cursor")
    if text is None:
        return None
    padded = text[:CURSOR_CHARACTERS_MAX] + "=" * (-len(text) % 4)
    try:
        parts = parse_json(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (BadJsonError, ValueError):
        parts = None
    if not isinstance(parts, list) or not _are_position(parts, kinds):
        raise RequestInvalidError([Problem("/cursor", "must be a `next_cursor` of this list")])
    return parts


def page_of(
    found: Iterable[Item],
    parameters: Mapping[str, str],
    *,
    place: Callable[[Item], tuple[int, str]],
    newest_first: bool = False,
) -> tuple[list[Item], str | None]:
    """Return the page asked for of a list that is short enough to be read whole, and its cursor.

    `place` is what the list is sorted by: when, and which. Errors: RequestInvalidError.
    """
    limit, after = limit_in(parameters), cursor_in(parameters, (int, str))
    items = sorted(found, key=place, reverse=newest_first)
    if after is not None:
        end = (after[0], after[1])
        items = [one for one in items if place(one) != end and (place(one) < end) is newest_first]
    cursor = make_cursor(*place(items[limit - 1])) if len(items) > limit else None
    return items[:limit], cursor


def _are_position(parts: list[Any], kinds: tuple[type, ...]) -> bool:
    """Tell whether parts are of these kinds, and something the store can compare with."""
    return [type(part) for part in parts] == list(kinds) and all(
        part.isprintable() if isinstance(part, str) else 0 <= part <= INSTANT_MS_MAX
        for part in parts
    )


def response(reply: Reply) -> Response:
    """Return a reply as a Quart response."""
    made = Response(reply.body, status=reply.status)
    made.headers.pop("content-type", None)
    for name, value in reply.headers:
        made.headers.add(name, value)
    return made
