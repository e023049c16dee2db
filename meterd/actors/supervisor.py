"""Supervision: the only code that catches every exception.

An organization's message that raises is turned into a `Crash` value (`attempt`); a service actor
that raises is started again after a back-off (`Service.run`), and when that does not help the
failure is escalated: the process stops being ready and ends, for its own supervisor to restart.
Cancellation is never caught.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import attrs
import structlog
import trio

from meterd.core.supervision import Escalate, RestartPolicy, after_failure, recent
from meterd.core.units import SECOND_MS
from meterd.errors import MeterdError, OwnershipLostError
from meterd.ports import Clock


P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)


@attrs.frozen
class Crash:
    """A handler raised: nothing of its message may be kept."""

    error: Exception


def attempt(handler: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Crash:
    """Return what a synchronous handler returns, or the crash it caused."""
    try:
        return handler(*args, **kwargs)
    except Exception as error:
        return Crash(error)


async def attempt_async(
    handler: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
) -> T | Crash:
    """Return what an asynchronous handler returns, or the crash it caused."""
    try:
        return await handler(*args, **kwargs)
    except Exception as error:
        return Crash(error)


class EscalatedError(MeterdError):
    """A service actor failed too often: the process must be restarted."""


class Service:
    """One supervised service actor (ledger, timers, loader, …) and what an operator sees of it."""

    def __init__(
        self,
        name: str,
        run: Callable[[], Awaitable[None]],
        *,
        clock: Clock,
        policy: RestartPolicy | None = None,
    ) -> None:
        self.name = name
        self.restarts = 0
        self.last_error: str | None = None
        self.phase = "ready"
        self._run = run
        self._clock = clock
        self._policy = policy or RestartPolicy()
        self._failures_ms: tuple[int, ...] = ()

    @property
    def strikes(self) -> int:
        """Return the failures within the policy's window."""
        now_ms = self._clock.now_ms()
        return len(recent(self._failures_ms, now_ms=now_ms, window_ms=self._policy.window_ms))

    async def run(self) -> None:
        """Run the actor for ever, starting it again when it fails.

        Errors: EscalatedError after too many failures; OwnershipLostError as it is, because
        starting again cannot help a process that no longer owns its database.
        """
        while True:
            try:
                await self._run()
            except OwnershipLostError:
                raise
            except Exception as error:
                await self._back_off(error)
            else:
                return

    async def _back_off(self, error: Exception) -> None:
        now_ms = self._clock.now_ms()
        window_ms = self._policy.window_ms
        self._failures_ms = (
            *recent(self._failures_ms, now_ms=now_ms, window_ms=window_ms),
            now_ms,
        )
        self.last_error = f"{type(error).__name__}: {error}"
        verdict = after_failure(self._policy, self._failures_ms, now_ms)
        if isinstance(verdict, Escalate):
            self.phase = "escalated"
            message = f"service actor {self.name} failed {verdict.failures} times"
            raise EscalatedError(message) from error
        log.error(
            "service_actor_failed", actor=self.name, delay_ms=verdict.delay_ms, exc_info=error
        )
        self.restarts += 1
        self.phase = "backing_off"
        await trio.sleep(verdict.delay_ms / SECOND_MS)
        self.phase = "ready"
