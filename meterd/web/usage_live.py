"""`WS /v1/usage/live`: an organization's quota as it changes, for dashboards.

Rule 1: a key comes in a header, a browser comes with a ticket; an Origin must be on the list.
Rule 2: one snapshot waits for a viewer at most: a newer one replaces it. Who has not taken one for
        ten seconds is closed with 4508.
Rule 3: nothing is expected from a viewer; who talks nevertheless is closed with 1008.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import parse_qsl

import msgspec
from quart import Blueprint, Response, request

from meterd.actors.keyring import Principal
from meterd.core.notification import Notification
from meterd.core.quota import QuotaView
from meterd.core.units import rfc3339
from meterd.errors import MeterdError, OrganizationUnknownError
from meterd.web.agent_stream import carried, rejected, troubled
from meterd.web.auth import authenticated, has_scope
from meterd.web.customer_shapes import Ticket
from meterd.web.problems import ProblemError
from meterd.web.reply import json_reply
from meterd.web.requests import query, response, services
from meterd.web.services import LiveServices, WebServices
from meterd.web.shapes import Quota, quota_object
from meterd.web.stream_transport import (
    CLOSE_SLOW_READER,
    CLOSE_UNAUTHORIZED,
    CLOSE_WRONG_SCOPE,
    HttpRejected,
    OpenSession,
    StreamGate,
    StreamRejected,
    StreamRequest,
    StreamTransport,
)


LIVE_PATH: Final = "/v1/usage/live"

READ_SCOPE: Final = "read"

CLOSE_NOT_EXPECTED: Final = 1008

TALK_MAX: Final = 20
"""Messages of a viewer that are overlooked."""

UNTAKEN_MAX: Final = 10
"""Snapshots in a row that a viewer may leave untaken."""

usage_live = Blueprint("usage_live", __name__)


class Snapshot(Quota, frozen=True, tag="snapshot"):
    """The quota object as a message of the live feed."""


class Alert(msgspec.Struct, frozen=True, kw_only=True, tag="alert"):
    """Something that happened to the organization, as webhooks tell it too."""

    id: str
    event: str
    timestamp: str
    data: msgspec.Raw


_encoder = msgspec.json.Encoder()


def encode_snapshot(view: QuotaView) -> bytes:
    """Return the message that shows a quota."""
    shown = quota_object(view)
    return _encoder.encode(Snapshot(*(getattr(shown, name) for name in shown.__struct_fields__)))


def encode_quota(view: QuotaView) -> bytes:
    """Return the quota object, as `GET /v1/quota` shows it."""
    return _encoder.encode(quota_object(view))


def encode_alert(notification: Notification) -> bytes:
    """Return the message that tells of a notification."""
    return _encoder.encode(
        Alert(
            id=notification.id,
            event=notification.kind.value,
            timestamp=rfc3339(notification.at_ms),
            data=msgspec.Raw(notification.data_json.encode()),
        )
    )


class LiveSession:
    """One viewer's stream; a `StreamSession` and an actors' `Viewer`."""

    def __init__(
        self, transport: StreamTransport, bundle: WebServices, principal: Principal
    ) -> None:
        assert bundle.live is not None
        assert principal.organization_id is not None
        self._transport = transport
        self._untaken = 0
        self._talk = 0
        self._stop_watching = bundle.keyring.on_revoked(principal.key_id, self._on_revoked)
        self._stop = bundle.live.feed.watch(
            principal.organization_id, self, ends_at_ms=principal.ends_at_ms
        )
        if bundle.keyring.is_revoked(principal.key_id):
            self._on_revoked()

    def show(self, payload: bytes) -> None:
        """Send a snapshot, instead of one that has not been taken yet."""
        self._untaken = self._untaken + 1 if self._transport.queued_bytes else 0
        if self._untaken > UNTAKEN_MAX:
            self._transport.close(CLOSE_SLOW_READER, "reading too slowly")
        else:
            self._transport.send(payload, key="snapshot")

    def alert(self, payload: bytes) -> None:
        """Send an alert; each is sent."""
        self._transport.send(payload)

    def end(self) -> None:
        """Close when the session that opened it has ended: who still looks comes again."""
        self._transport.close(CLOSE_UNAUTHORIZED, "the session has ended")

    def on_texts(self, payloads: Sequence[bytes]) -> None:
        """Overlook what a viewer says, for a while."""
        self._talk += len(payloads)
        if self._talk > TALK_MAX:
            self._transport.close(CLOSE_NOT_EXPECTED, "nothing is expected here")

    def on_binary(self, payload: bytes) -> None:
        """Overlook it like text."""
        self.on_texts([payload])

    async def settled(self) -> None:
        """Return at once: nothing is owed."""

    def on_end(self, code: int) -> None:
        """Stop looking."""
        del code
        self._stop()
        self._stop_watching()

    def _on_revoked(self) -> None:
        self._transport.close(CLOSE_UNAUTHORIZED, "the key was revoked")


class StreamGates:
    """Every stream there is; a `StreamGate`."""

    def __init__(self, agents: StreamGate, live: StreamGate) -> None:
        self._agents, self._live = agents, live

    async def admit(self, request: StreamRequest) -> OpenSession | StreamRejected | HttpRejected:
        """Ask the gate of the path."""
        gate = self._live if request.path == LIVE_PATH else self._agents
        return await gate.admit(request)


class LiveGate:
    """Lets viewers in; a `StreamGate`."""

    def __init__(self, bundle: WebServices) -> None:
        self._bundle = bundle

    async def admit(self, request: StreamRequest) -> OpenSession | StreamRejected | HttpRejected:
        """Return what opens the feed for a key or a ticket, or why it stays closed."""
        bundle, live = self._bundle, self._bundle.live
        if live is None:
            return troubled(bundle, ProblemError("not_found"))
        if not _is_origin_allowed(request, live):
            return rejected(CLOSE_WRONG_SCOPE, "this origin is not allowed")
        try:
            principal = await _principal(request, bundle, live)
            if not has_scope(principal, (READ_SCOPE,)):
                return rejected(CLOSE_WRONG_SCOPE, "this key may not read usage")
            assert principal.organization_id is not None
            await bundle.organizations.view(principal.organization_id)  # there is one to show
        except (ProblemError, OrganizationUnknownError):
            return rejected(CLOSE_UNAUTHORIZED, "a valid key or ticket is required")
        except MeterdError as error:
            return troubled(bundle, error)
        return lambda transport: LiveSession(transport, bundle, principal)


def _is_origin_allowed(request: StreamRequest, live: LiveServices) -> bool:
    """Tell whether the page that asks may: browsers always say where it comes from."""
    return all(origin in live.origins for origin in request.header_values("origin"))


async def _principal(request: StreamRequest, bundle: WebServices, live: LiveServices) -> Principal:
    """Return who asks. Errors: ProblemError `unauthorized`; as `authenticated`."""
    tickets = _fields(request.query).get("ticket")
    if tickets is None:
        return await authenticated(bundle.keyring, request.header_values("authorization"))
    principal = live.tickets.take(tickets)
    if principal is None:
        raise ProblemError("unauthorized")
    return principal


def _fields(text: str) -> Mapping[str, str]:
    try:
        return dict(parse_qsl(text, max_num_fields=8))
    except ValueError:
        return {}


@usage_live.post(f"{LIVE_PATH}/ticket")
async def ticket() -> Response:
    """Give a ticket that opens the feed once, within a minute: for browsers."""
    bundle = services()
    if bundle.live is None:
        raise ProblemError("not_found")
    principal = await authenticated(bundle.keyring, request.headers.getlist("authorization"))
    if not has_scope(principal, (READ_SCOPE,)):
        raise ProblemError("wrong_scope")
    query()
    text, ends_at_ms = bundle.live.tickets.give(principal)
    return response(json_reply(201, Ticket(ticket=text, expires_at=rfc3339(ends_at_ms))))


@usage_live.get(LIVE_PATH)
async def needs_upgrade() -> Response:
    """Refuse plain HTTP: this address is a WebSocket."""
    raise ProblemError(
        "upgrade_required", detail="Open a WebSocket here.", headers=(("upgrade", "websocket"),)
    )


@usage_live.websocket(LIVE_PATH)
async def carry() -> Response | None:
    """Carry the feed over Quart, as the front door would."""
    gate = LiveGate(services())
    return await carried(LIVE_PATH, lambda _: gate)
