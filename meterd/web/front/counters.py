"""What the front door has seen since it started, for the metrics of `meterd.observe`."""

from __future__ import annotations

import attrs


@attrs.define(kw_only=True)
class DoorCounters:
    """Plain counts, only ever increased, except `open_connections` and `open_streams`."""

    accepted: int = 0
    open_connections: int = 0
    open_streams: int = 0
    peak_connections: int = 0
    refused_total: int = 0
    """Connections over `connections_max`."""
    refused_address: int = 0
    """Connections over `connections_per_address_max`, agent streams behind a proxy included."""
    malformed: int = 0
    """Requests refused for their form before any application saw them."""
    crashed: int = 0
    """Connections that ended by an exception nobody expected; each is one connection lost."""
    timed_out: int = 0
    """Connections closed for a slow head or body or for idling."""
    stalled: int = 0
    """Connections dropped because the peer did not read what was written."""
    accept_errors: int = 0
    """Failed accepts, of which running out of descriptors is the usual one."""
    hot_answers: int = 0
    handed_over: int = 0
    """Connections given to Hypercorn."""
    streams_opened: int = 0
    stream_messages: int = 0
    streams_slow: int = 0
    """Agent streams closed with 4508."""
