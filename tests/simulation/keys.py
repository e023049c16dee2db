"""Keys in a simulated world: owners make, roll and revoke them, and somebody always tries them.

Some revoke through meterd, some with the command beside it, which has a clock of its own.
`KeyBooks` remembers what was answered, and judges every verdict that any process gives later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import trio

from meterd.actors.keyring import KeyRing, Principal, make_key
from meterd.adapters.clock import SystemClock
from meterd.adapters.ids import IdSource
from meterd.adapters.memory.store import MemoryStore
from tests.simulation.determinism import Chance
from tests.simulation.violation import expect


if TYPE_CHECKING:
    from tests.simulation.meterd_process import MeterdProcess
    from tests.simulation.world import World


HELD_MAX = 4
CLOCKS_APART_MS = 600_000
"""How wrong the clock of an operator's machine may be."""

REVOKED_TRIED_MAX = 3
"""Of the revoked keys the latest are tried again."""

AT_ONCE_S = 1.0
"""A revoked key is refused by everybody after a second."""


@attrs.define(kw_only=True, eq=False)
class Held:
    """A key that was answered to its owner."""

    organization_id: str
    key_id: str
    text: str
    is_given_up: bool = False
    """Its owner has asked for its end, answered or not."""
    revoked_s: float | None = None
    """When its end was answered."""
    revoked_by: MeterdProcess | None = None


class KeyBooks:
    """What was answered about keys, and whether every later verdict agrees."""

    def __init__(self) -> None:
        self._looked_s: dict[tuple[int, str], float] = {}
        """By process and key: when it was first asked for."""
        self._known_s: dict[tuple[int, str], float] = {}
        """By process and key: when the process first knew it."""
        self.verdicts = 0

    def on_try(self, process: MeterdProcess, held: Held) -> None:
        """Know that a process is asked about a key from now on."""
        self._looked_s.setdefault((process.epoch, held.key_id), trio.current_time())

    def on_verdict(
        self,
        process: MeterdProcess,
        held: Held,
        principal: Principal | None,
        *,
        asked_s: float,
        is_calm: bool,
    ) -> None:
        """Judge what a process says of a key."""
        self.verdicts += 1
        facts = (held, principal, process.epoch, asked_s)
        if principal is None:
            expect(held.is_given_up, "P1 a key that was answered works", *facts)
            return
        expect(principal.organization_id == held.organization_id, "P5 whose key it is", *facts)
        expect(principal.key_id == held.key_id, "P5 which key it is", *facts)
        place = (process.epoch, held.key_id)
        known_s = self._known_s.setdefault(place, trio.current_time())
        if held.revoked_s is None or asked_s <= held.revoked_s:
            return
        expect(process is not held.revoked_by, "P5 who revokes a key refuses it", *facts)
        was_asked = self._looked_s[place] <= held.revoked_s
        expect(was_asked, "P5 a key is looked up after its end", *facts)
        since_s = max(held.revoked_s, known_s)
        has_read = process.revocations_read_s > since_s
        expect(not has_read, "P5 a process has read of its end", *facts)
        is_soon = asked_s <= since_s + AT_ONCE_S
        expect(is_soon or not is_calm, "P5 a revoked key is refused within a second", *facts)


