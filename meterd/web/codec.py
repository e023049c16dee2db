"""Strict decoding: bytes → JSON → typed structures, with every problem found at once.

Rule 1: what two parsers could read differently is refused: repeated keys, NaN, a byte order mark,
invalid UTF-8, numbers and nesting beyond any sensible use.
Rule 2: nothing that is said about a request repeats its values or the names it made up: problems
point at known fields only and describe what would have been right.
Rule 3: an integer is an integer: `true`, `1.0` and `"1"` are not.

Limits are those of contract §1; the structures themselves are in `meterd.web.schema`.
"""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final, TypeVar, Union, get_args, get_origin

import msgspec

from meterd.errors import MeterdError, Problem, RequestInvalidError


T = TypeVar("T", bound=msgspec.Struct)

JsonValue = dict[str, Any] | list[Any] | str | int | float | bool | None

DEPTH_MAX: Final = 32
"""Levels of nesting; metadata of 4 KB never needs more."""

INTEGER_DIGITS_MAX: Final = 100
"""Digits of an integer; more than any field takes, and parsing takes no noticeable time."""

INTEGER_MAX: Final = 2**63 - 1
"""Largest magnitude of an integer no field bounds further: every client's library has 64 bits."""

METADATA_BYTES_MAX: Final = 4_096
"""Canonical JSON of one object, in bytes."""

PROBLEMS_MAX: Final = 100
"""Problems listed in one answer; with more the request is wrong as a whole."""

_EXPONENT_FROM: Final = 1e16
"""From here on `repr` writes a float with an exponent; all of these are whole."""

_PERIOD_LABEL = re.compile(
    r"[0-9]{4}-[0-9]{2}(-[0-9]{2}(T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{3})?Z)?)?", re.ASCII
)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UNSTORABLE: Final = frozenset(map(chr, (0, *range(0xD800, 0xE000))))


class BadJsonError(MeterdError):
    """The body is not JSON, or not JSON that every parser reads the same way."""


def parse_json(raw: bytes) -> JsonValue:
    """Return the JSON value in `raw`, of which only one reading exists.

    Errors: BadJsonError, which says what is wrong without repeating any of it.
    """
    if raw.startswith(_BYTE_ORDER_MARK):
        raise BadJsonError("The body begins with a byte order mark.")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise BadJsonError("The body is not valid UTF-8.") from None
    try:
        value: JsonValue = _DECODER.decode(text)
    except RecursionError:
        raise BadJsonError("The JSON is nested too deeply.") from None
    except ValueError:
        raise BadJsonError("The body is not valid JSON.") from None
    if _is_deeper(value, DEPTH_MAX):
        raise BadJsonError("The JSON is nested too deeply.")
    return value


def decode(kind: type[T], value: JsonValue) -> T:
    """Return the JSON value as a `kind`, or every problem at once.

    Errors: RequestInvalidError.
    """
    problems = list(_problems(kind, value, ""))
    if problems:
        raise RequestInvalidError(problems[:PROBLEMS_MAX])
    return msgspec.convert(value, kind, strict=True)


def canonical_json(value: object) -> str:
    """Return JSON with sorted keys and no spaces: equal values have equal text.

    Numbers take the form in which jsonb gives them back, so that text read from the store is the
    same: whole numbers beyond 1e16 in full, and no negative zero.
    """
    return json.dumps(
        _as_stored(value),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    )


def _as_stored(value: object) -> object:
    if isinstance(value, float) and (value == 0 or abs(value) >= _EXPONENT_FROM):
        return int(value) if value else 0.0
    if isinstance(value, dict):
        return {key: _as_stored(item) for key, item in value.items()}
    return [_as_stored(item) for item in value] if isinstance(value, list) else value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadJsonError("An object has a key twice.")
    if any("\ud800" <= character <= "\udfff" for name in found for character in name):
        raise BadJsonError("A key holds half of a surrogate pair.")  # it has no UTF-8
    return found


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > INTEGER_DIGITS_MAX:
        raise BadJsonError("An integer has too many digits.")
    return int(digits)


