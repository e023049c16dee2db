"""Spans of a trace, as the rest of meterd knows them: a function that gives a context manager.

Without tracing nothing of this is called for requests and decisions: what makes spans for them is
put around them at the start, or not at all. What happens seldom (a flush, a call of Stripe) asks
`no_span`, which gives the same empty context each time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final, Protocol


Attribute = str | int | bool


class Span(Protocol):
    """One span while it is open."""

    def tell(self, name: str, value: Attribute) -> None:
        """Keep a fact that was not known at the start."""
        ...

    def rename(self, name: str) -> None:
        """Give it the name that was not known at the start."""
        ...


class Spans(Protocol):
    """Opens spans. An exception that leaves the block marks the span as failed, masked."""

    def __call__(
        self,
        name: str,
        /,
        *,
        kind: str = "internal",
        headers: Mapping[str, str] | None = None,
        attributes: Mapping[str, Attribute] | None = None,
    ) -> contextlib.AbstractContextManager[Span]:
        """Open a span; `headers` of a request may name the span of whoever sent it."""
        ...


class _Nothing:
    """A span that nobody sees."""

    def tell(self, name: str, value: Attribute) -> None:
        """Forget it."""

    def rename(self, name: str) -> None:
        """Forget it."""


_NOTHING: Final = contextlib.nullcontext(_Nothing())


def no_span(
    _name: str,
    /,
    *,
    kind: str = "internal",  # noqa: ARG001  # as `Spans` has it
    headers: Mapping[str, str] | None = None,  # noqa: ARG001  # as `Spans` has it
    attributes: Mapping[str, Attribute] | None = None,  # noqa: ARG001  # as `Spans` has it
) -> contextlib.AbstractContextManager[Span]:
    """Open nothing: `Spans` without tracing."""
    return _NOTHING
