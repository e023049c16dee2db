"""The report as JSON values: money as text, plans and movements by their names."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import attrs

from meterd.reporting.figures import Report


def document(report: Report) -> dict[str, Any]:
    """Return the same data as the Markdown, complete."""
    found = values(report)
    assert isinstance(found, dict), found
    return found


def values(value: Any) -> Any:
    """Return a value of a report as JSON can hold it."""
    if attrs.has(type(value)):
        fields = attrs.fields(type(value))
        return {field.name: values(getattr(value, field.name)) for field in fields}
    match value:
        case enum.Enum():
            return value.value
        case Decimal():
            return str(value)
        case Mapping():
            return {values(key): values(each) for key, each in value.items()}
        case tuple() | list():
            return [values(each) for each in value]
        case _:
            return value
