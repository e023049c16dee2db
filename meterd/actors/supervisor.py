"""Supervision: the only code that catches every exception.

An organization's message that raises is turned into a `Crash` value (`attempt`); a service actor
that raises is started again after a back-off (`Service.run`), and when that does not help the
failure is escalated: the process stops being ready and ends, for its own supervisor to restart.
Cancellation is never caught.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, ParamSpec, TypeVar

import attrs
import structlog
import trio

from meterd.core.supervision import Escalate, RestartPolicy, after_failure, recent
from meterd.core.units import SECOND_MS
from meterd.errors import MeterdError, OwnershipLostError
from meterd.ports.clock import Clock


P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)

FAILURES_KEPT: Final = 20
"""Failures that each service actor remembers for operators."""

WHERE_FRAMES: Final = 3
"""Innermost frames named for a crash."""


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


def where_in(error: BaseException) -> str:
    """Return where an error was raised: file, line and function, innermost first; no values."""
    frames = traceback.extract_tb(error.__traceback__)[-WHERE_FRAMES:]
    return " < ".join(
        f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}"
        for frame in reversed(frames)
    )


@attrs.frozen(kw_only=True)
class Failure:
    """One failure of a service actor."""

    at_ms: int
    address: str
    error: str
    where: str


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
        self.failures: deque[Failure] = deque(maxlen=FAILURES_KEPT)
        self._scope: trio.CancelScope | None = None
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
                with trio.CancelScope() as self._scope:
                    await self._run()
                    return
            except OwnershipLostError:
                raise
            except Exception as error:
                await self._back_off(error)
            else:
                self.restarts += 1  # an operator asked for it: it starts again at once

    def restart(self) -> None:
        """Cancel the actor and start it again at once: an operator's, so not a failure."""
        if self._scope is not None:
            self._scope.cancel()

    async def _back_off(self, error: Exception) -> None:
        now_ms = self._clock.now_ms()
        window_ms = self._policy.window_ms
        self._failures_ms = (
            *recent(self._failures_ms, now_ms=now_ms, window_ms=window_ms),
            now_ms,
        )
        self.last_error = f"{type(error).__name__}: {error}"
        self.failures.append(
            Failure(
                at_ms=now_ms,
                address=f"service/{self.name}",
                error=self.last_error,
                where=where_in(error),
            )
        )
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
