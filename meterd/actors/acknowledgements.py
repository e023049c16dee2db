"""Who waits for what to become durable, and who wants to hear what happens.

Rule 1: an answer is acknowledged only when the facts behind it are committed.
Rule 2: facts that the store rejected are never acknowledged, however late somebody asks.
Rule 3: listeners are told synchronously, in the order things happened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from meterd.actors.cell import Reply
from meterd.actors.ledger import Ledger
from meterd.core.commands import Notice
from meterd.core.units import SECOND_MS
from meterd.errors import ActorCrashedError, StoreUnavailableError


class Listener(Protocol):
    """Hears what happens to one organization; synchronous, never raises, never waits."""

    def on_notices(self, notices: Sequence[Notice]) -> None:
        """Take what a decision announced, right after it took effect in memory."""
        ...

    def on_durable(self, seq: int) -> None:
        """Hear that everything up to `seq` is committed: acknowledgements may go out."""
        ...

    def on_dropped(self, seq: int) -> None:
        """Hear that the facts after `seq` were rejected: their acknowledgements are void."""
        ...


class Acknowledgements:
    """Waiters and listeners of every organization, whether it is in memory or not."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        ack_timeout_ms: int,
        on_rejected: Callable[[str, Exception], None],
    ) -> None:
        self._ledger = ledger
        self._ack_timeout_ms = ack_timeout_ms
        self._on_rejected = on_rejected
        self._listeners: dict[str, list[Listener]] = {}
        self._waiters: dict[str, dict[Reply[None], int]] = {}
        self._dropped: dict[str, list[tuple[int, int]]] = {}
        ledger.listener = self

    async def durable(self, organization_id: str, seq: int) -> None:
        """Return when everything of the organization up to `seq` is committed.

        Errors: StoreUnavailableError after `ack_timeout_ms`; ActorCrashedError when the store
        rejected the facts. Either way the caller must not acknowledge.
        """
        if self.is_durable(organization_id, seq):
            await trio.lowlevel.checkpoint()
            return
        reply: Reply[None] = Reply()
        self._waiters.setdefault(organization_id, {})[reply] = seq
        try:
            with trio.fail_after(self._ack_timeout_ms / SECOND_MS):
                await reply.wait()
        except trio.TooSlowError as error:
            raise StoreUnavailableError("commit in time") from error
        finally:
            self._forget_waiter(organization_id, reply)

    def _forget_waiter(self, organization_id: str, reply: Reply[None]) -> None:
        """Let go of who gave up: during a long outage callers come again and again."""
        waiters = self._waiters.get(organization_id)
        if waiters is not None and waiters.pop(reply, None) is not None and not waiters:
            del self._waiters[organization_id]

    def is_durable(self, organization_id: str, seq: int) -> bool:
        """Tell whether `seq` may be acknowledged now.

        Errors: ActorCrashedError when the store rejected it.
        """
        for lowest, highest in self._dropped.get(organization_id, ()):
            if lowest < seq <= highest:
                raise _rejected_error()
        return seq <= self._ledger.durable_seq(organization_id)

    def listen(self, organization_id: str, listener: Listener) -> Callable[[], None]:
        """Tell a listener what happens to an organization; call the result to stop."""
        self._listeners.setdefault(organization_id, []).append(listener)

        def stop() -> None:
            listeners = self._listeners.get(organization_id, [])
            if listener in listeners:
                listeners.remove(listener)
                if not listeners:
                    del self._listeners[organization_id]

        return stop

    def listeners(self, organization_id: str) -> tuple[Listener, ...]:
        """Return who listens to an organization now."""
        return tuple(self._listeners.get(organization_id, ()))

    def announce(self, organization_id: str, notices: Sequence[Notice]) -> None:
        """Tell the organization's listeners what a decision announced."""
        for listener in self.listeners(organization_id):
            listener.on_notices(notices)

    def on_durable(self, organization_id: str, seq: int) -> None:
        """Wake who waits for facts up to `seq`; called by the ledger after a commit."""
        for reply, wanted_seq in self._waiters.get(organization_id, {}).items():
            if wanted_seq <= seq:
                reply.set(None)
        for listener in self.listeners(organization_id):
            listener.on_durable(seq)

    def on_dropped(self, organization_id: str, durable_seq: int, error: Exception) -> None:
        """Fail who waits for rejected facts; called by the ledger when it gives them up."""
        rejected = (durable_seq, self._ledger.last_seq(organization_id))
        self._dropped.setdefault(organization_id, []).append(rejected)
        for reply, seq in self._waiters.get(organization_id, {}).items():
            if seq > durable_seq:
                reply.fail(_rejected_error())
            else:
                reply.set(None)
        self._on_rejected(organization_id, error)
        for listener in self.listeners(organization_id):
            listener.on_dropped(durable_seq)


def _rejected_error() -> ActorCrashedError:
    return ActorCrashedError("the store rejected what was decided")
