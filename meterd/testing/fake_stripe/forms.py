"""Form-encoded requests: decoding the wire, then typing it after Stripe's own parameter types.

`items[0][price]=p` becomes `{"items": [{"price": "p"}]}`; the TypedDicts of `stripe.params` say
which leaf is an integer, a boolean or a list, and which names exist at all.
"""

from __future__ import annotations

import re
import types
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin
from urllib.parse import parse_qsl

import stripe.params
from typing_extensions import get_type_hints, is_typeddict

from meterd.testing.fake_stripe.errors import Json, StripeRefusedError, missing_param


NOT_ON_THE_WIRE = frozenset(
    {
        "api_key",
        "stripe_version",
        "stripe_account",
        "stripe_context",
        "max_network_retries",
        "idempotency_key",
        "content_type",
        "headers",
    }
)
"""Options of the client library which its parameter types carry but never send as parameters."""

_BRACKET = re.compile(r"\[([^\]]*)\]")


def decode_form(text: str) -> Json:
    """Turn a query string or form body into nested dicts of strings; lists have digits for keys."""
    tree: Json = {}
    for key, value in parse_qsl(text, keep_blank_values=True, strict_parsing=False):
        head, _, _ = key.partition("[")
        steps = [head, *_BRACKET.findall(key[len(head) :])]
        node = tree
        for step in steps[:-1]:
            node = node.setdefault(step, {})
            if not isinstance(node, dict):
                raise StripeRefusedError(f"Invalid hash: {key}", param=head, is_validation=True)
        last = steps[-1] or str(len(node))  # `expand[]=a` appends
        node[last] = value
    return tree


def params_type(name: str) -> type:
    """Return the TypedDict of that name: `CustomerCreateParams`, `checkout.SessionCreateParams`."""
    module: Any = stripe.params
    for step in name.split("."):
        module = getattr(module, step)
    assert is_typeddict(module), name
    found: type = module
    return found


@cache
def fields_of(params: type) -> dict[str, tuple[Any, bool]]:
    """Each field of a parameter TypedDict: its type, and whether it is required."""
    # Names the client's options mention and their module imports for type checkers only.
    unresolved = {"StripeContext": object, "Mapping": dict}
    hints = get_type_hints(params, localns=unresolved, include_extras=True)
    found: dict[str, tuple[Any, bool]] = {}
    for name, hint in hints.items():
        if name in NOT_ON_THE_WIRE:
            continue
        inner, required = hint, True
        marker: Any = get_origin(inner)
        if marker in {NotRequired, Required}:
            required = marker is Required
            inner = get_args(inner)[0]
        found[name] = (inner, required)
    return found


def typed(params: type, raw: Json, *, path: str = "") -> Json:
    """Give every value the type its parameter has; refuse what Stripe would refuse."""
    fields = fields_of(params)
    answer: Json = {}
    for name, value in raw.items():
        where = f"{path}[{name}]" if path else name
        if name not in fields:
            raise StripeRefusedError(
                f"Received unknown parameter: {where}",
                code="parameter_unknown",
                param=where,
                is_validation=True,
            )
        answer[name] = _value(fields[name][0], value, where)
    for name, (_, required) in fields.items():
        if required and name not in raw:
            raise missing_param(f"{path}[{name}]" if path else name)
    return answer


def alternatives_of(hint: Any) -> list[Any]:
    """Return the members of a union, those only the client library can send left out."""
    is_union = get_origin(hint) in {Union, types.UnionType}
    members = list(get_args(hint)) if is_union else [hint]
    closed = [
        choice
        for member in members
        if get_origin(member) is Literal
        for choice in get_args(member)
        if choice != ""
    ]
    kept = []
    for member in members:
        if "UntypedStripeObject" in repr(member):
            continue
        if closed and member is str:
            continue  # the types leave enums open for the future; the API of today does not
        kept.append(member)
    return kept


def _value(hint: Any, value: Any, where: str) -> Any:
    choices: list[str] = []
    refused: StripeRefusedError | None = None
    for member in alternatives_of(hint):
        if get_origin(member) is Literal:
            choices.extend(str(choice) for choice in get_args(member))
        try:
            return _member(member, value, where)
        except StripeRefusedError as refusal:
            refused = refused or refusal
    assert refused is not None, hint
    if len([choice for choice in choices if choice]) > 1:
        listed = ", ".join(choice for choice in choices if choice)
        raise StripeRefusedError(
            f"Invalid {where}: must be one of {listed}", param=where, is_validation=True
        )
    raise refused


def _member(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin is Literal and value in get_args(hint):
        return value
    if is_typeddict(hint) and isinstance(value, dict):
        return typed(hint, value, path=where)
    if origin is list and isinstance(value, dict) and all(key.isdecimal() for key in value):
        value = [value[key] for key in sorted(value, key=int)]
        return [_value(get_args(hint)[0], each, f"{where}[{i}]") for i, each in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {
            key: _value(get_args(hint)[1], each, f"{where}[{key}]") for key, each in value.items()
        }
    if isinstance(value, str):
        if hint is str:
            return value
        if hint is bool and value in {"true", "false", "True", "False"}:
            return value.lower() == "true"
        if hint is int and re.fullmatch(r"-?[0-9]{1,15}", value):
            return int(value)
        if hint in {Decimal, float}:
            return _decimal(value, where)
    names = {int: "integer", bool: "boolean", list: "array", dict: "hash"}
    name = "hash" if is_typeddict(hint) else names.get(origin or hint, "value")
    raise StripeRefusedError(f"Invalid {name}: {value}", param=where, is_validation=True)


def _decimal(value: str, where: str) -> Decimal:
    try:
        number = Decimal(value)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise StripeRefusedError(f"Invalid decimal: {value}", param=where, is_validation=True)
    return number