def _fraction(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise BadJsonError("A number is too large.")
    return value


def _no_constant(name: str) -> float:
    del name
    raise BadJsonError("NaN and Infinity are not JSON.")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_int=_integer,
    parse_float=_fraction,
    parse_constant=_no_constant,
)


def _is_deeper(value: JsonValue, levels: int) -> bool:
    if isinstance(value, dict):
        return levels == 0 or any(_is_deeper(item, levels - 1) for item in value.values())
    if isinstance(value, list):
        return levels == 0 or any(_is_deeper(item, levels - 1) for item in value)
    return False


# --- problems -----------------------------------------------------------------------------------


def _problems(kind: type[msgspec.Struct], value: object, pointer: str) -> Iterator[Problem]:
    """Yield what keeps a JSON value from being a `kind`, fields in the order of declaration."""
    if not isinstance(value, dict):
        yield Problem(pointer, "must be an object")
        return
    fields = _fields(kind)
    tag = kind.__struct_config__.tag_field
    known = {field.encode_name for field in fields} | {tag}
    if not value.keys() <= known:
        names = ", ".join(field.encode_name for field in fields)
        yield Problem(pointer, f"has a field that is not known; the known fields are {names}")
    for field in fields:
        place = f"{pointer}/{field.encode_name}"
        if field.encode_name not in value:
            if field.required:
                yield Problem(place, "is required")
            continue
        yield from _field_problems(field.type, value[field.encode_name], place)


_fields = cache(msgspec.structs.fields)
"""Looking at a structure's annotations takes longer than everything else here together."""


def _field_problems(annotation: Any, value: object, pointer: str) -> Iterator[Problem]:
    nested = _nested(annotation)
    if nested is not None and not (value is None and _takes_null(annotation)):
        yield from _problems(nested, value, pointer)
        return
    try:
        converted = msgspec.convert(value, annotation, strict=True)
    except (msgspec.ValidationError, UnicodeEncodeError):  # half a surrogate pair has no UTF-8
        yield Problem(pointer, _must(annotation))
        return
    rule = _extra(annotation).get("rule")
    if rule is not None and converted is not None and not rule(converted):
        yield Problem(pointer, _must(annotation))


@cache
def _nested(annotation: Any) -> type[msgspec.Struct] | None:
    """Return the structure that a field holds, if it holds one."""
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            return part
    return None


@cache
def _takes_null(annotation: Any) -> bool:
    return type(None) in _parts(annotation)


@cache
def _extra(annotation: Any) -> dict[str, Any]:
    """Return what `Meta(extra=…)` says anywhere in an annotation."""
    found: dict[str, Any] = {}
    for part in (annotation, *_parts(annotation)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta) and meta.extra:
                found |= meta.extra
    return found


def _must(annotation: Any) -> str:
    """Return what a value must be, in words; never what it was."""
    text: str = _extra(annotation).get("must", "has a value of the wrong kind")
    return f"{text}, or null" if _takes_null(annotation) else text


def _parts(annotation: Any) -> Sequence[Any]:
    """Return the alternatives of an annotation, themselves without `Annotated`."""
    if hasattr(annotation, "__metadata__"):
        return [annotation, *_parts(annotation.__origin__)]
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for option in get_args(annotation) for part in _parts(option)]
    return [annotation]


# --- rules that a pattern cannot say --------------------------------------------------------------


def is_period_label(text: str) -> bool:
    """Tell whether text can name a billing period: a month, a day or an instant."""
    return _PERIOD_LABEL.fullmatch(text) is not None


def is_storable_metadata(value: object) -> bool:
    """Tell whether an object fits: at most 4 KB of canonical JSON, storable values only."""
    if not isinstance(value, dict) or not _is_storable(value):
        return False
    return len(canonical_json(value).encode()) <= METADATA_BYTES_MAX


def _is_storable(value: object) -> bool:
    """Tell whether no text has what jsonb cannot hold, and no integer needs more than 64 bits."""
    if isinstance(value, str):
        return _UNSTORABLE.isdisjoint(value)
    if isinstance(value, dict):
        return all(_is_storable(key) and _is_storable(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_storable, value))
    return not isinstance(value, int) or abs(value) <= INTEGER_MAX
