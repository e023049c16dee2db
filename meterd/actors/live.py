"""The live feed: what viewers of an organization see of its quota, while it changes.

Rule 1: a snapshot is made and encoded once per organization and tick, however many look at it.
Rule 2: at most one snapshot a second; at once when the quota state or the terms change.
Rule 3: nothing is done inside an organization's decision but to note that there is news; viewers
        are served by this actor, a few at a time, with pauses in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import attrs
import structlog
import trio

from meterd.actors.organizations import Organizations
from meterd.core.commands import Notice, Notified, ProfileChanged, QuotaChanged, TermsChanged
from meterd.core.notification import Notification
from meterd.core.quota import QuotaView
from meterd.core.units import SECOND_MS
from meterd.errors import MeterdError


log = structlog.get_logger(__name__)

TICK_MS: Final = SECOND_MS
"""Least time between two snapshots that only differ in figures."""

VIEWERS_AT_ONCE: Final = 50
"""Viewers served before everybody else gets a turn."""

ALERTS_MAX: Final = 100
"""Alerts of one organization that wait for the actor; older ones are in the webhooks' log."""

_NEWS = (QuotaChanged, TermsChanged, ProfileChanged)


class Viewer(Protocol):
    """Somebody who looks; synchronous, never waits, never raises."""

    def show(self, payload: bytes) -> None:
        """Take a snapshot; it replaces every earlier one."""
        ...

    def alert(self, payload: bytes) -> None:
        """Take something that happened."""
        ...

    def end(self) -> None:
        """Leave: who looks is signed in no longer."""
        ...


class Channel:
    """The viewers of one organization; an actors' `Listener`."""

    def __init__(self, organization_id: str, wake: Callable[[], None]) -> None:
        self.organization_id = organization_id
        self.viewers: dict[Viewer, int | None] = {}
        """Each with when it must leave; `None`: when it wants to."""
        self.shown: QuotaView | None = None
        self.payload: bytes | None = None
        self.is_urgent = False
        self.alerts: list[Notification] = []
        self._wake = wake

    def on_notices(self, notices: Sequence[Notice]) -> None:
        """Note what must be shown at once."""
        for notice in notices:
            if isinstance(notice, Notified):
                self.alerts.append(notice.notification)
                del self.alerts[:-ALERTS_MAX]
                self.is_urgent = True
            elif isinstance(notice, _NEWS):
                self.is_urgent = True
        if self.is_urgent:
            self._wake()

    def on_durable(self, seq: int) -> None:
        """Figures are shown as they are decided, not as they are stored."""

    def on_dropped(self, seq: int) -> None:
        """Show at once what is true now that facts were rejected."""
        del seq
        self.is_urgent = True
        self._wake()


class LiveFeed:
    """Shows quotas to viewers for ever."""

    def __init__(
        self,
        organizations: Organizations,
        *,
        encode: Callable[[QuotaView], bytes],
        encode_alert: Callable[[Notification], bytes],
    ) -> None:
        self._organizations = organizations
        self._encode = encode
        self._encode_alert = encode_alert
        self._channels: dict[str, tuple[Channel, Callable[[], None]]] = {}
        self._kick = trio.Event()
        self.snapshots = 0
        """Snapshots encoded since the start."""
        self.frames = 0
        """Frames given to viewers."""

    @property
    def figures(self) -> dict[str, Any]:
        """Return what an operator sees."""
        viewers = sum(len(channel.viewers) for channel, _ in self._channels.values())
        return {
            "organizations": len(self._channels),
            "viewers": viewers,
            "snapshots": self.snapshots,
            "frames": self.frames,
        }

    def watch(
        self, organization_id: str, viewer: Viewer, *, ends_at_ms: int | None = None
    ) -> Callable[[], None]:
        """Show an organization to a viewer, now and until an instant; call the result to stop."""
        known = self._channels.get(organization_id)
        if known is None:
            channel = Channel(organization_id, self._wake)
            stop_listening = self._organizations.listen(organization_id, channel)
            known = self._channels[organization_id] = (channel, stop_listening)
        channel, _ = known
        channel.viewers[viewer] = ends_at_ms
        self._show_first(channel, viewer)

        def stop() -> None:
            channel.viewers.pop(viewer, None)
            if not channel.viewers and self._channels.get(organization_id) is known:
                del self._channels[organization_id]
                known[1]()

        return stop

    def _wake(self) -> None:
        self._kick.set()

    def _show_first(self, channel: Channel, viewer: Viewer) -> None:
        """Give a newcomer what the others see, or a fresh look when there are no others."""
        if channel.payload is None and not self._look(channel):
            channel.is_urgent = True  # it is being loaded: shown as soon as it is there
            self._wake()
            return
        assert channel.payload is not None
        viewer.show(channel.payload)
        self.frames += 1

    def _look(self, channel: Channel) -> bool:
        """Encode the quota if it is another than the one shown; whether it is."""
        try:
            view = self._organizations.view_nowait(channel.organization_id)
        except MeterdError:
            return False
        if view is None or _is_same(view, channel.shown):
            return False
        channel.shown, channel.payload = view, self._encode(view)
        self.snapshots += 1
        return True

    async def run(self) -> None:
        """Show what changes, for ever."""
        next_tick = trio.current_time()
        while True:
            self._kick = trio.Event()
            is_tick = trio.current_time() >= next_tick
            if is_tick:
                next_tick = trio.current_time() + TICK_MS / SECOND_MS
            for channel, _ in list(self._channels.values()):
                if is_tick:
                    self._end_viewers(channel)
                if is_tick or channel.is_urgent:
                    await self._serve(channel)
            with trio.move_on_at(next_tick):
                await self._kick.wait()

    def _end_viewers(self, channel: Channel) -> None:
        now_ms = self._organizations.clock.now_ms()
        for viewer, ends_at_ms in list(channel.viewers.items()):
            if ends_at_ms is not None and ends_at_ms <= now_ms:
                viewer.end()

    async def _serve(self, channel: Channel) -> None:
        channel.is_urgent = False
        alerts, channel.alerts = channel.alerts, []
        payloads = [self._encode_alert(each) for each in alerts]
        is_new = self._look(channel)
        if not is_new and not payloads:
            await trio.lowlevel.checkpoint()
            return
        snapshot = channel.payload if is_new else None
        for count, viewer in enumerate(list(channel.viewers)):
            if count % VIEWERS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            if viewer not in channel.viewers:
                continue
            for payload in payloads:
                viewer.alert(payload)
            if snapshot is not None:
                viewer.show(snapshot)
            self.frames += len(payloads) + (snapshot is not None)


def _is_same(view: QuotaView, shown: QuotaView | None) -> bool:
    return shown is not None and attrs.evolve(shown, as_of_ms=view.as_of_ms) == view
