"""Every exception meterd raises on purpose, in one tree.

    MeterdError
    ├── ConfigError                 settings that cannot work; meterd refuses to start (exit 2)
    ├── OwnedElsewhereError         another meterd owns the database (exit 3)
    ├── OwnershipLostError          this process no longer owns the database; it must stop
    ├── StoreError
    │   ├── StoreUnavailableError   not reachable, or the outcome is unknown; transient
    │   └── StoreRejectedError      PostgreSQL refused the data or the statement
    ├── PaymentsError
    │   ├── PaymentsUnavailableError  Stripe is away or the reply was lost; transient
    │   └── PaymentsRejectedError   Stripe understood and refused
    ├── EmbeddedPostgresError       the embedded server cannot be prepared or started
    ├── KeySetUnavailableError      an issuer's published keys cannot be read; transient
    ├── SinkUnavailableError        where live quotas are mirrored takes none; transient
    ├── PortalClosedError           the asyncio thread is gone; the outcome is unknown; transient
    ├── OverloadedError             a bounded queue is full; transient
    ├── ShuttingDownError           meterd is stopping; transient
    ├── ActorCrashedError           the message made the actor raise; nothing was applied; transient
    ├── QuarantinedError            the organization's actor failed too often; transient
    ├── OrganizationUnknownError    no organization has this id
    ├── CustomerTakenError          another organization already has this Stripe customer
    └── RequestInvalidError         the request cannot be understood; carries every problem found

Expected outcomes (denied, repeated, conflicting) are returned values, never exceptions.
A broken invariant is an `AssertionError` and costs one actor a strike.
`transient` tells whether trying the same thing again later can succeed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import attrs


class MeterdError(Exception):
    """Base of everything meterd raises on purpose."""

    transient: ClassVar[bool] = False


class ConfigError(MeterdError):
    """Settings are unknown, out of range or contradict each other; says what to change."""


class OwnedElsewhereError(MeterdError):
    """Another meterd process holds the owner lock of this database."""


class OwnershipLostError(MeterdError):
    """The owner epoch moved on: another process owns the database now."""


class StoreError(MeterdError):
    """PostgreSQL failed to do `action`."""

    def __init__(self, action: str, detail: str = "") -> None:
        super().__init__(f"store failed to {action}" + (f": {detail}" if detail else ""))
        self.action = action
        self.detail = detail


class StoreUnavailableError(StoreError):
    """PostgreSQL is away, or the reply was lost: whether a write took effect is unknown."""

    transient = True


class StoreRejectedError(StoreError):
    """PostgreSQL answered and refused: bad data, a broken constraint or a wrong schema."""


class PaymentsError(MeterdError):
    """Stripe failed to do `action`."""

    def __init__(self, action: str, detail: str = "") -> None:
        super().__init__(f"Stripe failed to {action}" + (f": {detail}" if detail else ""))
        self.action = action
        self.detail = detail


class PaymentsUnavailableError(PaymentsError):
    """Stripe is away or asks to wait, or its reply was lost: a write may have happened."""

    transient = True


class PaymentsRejectedError(PaymentsError):
    """Stripe answered and refused: a wrong key, an object that is not there, a bad parameter.

    `code` is Stripe's own (`resource_missing`, …), empty when it gave none.
    """

    def __init__(self, action: str, detail: str = "", *, code: str = "") -> None:
        super().__init__(action, detail)
        self.code = code


class EmbeddedPostgresError(MeterdError):
    """The embedded PostgreSQL cannot be created, started or reached; says what to do."""


class KeySetUnavailableError(MeterdError):
    """The keys of an issuer of session tokens cannot be read."""

    transient = True


class SinkUnavailableError(MeterdError):
    """Where live quotas are mirrored does not take them."""

    transient = True


class PortalClosedError(MeterdError):
    """The asyncio thread is not running; whether the work took effect is unknown."""

    transient = True


class OverloadedError(MeterdError):
    """A bounded queue is full: nothing was accepted, try again after `retry_after_ms`."""

    transient = True

    def __init__(self, what: str, *, retry_after_ms: int = 1_000) -> None:
        super().__init__(f"{what} is full")
        self.what = what
        self.retry_after_ms = retry_after_ms


class ShuttingDownError(MeterdError):
    """Meterd is stopping and takes no new work."""

    transient = True


class ActorCrashedError(MeterdError):
    """The message made the organization's actor raise; nothing of it was applied."""

    transient = True


class QuarantinedError(MeterdError):
    """The organization's actor failed too often and is kept apart until `retry_after_ms`."""

    transient = True

    def __init__(self, address: str, *, retry_after_ms: int) -> None:
        super().__init__(f"{address} is quarantined")
        self.address = address
        self.retry_after_ms = retry_after_ms


class OrganizationUnknownError(MeterdError):
    """No organization has this id."""


class CustomerTakenError(MeterdError):
    """Another organization is already linked to this Stripe customer."""


@attrs.frozen
class Problem:
    """One thing that is wrong with a request: `pointer` is an RFC 6901 JSON pointer."""

    pointer: str
    detail: str


class RequestInvalidError(MeterdError):
    """A request was understood as JSON but says something impossible; lists every problem."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "an invalid request has at least one problem"
        super().__init__("; ".join(f"{p.pointer or '/'}: {p.detail}" for p in problems))
        self.problems = tuple(problems)
