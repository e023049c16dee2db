"""What checking the books finds: differences, named so that the same one is told once a day."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

import attrs

from meterd.core.ids import fact_id
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
            return str(Decimal(self.found or "") - Decimal(self.expected or ""))
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


def as_json(fields: Mapping[str, object]) -> str:
    """Return JSON with sorted keys, so that equal details are equal text."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))
