"""Holds JSON to the annotations of the `stripe` package's resource classes.

Stricter than the client itself: unknown keys are refused, enums are closed, a field that is not
Optional must be there. What the client would shrug off is a fake that has drifted.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, ForwardRef, Literal, Union, get_args, get_origin

import stripe
from stripe._object_classes import get_object_class


JsonObject = dict[str, Any]


def problems_of(record: JsonObject) -> list[str]:
    """Everything about a Stripe object that its class does not allow."""
    name = record["object"]
    if record.get("deleted"):
        return []
    return list(_object_problems(record, get_object_class("V1", name), name))


def event_problems(event: JsonObject) -> list[str]:
    """Return the same for an event and the object inside it."""
    return [*problems_of(event), *problems_of(event["data"]["object"])]


def _annotations(cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("stripe.") and base.__name__ != "StripeObject":
            found.update(
                (name, hint)
                for name, hint in vars(base).get("__annotations__", {}).items()
                if not name.startswith("_") and name != "OBJECT_NAME"
            )
    return found


def _resolved(hint: Any, owner: type) -> Any:
    if isinstance(hint, ForwardRef):
        hint = hint.__forward_arg__
    if not isinstance(hint, str):
        return hint
    package = importlib.import_module(owner.__module__.rpartition(".")[0])
    for scope in (package, stripe):
        found = getattr(scope, hint, None) or getattr(scope, hint.removesuffix("Resource"), None)
        if isinstance(found, type):
            return found
    raise LookupError(f"{hint} in {owner}")


def _object_problems(value: Any, cls: type, where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where}: {value!r} is not a {cls.__name__}"
        return
    hints = _annotations(cls)
    if cls.__name__ == "ListObject":
        hints["object"] = Literal["list"]
    for name in value.keys() - hints.keys():
        yield f"{where}.{name}: unknown to {cls.__qualname__}"
    for name, hint in hints.items():
        if name in value:
            yield from _value_problems(value[name], hint, cls, f"{where}.{name}")
        elif type(None) not in get_args(hint):
            yield f"{where}.{name}: required by {cls.__qualname__}"


def _value_problems(value: Any, hint: Any, owner: type, where: str) -> Iterator[str]:
    hint = _resolved(hint, owner)
    origin, args = get_origin(hint), get_args(hint)
    if origin in {Union, types.UnionType}:
        yield from _union_problems(value, args, owner, where)
    elif origin is Literal:
        if value not in args:
            yield f"{where}: {value!r} is none of the values of the enum"
    elif origin is not None:
        yield from _container_problems(value, origin, args[0], owner, where)
    elif isinstance(hint, type) and issubclass(hint, stripe.StripeObject):
        yield from _object_problems(value, hint, where)
    elif not _is_leaf(value, hint):
        yield f"{where}: {value!r} is not {hint}"


def _container_problems(
    value: Any, origin: Any, member: Any, owner: type, where: str
) -> Iterator[str]:
    if origin.__name__ == "ListObject":
        yield from _list_problems(value, member, owner, where)
        return
    members: list[Any]
    if origin is list and isinstance(value, list):
        members = value
    elif origin is not list and isinstance(value, dict):
        members = list(value.values())
    else:
        yield f"{where}: {value!r} is not a {origin.__name__}"
        return
    for each in members:
        yield from _value_problems(each, member, owner, f"{where}[]")


def _union_problems(value: Any, args: tuple[Any, ...], owner: type, where: str) -> Iterator[str]:
    if value is None:
        if type(None) not in args:
            yield f"{where}: null is not allowed"
        return
    members = [member for member in args if member is not type(None)]
    if any(get_origin(member) is Literal for member in members):
        members = [member for member in members if member is not str]  # enums of today
    found: list[list[str]] = []
    for member in members:
        problems = list(_value_problems(value, member, owner, where))
        if not problems:
            return
        found.append(problems)
    yield from min(found, key=len)


def _list_problems(value: Any, member: Any, owner: type, where: str) -> Iterator[str]:
    yield from _object_problems_of_list(value, where)
    for index, each in enumerate(value["data"] if isinstance(value, dict) else []):
        yield from _value_problems(each, member, owner, f"{where}.data[{index}]")


def _object_problems_of_list(value: Any, where: str) -> Iterator[str]:
    if not isinstance(value, dict) or value.get("object") != "list":
        yield f"{where}: not a list object"
        return
    if value.keys() != {"object", "data", "has_more", "url"}:
        yield f"{where}: a list has object, data, has_more and url"


def _is_leaf(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if hint is Decimal:
        try:
            return isinstance(value, str) and Decimal(value).is_finite()
        except InvalidOperation:
            return False
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)
