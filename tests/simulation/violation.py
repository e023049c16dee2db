"""How an auditor says that a promise was broken."""

from __future__ import annotations


class Violation(AssertionError):  # noqa: N818  # what it is, not that it is an error
    """A promise was broken."""


def expect(truth: bool, promise: str, *facts: object) -> None:
    """Raise a Violation unless the promise was kept."""
    if not truth:
        raise Violation(f"{promise}: {' '.join(map(str, facts))}")
