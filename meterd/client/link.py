"""Whether there is a connection, and when to try again: full jitter, doubling, never for a bad key.

Rule: the count of failures falls back to zero only when the service has said something. A server
that accepts and closes at once is therefore not hammered.
"""

from __future__ import annotations

from enum import Enum, auto

from meterd.client.chance import Chance
from meterd.client.errors import Forbidden, KeyRejected, Unauthorized
from meterd.client.policy import Settings


CLOSE_UNAUTHORIZED = 4401
CLOSE_FORBIDDEN = 4403
CLOSE_TOO_MANY_CONNECTIONS = 4429
HTTP_UNAUTHORIZED = 401
HTTP_FORBIDDEN = 403
CROWDED_FAILURES_MIN = 5
"""Too many connections from this address: back off as after five failures."""


class LinkState(Enum):
    """Life of the connection; REJECTED is final."""

    WAITING = auto()
    CONNECTING = auto()
    OPEN = auto()
    REJECTED = auto()


def backoff_ms(settings: Settings, chance: Chance, failures: int) -> int:
    """Give a wait between 0 and a ceiling that doubles with every failure ("full jitter").

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    ceiling_ms = min(settings.backoff_ms << min(failures, 32), settings.backoff_ms_max)
    return chance.up_to(ceiling_ms)


class Link:
    """The connection's state, driven by what the shell reports."""

    def __init__(self, settings: Settings, chance: Chance) -> None:
        self._settings, self._chance = settings, chance
        self.state = LinkState.WAITING
        self.failures = 0
        self.retry_at_ms = 0
        self.rejection: KeyRejected | None = None
        self.last_reason = ""

    def connecting(self) -> None:
        """Note that the shell is opening a connection."""
        assert self.state is LinkState.WAITING, self.state
        self.state = LinkState.CONNECTING

    def connected(self) -> None:
        """Note that the handshake is done."""
        assert self.state is LinkState.CONNECTING, self.state
        self.state = LinkState.OPEN

    def heard(self) -> None:
        """Note that the service said something: the next loss starts a new back-off."""
        self.failures = 0

    def refused(self, status: int | None, retry_after_ms: int, reason: str, now_ms: int) -> None:
        """Note a handshake that failed; `status` is the HTTP status when there was one."""
        if status == HTTP_UNAUTHORIZED:
            self._reject(Unauthorized("meterd does not accept this key."))
        elif status == HTTP_FORBIDDEN:
            self._reject(Forbidden("This key may not report tasks (scope `agent`)."))
        else:
            self._wait(reason, retry_after_ms, now_ms)

    def lost(self, code: int, reason: str, now_ms: int) -> None:
        """Note a connection that ended, with its WebSocket close code (1006: none came)."""
        if code == CLOSE_UNAUTHORIZED:
            self._reject(Unauthorized("meterd does not accept this key (any longer)."))
        elif code == CLOSE_FORBIDDEN:
            self._reject(Forbidden("This key may not report tasks (scope `agent`)."))
        else:
            if code == CLOSE_TOO_MANY_CONNECTIONS:
                self.failures = max(self.failures, CROWDED_FAILURES_MIN)
            self._wait(f"connection closed ({code}) {reason}".strip(), 0, now_ms)

    def _wait(self, reason: str, at_least_ms: int, now_ms: int) -> None:
        delay_ms = at_least_ms + backoff_ms(self._settings, self._chance, self.failures)
        self.state = LinkState.WAITING
        self.failures += 1
        self.retry_at_ms = now_ms + delay_ms
        self.last_reason = reason

    def _reject(self, error: KeyRejected) -> None:
        self.state = LinkState.REJECTED
        self.rejection = error
