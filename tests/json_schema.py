"""Whether a JSON value is what a schema of our OpenAPI document says; only the words it uses.

Stricter than the standard in one thing: a property that an object's schema does not name is
wrong, unless the schema allows others in so many words or names none at all. What an answer holds
beyond its document is what clients of the next version will miss.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any


Schema = Mapping[str, Any]

KNOWN = {
    *("$ref", "type", "properties", "required", "additionalProperties", "items", "anyOf", "oneOf"),
    *("enum", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"),
    *("pattern", "title", "description", "default", "format", "discriminator"),
}
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def wrongs(value: Any, schema: Schema, components: Mapping[str, Schema], at: str = "") -> list[str]:
    """Return what is wrong with a value, each with its place; nothing: it is as documented."""
    return list(_wrongs(value, schema, components, at))


def _wrongs(value: Any, schema: Schema, components: Mapping[str, Schema], at: str) -> Iterator[str]:
    unknown = schema.keys() - KNOWN
    assert not unknown, f"teach tests/json_schema.py {unknown}"
    if "$ref" in schema:
        yield from _wrongs(value, components[schema["$ref"].rpartition("/")[2]], components, at)
        return
    if options := schema.get("anyOf") or schema.get("oneOf"):
        if all(wrongs(value, option, components, at) for option in options):
            yield f"{at}: none of the documented shapes"
        return
    if "type" in schema and not _is_of_type(value, schema["type"]):
        yield f"{at}: {type(value).__name__}, not {schema['type']}"
        return
    if value not in schema.get("enum", [value]):
        yield f"{at}: not one of {schema['enum']}"
    if isinstance(value, dict):
        yield from _wrongs_of_object(value, schema, components, at)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _wrongs(item, schema.get("items", {}), components, f"{at}/{index}")
    else:
        yield from _wrongs_of_scalar(value, schema, at)


def _wrongs_of_scalar(value: Any, schema: Schema, at: str) -> Iterator[str]:
    if isinstance(value, str):
        if not re.search(schema.get("pattern", ""), value):
            yield f"{at}: not like {schema['pattern']}"
        yield from _out_of(len(value), schema, "minLength", "maxLength", at)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _out_of(value, schema, "minimum", "maximum", at)


def _wrongs_of_object(
    value: dict[str, Any], schema: Schema, components: Mapping[str, Schema], at: str
) -> Iterator[str]:
    properties = schema.get("properties", {})
    others = schema.get("additionalProperties", not properties)
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{at}/{name}: missing"
    for name, inside in value.items():
        if name in properties:
            yield from _wrongs(inside, properties[name], components, f"{at}/{name}")
        elif isinstance(others, Mapping):
            yield from _wrongs(inside, others, components, f"{at}/{name}")
        elif not others:
            yield f"{at}/{name}: not documented"


def _is_of_type(value: Any, kinds: str | list[str]) -> bool:
    names = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, bool):
        return "boolean" in names
    return any(isinstance(value, TYPES[name]) for name in names)


def _out_of(size: float, schema: Schema, least: str, most: str, at: str) -> Iterator[str]:
    if least in schema and size < schema[least]:
        yield f"{at}: under {schema[least]}"
    if most in schema and size > schema[most]:
        yield f"{at}: over {schema[most]}"
