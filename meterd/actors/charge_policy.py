"""How charges are made and pushed: the settings of the charges actor and its parts."""

from __future__ import annotations

import attrs

from meterd.core.overage import Review
from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS


@attrs.frozen(kw_only=True)
class ChargePolicy:
    """How charges are made and pushed."""

    review: Review = attrs.Factory(Review)
    wait_ms: int = 10 * MINUTE_MS
    """How long a closed period waits for tasks that have not reported past its end."""
    poll_ms: int = 5_000
    at_once: int = 8
    """Organizations whose charges are moved at the same time."""
    retry_min_ms: int = 2_000
    retry_max_ms: int = 10 * MINUTE_MS
    look_min_ms: int = 2 * HOUR_MS
    """First look whether a pushed item's invoice was finalized; a draft lives about an hour."""
    look_max_ms: int = DAY_MS
    away_max_ms: int = MINUTE_MS
