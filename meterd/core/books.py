"""What checking the books finds: differences, named so that the same one is told once a day."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

import attrs

from meterd.core.ids import fact_id
from meterd.core.period import Period
from meterd.core.units import day_start_ms


LEDGER_DIFFERENCE = "ledger_difference"
LIVE_DIFFERENCE = "live_difference"
TASK_DIFFERENCE = "task_difference"
METRICS_DIFFERENCE = "metrics_difference"
JOB_FAILED = "job_failed"


@attrs.frozen(kw_only=True)
class BookFinding:
    """Something a person should look at; nothing was changed because of it."""

    id: str
    at_ms: int
    kind: str
    organization_id: str | None
    detail_json: str


@attrs.frozen(kw_only=True)
class BookDifference:
    """One figure that is not what the ledger says."""

    kind: str
    """`LEDGER_DIFFERENCE` or one of its likes."""
    organization_id: str
    subject: str
    """What it is about: a billing period, `task <id>`, `row <id>`, `position`."""
    what: str
    expected: str | None
    found: str | None

    @property
    def amount(self) -> str | None:
        """Return found - expected, when both are numbers."""
        try:
            return f"{Decimal(self.found or '') - Decimal(self.expected or ''):f}"
        except InvalidOperation:
            return None

    def finding(self, at_ms: int) -> BookFinding:
        """Return it as a finding; the same difference on the same day has the same id."""
        parts = (self.kind, self.organization_id, self.subject, self.what, str(self.found))
        return BookFinding(
            id=fact_id("fnd", day_start_ms(at_ms), *parts),
            at_ms=at_ms,
            kind=self.kind,
            organization_id=self.organization_id,
            detail_json=as_json(
                {
                    "subject": self.subject,
                    "what": self.what,
                    "expected": self.expected,
                    "found": self.found,
                    "amount": self.amount,
                }
            ),
        )


@attrs.frozen(kw_only=True)
class StoredCounters:
    """An organization's open period as stored, at its durable position."""

    seq: int
    label: str
    used_ms: int
    recorded_ms: int
    overage_minutes: int
    overage_usd: Decimal
    total_usd: Decimal


@attrs.frozen(kw_only=True)
class RebuiltCounters:
    """A period whose counters were not what the ledger says, and now are."""

    organization_id: str
    label: str
    wrong_used_ms: int
    wrong_recorded_ms: int
    used_ms: int
    recorded_ms: int


def live_differences(
    organization_id: str, period: Period, stored: StoredCounters
) -> tuple[BookDifference, ...]:
    """Return what an organization's actor counts differently from what is stored of it."""
    pairs = (
        ("billing_period", stored.label, period.label),
        ("used_ms", stored.used_ms, period.used_ms),
        ("recorded_ms", stored.recorded_ms, period.recorded_ms),
        ("overage_minutes", stored.overage_minutes, period.overage_minutes),
        ("overage_usd", stored.overage_usd, period.overage_usd),
        ("total_usd", stored.total_usd, period.total_usd),
    )
    return tuple(
        BookDifference(
            kind=LIVE_DIFFERENCE,
            organization_id=organization_id,
            subject=period.label,
            what=what,
            expected=str(expected),
            found=str(found),
        )
        for what, expected, found in pairs
        if expected != found
    )


def as_json(fields: Mapping[str, object]) -> str:
    """Return JSON with sorted keys, so that equal details are equal text."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))
