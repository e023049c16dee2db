"""`python -m tests.crash.failing_meterd POINT PASS AHEAD serve ...`: meterd that kills itself.

Rule 1: meterd knows nothing of this. Its adapters are wrapped here, from outside, before its own
command line runs.
Rule 2: the process dies as by `kill -9`, at the PASS-th time the point is passed, or `never`.
Rule 3: its system clock is AHEAD: so many milliseconds, or what a file says at each look. This
needs nothing installed and holds from the first instant; clock_steps.py sets a real one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meterd.adapters.clock import SystemClock, system_wall_ms
from meterd.adapters.postgres import migrate
from meterd.adapters.postgres.ledger import LedgerWriter
from meterd.adapters.postgres.pool import PostgresPools
from meterd.adapters.stripe.billing import StripeBilling
from meterd.adapters.webhook_sender import HttpsSender
from meterd.cli import main


Install = Callable[["Passes"], None]


class Passes:
    """Counts how often a point was passed."""

    def __init__(self, last: int) -> None:
        self._left = last

    def is_last(self) -> bool:
        """Count one pass; tell whether it is the one to die at."""
        self._left -= 1
        return self._left == 0


def die() -> None:
    """End this process as nothing can prevent."""
    os.kill(os.getpid(), signal.SIGKILL)


def always(*_: Any) -> bool:
    """Tell that every call is meant."""
    return True


def turns_a_period(batches: Any) -> bool:
    """Tell whether a flush closes a billing period."""
    return any(period.closed for batch in batches for period in batch.periods)


def before(owner: Any, name: str, is_meant: Callable[..., bool] = always) -> Install:
    """Die when a method is called, before it has done anything."""

    def install(passes: Passes) -> None:
        original = getattr(owner, name)

        async def wrapped(self: Any, *arguments: Any, **options: Any) -> Any:
            if is_meant(*arguments) and passes.is_last():
                die()
            return await original(self, *arguments, **options)

        setattr(owner, name, wrapped)

    return install


def after(owner: Any, name: str, is_meant: Callable[..., bool] = always) -> Install:
    """Die when a method has done everything, before its caller learns of it."""

    def install(passes: Passes) -> None:
        original = getattr(owner, name)

        async def wrapped(self: Any, *arguments: Any, **options: Any) -> Any:
            done = await original(self, *arguments, **options)
            if is_meant(*arguments) and passes.is_last():
                die()
            return done

        setattr(owner, name, wrapped)

    return install


def during_flush(passes: Passes) -> None:
    """Die when the flush has left for PostgreSQL and its answer has not come."""
    original = PostgresPools.write

    async def write(self: Any, action: str, work: Any, **options: Any) -> Any:
        async def cut(connection: Any) -> Any:
            sent = asyncio.ensure_future(work(connection))
            await asyncio.sleep(0.001)  # the statement is on its way, perhaps committed
            die()
            return await sent

        is_meant = action == "flush facts" and passes.is_last()
        return await original(self, action, cut if is_meant else work, **options)

    PostgresPools.write = write  # type: ignore[method-assign]  # what this program is for


def during_migration(passes: Passes) -> None:
    """Die when a migration's statements are done and its transaction is open."""
    original = migrate._run_step

    async def run_step(dsn: str, step: Any, text: str, run: Any) -> bool:
        if not passes.is_last():
            return await original(dsn, step, text, run)
        task = asyncio.ensure_future(original(dsn, step, f"{text}; SELECT pg_sleep(3)", run))
        await asyncio.sleep(1)
        die()
        return await task

    migrate._run_step = run_step


POINTS: dict[str, Install] = {
    "never": lambda _: None,
    "before_flush": before(LedgerWriter, "flush"),
    "during_flush": during_flush,
    "after_flush": after(LedgerWriter, "flush"),
    "before_rollover": before(LedgerWriter, "flush", turns_a_period),
    "after_rollover": after(LedgerWriter, "flush", turns_a_period),
    "during_migration": during_migration,
    "before_push": before(StripeBilling, "add_item"),
    "after_push": after(StripeBilling, "add_item"),
    "before_webhook": before(HttpsSender, "post"),
    "after_webhook": after(HttpsSender, "post"),
}


def ahead_ms(ahead: str) -> int:
    """Return how far the clock is ahead now, from a number or the file that says it."""
    return int(ahead if ahead.lstrip("-").isdigit() else Path(ahead).read_text())


if __name__ == "__main__":
    _, point, last, ahead, *words = sys.argv
    POINTS[point](Passes(int(last)))
    # The clock takes its source as the default of its first argument.
    SystemClock.__init__.__defaults__ = (lambda: system_wall_ms() + ahead_ms(ahead),)
    sys.argv = ["meterd", *words]
    main()
