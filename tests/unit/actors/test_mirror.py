"""The mirror in virtual time: what it writes and when, and that it keeps nobody in memory."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from trio.testing import MockClock

from meterd.actors.cells import ActorPolicy
from meterd.actors.mirror import Mirror, MirrorPolicy
from meterd.core.commands import Audited, ChangeSettings, FinishTask
from meterd.core.plan import Contract, Tier
from meterd.core.quota import QuotaView
from meterd.core.task import TaskOutcome
from tests.unit.actors.kernel import Kernel, running_kernel


@attrs.define(eq=False)
class Outside:
    """A sink that remembers the latest state it was told of each organization."""

    states: dict[str, str] = attrs.Factory(dict)
    writings: int = 0

    async def put(self, quotas: Sequence[tuple[str, bytes]], *, ttl_ms: int) -> None:
        """Remember."""
        assert ttl_ms > 0
        await trio.lowlevel.checkpoint()
        self.writings += len(quotas)
        self.states |= {name: payload.decode() for name, payload in quotas}


def _state(view: QuotaView) -> bytes:
    return view.state.value.encode()


@asynccontextmanager
async def mirrored(
    *, refresh_ms: int = 180_000, **settings: Any
) -> AsyncIterator[tuple[Kernel, Outside]]:
    """Give a kernel whose quotas are mirrored."""
    async with running_kernel(is_created=False, **settings) as kernel, trio.open_nursery() as extra:
        outside = Outside()
        mirror = Mirror(
            kernel.organizations,
            outside,
            encode=_state,
            jitter=iter(lambda: 0.5, None),
            policy=MirrorPolicy(refresh_ms=refresh_ms),
        )
        kernel.organizations.cells.on_change = mirror.note
        extra.start_soon(mirror.run)
        yield kernel, outside
        extra.cancel_scope.cancel()


async def test_a_state_that_only_time_has_changed_is_written_at_once(
    autojump_clock: MockClock,
) -> None:
    """A gateway would let work pass for minutes that meterd warns of already."""
    async with mirrored(task_timeout_ms=3_600_000) as (kernel, outside):
        await kernel.create(plan=Tier.STARTER, contract=Contract(agent_minutes=10))
        mute = ChangeSettings(
            audited=Audited(actor="key_1", reason="quiet"), threshold_percents=(100,)
        )
        await kernel.organizations.ask("org_1", mute)
        await kernel.start()
        await trio.sleep(8 * 60 - 1)
        assert outside.states == {"org_1": "ok"}

        await trio.sleep(1.5)

        assert outside.states == {"org_1": "warning"}


async def test_who_is_only_mirrored_leaves_the_memory(autojump_clock: MockClock) -> None:
    """Writing an organization again and again is no use of it: memory would only ever grow."""
    policy = ActorPolicy(passivate_after_ms=60_000)
    async with mirrored(refresh_ms=20_000, policy=policy) as (kernel, outside):
        await kernel.create()
        await kernel.start()
        finish = FinishTask(task_id="task_1", elapsed_ms=0, outcome=TaskOutcome.SUCCEEDED)
        await kernel.organizations.ask("org_1", finish)
        await kernel.settle()

        await trio.sleep(50)
        assert outside.writings > 2
        await trio.sleep(100)  # the timer of the task's silence is the last use

        assert kernel.organizations.cells.get("org_1") is None
        last = outside.writings
        await trio.sleep(60)
        assert outside.writings == last