class KeyOwner:
    """Somebody of one organization who keeps its keys, and its programs that use them."""

    def __init__(self, world: World, organization_id: str) -> None:
        self._world = world
        self._organization_id = organization_id
        self._chance = Chance(world.seed, f"keys of {organization_id}")
        self._held: list[Held] = []
        self._revoked: list[Held] = []

    async def run(self) -> None:
        """Make, roll, revoke and use keys for as long as the storm lasts."""
        chance, every_s = self._chance, self._world.weather.keys_every_s
        while every_s:
            await trio.sleep(chance.soon(every_s))
            if len(self._held) < chance.whole(1, HELD_MAX):
                await self._make()
                if self._held and chance.happens(0.3):  # it was a mistake
                    await self._end(self._held[-1])
            else:
                if chance.happens(0.5):  # it is rolled
                    await self._make()
                await self._end(chance.pick(*self._held))
            await trio.sleep(chance.between(0.001, 0.3))
            await self.use()

    async def drill(self) -> None:
        """Revoke a key that is in use, with the command: everybody refuses it after a second."""
        if self._world.weather.keys_every_s:
            await self._make()
            await self.use()
            await self._end(self._held[-1], is_beside=True)
            await trio.sleep(AT_ONCE_S + 0.1)
            await self.use()

    async def use(self) -> None:
        """Try keys, and one that nobody made, wherever somebody listens."""
        for process in self._listening():
            tried = [*self._held, *self._revoked[-REVOKED_TRIED_MAX:]]
            async with trio.open_nursery() as nursery:
                for held in tried:
                    nursery.start_soon(self._try, process, held)
            await self._invent(process)

    def _listening(self) -> Sequence[MeterdProcess]:
        return [each for each in self._world.processes if each.is_accepting]

    async def _make(self) -> None:
        process = self._world.current
        if process is None:
            return
        made: list[Held] = []

        async def ask() -> None:
            stored, text = await process.keyring.create(
                self._organization_id, scopes={"agent"}, created_by="key_owner"
            )
            made.append(Held(organization_id=self._organization_id, key_id=stored.id, text=text))

        if await process.ask(ask):
            self._held += made

    async def _end(self, held: Held, *, is_beside: bool = False) -> None:
        """Revoke a key, and use it meanwhile; until that is answered its fate is open."""
        held.is_given_up = True
        process = self._world.current
        is_beside = is_beside or self._chance.happens(0.3)
        if process is None and not is_beside:
            return
        async with trio.open_nursery() as nursery:
            if process is not None:
                nursery.start_soon(self._try, process, held)
            if is_beside:
                await self._beside().revoke(self._organization_id, held.key_id)
            elif process is not None and not await self._revoke(process, held):
                return
        held.revoked_s = trio.current_time()
        held.revoked_by = None if is_beside else process
        self._held.remove(held)
        self._revoked.append(held)

    async def _revoke(self, process: MeterdProcess, held: Held) -> bool:
        found: list[object] = []

        async def ask() -> None:
            found.append(await process.keyring.revoke(self._organization_id, held.key_id))

        is_answered = await process.ask(ask)
        expect(not is_answered or None not in found, "P1 a key that was made is found", held)
        return is_answered

    def _beside(self) -> KeyRing:
        """Return the key ring of `meterd keys`, a process of its own, on any machine."""
        world, apart_ms = self._world, self._chance.pick(0, -CLOCKS_APART_MS, CLOCKS_APART_MS)
        clock = SystemClock(lambda: world.wall_ms() + apart_ms)
        return KeyRing(
            MemoryStore(world.database, epoch=world.database.epoch, clock=clock),
            pepper=world.database.stored_pepper or b"",
            clock=clock,
            ids=IdSource(clock.now_ms, self._chance.random),
            chance=self._chance.random.randbytes,
        )

    async def _try(self, process: MeterdProcess, held: Held) -> None:
        asked_s, books = trio.current_time(), self._world.keys
        is_calm = asked_s > self._world.calm_from_s
        books.on_try(process, held)
        told: list[Principal | None] = []

        async def ask() -> None:
            told.append(await process.keyring.authenticate(held.text))

        if await process.ask(ask):
            books.on_verdict(process, held, told[0], asked_s=asked_s, is_calm=is_calm)

    async def _invent(self, process: MeterdProcess) -> None:
        invented = make_key(self._chance.random.randbytes(32))
        told: list[Principal | None] = []

        async def ask() -> None:
            told.append(await process.keyring.authenticate(invented))

        if await process.ask(ask):
            expect(told == [None], "P5 nobody made this key", told)
