"""Bugs planted in keys: whose they are, from when on and until when; see `planted`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio

from meterd.actors.keyring import KeyRing
from meterd.adapters.memory.store import MemoryStore
from meterd.errors import StoreUnavailableError
from tests.simulation.meterd_process import KeyPort
from tests.simulation.planted import bug


@bug
def a_key_is_answered_although_it_may_not_be_stored(patch: pytest.MonkeyPatch) -> None:
    """Take a lost reply for a yes."""

    async def hopeful(self: KeyPort, key: Any, digest: bytes) -> bool:
        try:
            return bool(await self._call("add_key", lambda: self._port.add_key(key, digest)))
        except StoreUnavailableError:
            return True

    patch.setattr(KeyPort, "add_key", hopeful, raising=False)


@bug
def every_process_makes_a_pepper(patch: pytest.MonkeyPatch) -> None:
    """Hash under a secret of the process: keys die with it."""

    async def own(_store: MemoryStore, candidate: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return candidate

    patch.setattr(MemoryStore, "pepper", own)


@bug
def keys_are_told_apart_by_four_bits(patch: pytest.MonkeyPatch) -> None:
    """Cut the digest short: somebody else's key is found."""
    digest = KeyRing._digest
    patch.setattr(KeyRing, "_digest", lambda self, bearer: bytes([digest(self, bearer)[0] & 15]))


@bug
def nobody_hears_of_a_revocation_elsewhere(patch: pytest.MonkeyPatch) -> None:
    """Forget keys where they are revoked, and nowhere else."""

    async def deaf(_ring: KeyRing) -> None:
        await trio.sleep_forever()

    patch.setattr(KeyRing, "watch", deaf)


@bug
def revocations_are_searched_by_ones_own_clock(patch: pytest.MonkeyPatch) -> None:
    """Ask for what was revoked in the last minute: another process may have another minute."""
    among = MemoryStore.revoked_among

    async def lately(self: MemoryStore, key_ids: Sequence[str]) -> Sequence[str]:
        since_ms = self.clock.now_ms() - 60_000
        keys = self.database.keys
        return [
            each
            for each in await among(self, key_ids)
            if (keys[each][0].revoked_at_ms or 0) >= since_ms
        ]

    patch.setattr(MemoryStore, "revoked_among", lately)


@bug
def a_late_look_up_brings_a_key_back(patch: pytest.MonkeyPatch) -> None:
    """Remember what was read, although it was revoked before the answer came."""
    forget = KeyRing._forget

    def forgetful(self: KeyRing, key_ids: Sequence[str]) -> None:
        forget(self, key_ids)
        self._revoked.clear()

    patch.setattr(KeyRing, "_forget", forgetful)
