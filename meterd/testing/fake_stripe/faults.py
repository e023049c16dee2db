"""What goes wrong on purpose: with requests to the API, and with deliveries to endpoints.

Two ways to ask: a rate between 0 and 1 drawn from the seeded source, or a script whose entries
are used up one by one (`fail_next`), for tests that need one exact fault.
"""

from __future__ import annotations

import random
import re
from collections import deque
from enum import Enum

import attrs


class RequestFault(Enum):
    """How a request to the API goes wrong."""

    DROP_BEFORE = "drop_before"
    """The connection closes; nothing was done."""
    DROP_AFTER = "drop_after"
    """The work is done, the reply lost."""
    RATE_LIMITED = "rate_limited"
    """429, nothing was done and no key remembered."""
    ERROR_BEFORE = "error_before"
    """500, nothing was done and no key remembered."""
    ERROR_AFTER = "error_after"
    """500 although the work is done; the 500 is what the key remembers, as at Stripe."""
    TIMEOUT_BEFORE = "timeout_before"
    """No answer until the client gives up; nothing was done."""
    TIMEOUT_AFTER = "timeout_after"
    """No answer until the client gives up, although the work is done."""


@attrs.define
class _Planned:
    fault: RequestFault
    method: str | None
    path: re.Pattern[str]


@attrs.define(kw_only=True)
class Faults:
    """The switches. All off: an API that always works and delivers once, in order."""

    chance: random.Random
    away: bool = False
    """Every connection is closed at once, control routes excepted."""
    request_rates: dict[RequestFault, float] = attrs.field(factory=dict)
    """Probability of each fault per API request."""
    rates_path: str = ""
    """Regular expression of the paths that `request_rates` apply to."""
    twin_rate: float = 0.0
    """Probability that one change is told by two events with different ids."""
    repeat_rate: float = 0.0
    """Probability that a delivery is sent again, once more each time it hits (at most 5)."""
    delay_rate: float = 0.0
    """Probability that a delivery waits in real time before it is sent."""
    delay_ms_max: int = 200
    reorder_rate: float = 0.0
    """Probability that waiting deliveries are shuffled before they are sent."""
    lose_rate: float = 0.0
    """Probability that an attempt never reaches the endpoint; it is retried later."""
    holds_deliveries: bool = False
    """Nothing is sent until it is switched off or `FakeStripe.release` is called."""
    timeout_s: float = 60.0
    """Real seconds a timed-out request is kept open at most."""
    _script: deque[_Planned] = attrs.field(factory=deque, init=False)

    def fail_next(self, *faults: RequestFault, method: str | None = None, path: str = "") -> None:
        """Have the next matching requests go wrong, one fault each."""
        pattern = re.compile(path)
        self._script.extend(_Planned(fault, method, pattern) for fault in faults)

    def draw(self, method: str, path: str) -> RequestFault | None:
        """Return the fault of this request, if any."""
        for planned in self._script:
            if planned.method in {None, method} and planned.path.search(path):
                self._script.remove(planned)
                return planned.fault
        if not re.search(self.rates_path, path):
            return None
        for fault, rate in self.request_rates.items():
            if self.chance.random() < rate:
                return fault
        return None

    def copies(self) -> int:
        """How often one delivery is sent: 1, or more when repetition strikes."""
        copies = 1
        while copies < 5 and self.strikes(self.repeat_rate):  # noqa: PLR2004 - bound
            copies += 1
        return copies

    def delay_ms(self) -> int:
        """Real milliseconds this delivery waits."""
        if self.delay_rate and self.chance.random() < self.delay_rate:
            return self.chance.randint(1, max(self.delay_ms_max, 1))
        return 0

    def strikes(self, rate: float) -> bool:
        """Whether something of this probability happens now."""
        return rate > 0 and self.chance.random() < rate

    def clear(self) -> None:
        """Everything works again."""
        self.away = self.holds_deliveries = False
        self.request_rates.clear()
        self.rates_path = ""
        self.twin_rate = self.repeat_rate = self.delay_rate = self.reorder_rate = self.lose_rate = (
            0.0
        )
        self._script.clear()
