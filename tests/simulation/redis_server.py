"""Redis in a simulated world: what meterd writes there, and whether that is how it was.

A writing may be refused, done without an answer, done late, when nobody waits for it any more, or
hang; and Redis restarts with nothing in it. What it says must be what the organization once was,
and after the storm what it is.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from meterd.core.quota import QuotaView
from meterd.errors import SinkUnavailableError
from meterd.web.shapes import quota_object
from meterd.web.usage_live import encode_quota
from tests.simulation.auditor import limits
from tests.simulation.determinism import Chance
from tests.simulation.violation import expect
from tests.simulation.weather import Weather


if TYPE_CHECKING:
    from tests.simulation.meterd_process import MeterdProcess


REFRESH_S = 30
"""How often meterd writes everything it has in memory."""

RETRY_S = 15
"""After an absence meterd is back within so long."""

LOOKS_S = 4.0
"""Long enough to be looked at twice."""

TIMEOUT_S = 2.0
"""So long a writing is waited for; as in `adapters.redis`."""


class RedisServer:
    """The one Redis of a world, and its auditor."""

    def __init__(
        self,
        seed: int,
        weather: Callable[[], Weather],
        remembering: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """`remembering` keeps what is found inside meterd, whose supervisor would swallow it."""
        self._chance = Chance(seed, "redis")
        self._weather = weather
        self._kept: dict[str, tuple[bytes, float]] = {}
        self._was: dict[str, set[bytes]] = defaultdict(set)
        self._seen_s: dict[tuple[int, int, str], float] = {}
        self._shown: dict[str, tuple[int, Any]] = {}
        self._remembering = remembering
        self._is_away = False
        self._is_judged = True

    async def be_restarted(self) -> None:
        """Lose everything now and then."""
        while self._weather().redis_empty_every_s:
            await trio.sleep(self._chance.soon(self._weather().redis_empty_every_s))
            self._kept.clear()

    async def drill(self, change: Callable[[], None]) -> None:
        """Be away while something changes, then lose everything: each time all is there again."""
        if not self._weather().has_redis:
            return
        self._is_judged, self._is_away = False, True
        change()
        await trio.sleep(5)
        self._is_away = False
        await trio.sleep(RETRY_S)
        self._is_judged = True
        await trio.sleep(LOOKS_S)
        self._is_judged = False
        self._kept.clear()
        await trio.sleep(REFRESH_S + 1)
        self._is_judged = True
        await trio.sleep(LOOKS_S)

    async def put(self, quotas: Sequence[tuple[str, bytes]], ttl_ms: int) -> None:
        """Keep quotas, perhaps."""
        chance, weather = self._chance, self._weather()
        await trio.sleep(chance.soon(0.001))
        if self._is_away or chance.happens(weather.redis_away):
            raise SinkUnavailableError("no connection")
        if chance.happens(weather.redis_stalled):
            await trio.sleep(TIMEOUT_S)
            raise SinkUnavailableError("no answer")
        for organization_id, payload in quotas:
            is_known = payload in self._was[organization_id]
            with self._remembering():
                expect(is_known, "a quota that never was", organization_id, payload)
            self._kept[organization_id] = (payload, trio.current_time() + ttl_ms / 1_000)
        if chance.happens(weather.redis_reply_lost):
            await trio.sleep(TIMEOUT_S)
            raise SinkUnavailableError("no answer")

    def told(self, organization_id: str) -> dict[str, Any] | None:
        """Return what a gateway reads now."""
        payload, until_s = self._kept.get(organization_id, (b"null", 0.0))
        shown: dict[str, Any] | None = json.loads(payload)
        return shown if trio.current_time() < until_s else None

    def encode(self, process: MeterdProcess, view: QuotaView) -> bytes:
        """Encode as meterd does, and know that the organization is like that now."""
        payload = encode_quota(view)
        cell = process.organizations.cells.get(view.organization_id)
        assert cell is not None
        with self._remembering():
            expect_honest(json.loads(payload), cell.state, view.as_of_ms)
        self._was[view.organization_id].add(payload)
        return payload

    def compare(self, process: MeterdProcess) -> None:
        """In calm weather a gateway reads how things are, but for what changed just now."""
        for cell in process.organizations.cells if self._is_judged else ():
            if cell.phase.value != "ready" or cell.mailbox is not None:
                continue
            view = process.organizations.glimpse_nowait(cell.organization_id)
            assert view is not None
            now = _lasting(msgspec.to_builtins(quota_object(view)))
            # What was written and is not durable stays after a reload, until the refresh.
            place = (process.epoch, cell.loaded_ms, cell.organization_id)
            now_s = trio.current_time()
            if now_s < self._seen_s.setdefault(place, now_s) + REFRESH_S + 1:
                continue
            before = self._shown.get(cell.organization_id)
            self._shown[cell.organization_id] = (process.epoch, now)
            if before == (process.epoch, now):
                told = self.told(cell.organization_id)
                is_same = told is not None and _lasting(told) == now
                expect(is_same, "P6 what Redis says is how it is", now, told)


def _lasting(shown: dict[str, Any]) -> tuple[Any, ...]:
    """Return of a quota what does not change by itself with every millisecond."""
    minutes, agents = shown["agent_minutes"], shown["agents"]
    return (
        *(shown[name] for name in ("plan", "state", "allowed", "code", "billing_period")),
        *(minutes[name] for name in ("used_ms", "hard_limit", "overage")),
        *(agents[name] for name in ("active", "limit")),
    )


def expect_honest(shown: dict[str, Any], state: Any, now_ms: int) -> None:
    """Hold a quota object to the naive sum: it may not be more generous than how things are."""
    timeout_ms = state.rules.task_timeout_ms
    tasks = list(state.running.values())
    burning_ms = sum(min(now_ms - task.burning_from_ms, timeout_ms) for task in tasks)
    projected_ms = state.period.used_ms + burning_ms
    _, included_ms, hard_ms, _, _ = limits(state.terms)
    facts = (shown, projected_ms, included_ms, hard_ms)
    expect(shown["agent_minutes"]["projected_ms"] == projected_ms, "projected use", *facts)
    expect(shown["agents"]["active"] == len({t.info.agent_id for t in tasks}), "slots", *facts)
    if state.profile.holds:
        expect((shown["state"], shown["allowed"]) == ("suspended", False), "a hold", *facts)
    elif hard_ms is not None and projected_ms >= hard_ms:
        expect((shown["state"], shown["allowed"]) == ("exceeded", False), "a limit", *facts)
    elif hard_ms is not None and projected_ms >= included_ms:
        expect(shown["state"] == "grace", "past what is included", *facts)
