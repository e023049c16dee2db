"""A second, independent judge of requests: pydantic over the same `stripe.params` TypedDicts.

Active when pydantic can be imported (it is a development dependency), so a request the fake
accepted against Stripe's types turns a test red. Rebuilt types forbid unknown keys, close the
enums, and leave out what only the client library may pass.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any, Dict, List, Literal, NotRequired, Union, get_args, get_origin  # noqa: UP035

from typing_extensions import TypedDict, is_typeddict

from meterd.testing.fake_stripe.errors import Json
from meterd.testing.fake_stripe.forms import alternatives_of, fields_of


IS_AVAILABLE = importlib.util.find_spec("pydantic") is not None
"""Whether pydantic is installed; without it only the fake's own typing applies."""


class RequestDriftError(AssertionError):
    """The fake accepted a request that Stripe's own types forbid."""


def check_request(params: type, values: Json) -> None:
    """Raise RequestDriftError unless pydantic accepts the typed request as well."""
    if not IS_AVAILABLE:
        return
    from pydantic import ValidationError  # noqa: PLC0415 - a development dependency

    try:
        _adapter(params).validate_python(values)
    except ValidationError as error:
        raise RequestDriftError(f"{params.__name__}: {error}") from error


@cache
def _adapter(params: type) -> Any:
    from pydantic import TypeAdapter  # noqa: PLC0415 - a development dependency

    return TypeAdapter(_closed(params))


@cache
def _closed(params: type) -> Any:
    from pydantic import ConfigDict  # noqa: PLC0415 - a development dependency

    fields = {
        name: _closed_hint(hint) if required else NotRequired[_closed_hint(hint)]
        for name, (hint, required) in fields_of(params).items()
    }
    closed = TypedDict(params.__name__, fields)  # type: ignore[misc]
    vars_of_type: Any = closed
    vars_of_type.__pydantic_config__ = ConfigDict(extra="forbid")
    return closed


def _closed_hint(hint: Any) -> Any:
    members = tuple(_closed_member(member) for member in alternatives_of(hint))
    return Union[members] if len(members) > 1 else members[0]  # noqa: UP007 - built at run time


def _closed_member(hint: Any) -> Any:
    origin = get_origin(hint)
    if is_typeddict(hint):
        return _closed(hint)
    if origin is list:
        return List[_closed_hint(get_args(hint)[0])]  # type: ignore[misc]  # noqa: UP006
    if origin is dict:
        return Dict[str, _closed_hint(get_args(hint)[1])]  # type: ignore[misc]  # noqa: UP006
    assert origin is None or origin is Literal, hint
    return hint
