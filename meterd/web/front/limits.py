"""Every limit of the front door, with its unit, and how the limits relate to each other."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class FrontDoorLimits:
    """What one peer, and all peers together, may cost. Times are integer milliseconds."""

    connections_max: int = 8_192
    """Open connections in total; keep it some hundred below the process's descriptor limit."""

    connections_per_address_max: int = 2_048
    """Open connections of one IPv4 address or one IPv6 /64; trusted proxies do not count."""

    refusals_max: int = 128
    """Connections over a limit that are told so at the same time; more are closed unanswered."""

    refusal_timeout_ms: int = 2_000
    """A connection over a limit gets this long to send its request and read the refusal."""

    head_bytes_max: int = 16 * 1024
    """Request line and headers together; what nginx and Tomcat allow is of this order."""

    headers_max: int = 100
    """Header lines in one head."""

    tls_handshake_timeout_ms: int = 10_000
    """Time for a TLS handshake."""

    head_timeout_ms: int = 10_000
    """Time for a whole request head, from its first byte (or from the accept)."""

    body_timeout_ms: int = 30_000
    """Time for a whole request body, from the end of its head."""

    idle_timeout_ms: int = 75_000
    """A kept-alive connection without a new request is closed after this; nginx waits 75 s."""

    write_timeout_ms: int = 30_000
    """A peer that takes nothing of what is written for this long is dropped."""

    linger_ms: int = 1_000
    """After the last answer, unread bytes are discarded this long: a close would reset it."""

    hot_body_bytes_max: int = 4_096
    """A heartbeat's body; a larger one is not a hot request."""

    hot_pipeline_max: int = 32
    """Hot requests answered in one write; what a pipelining client sends beyond waits."""

    stream_message_bytes_max: int = 1024 * 1024
    """One WebSocket message, all its fragments together; a larger one closes with 1009."""

    stream_idle_ms: int = 120_000
    """An agent stream from which nothing at all arrives for this long closes with 4408."""

    stream_ping_ms: int = 30_000
    """A silent agent stream is pinged this often; a pong counts as a sign of life. 0: never."""

    stream_outbox_items_max: int = 16_384
    """Messages waiting for one reader; one more closes it with 4508."""

    stream_outbox_bytes_max: int = 4 * 1024 * 1024
    """Bytes waiting for one reader; one more closes it with 4508."""

    stream_settle_ms: int = 5_000
    """After a client's close frame, acknowledgements still owed may take this long to be sent."""

    stream_close_ms: int = 2_000
    """A close handshake may take this long before the connection is simply closed."""

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(FrontDoorLimits):
            least = 0 if field.name in {"stream_ping_ms", "linger_ms"} else 1
            assert getattr(self, field.name) >= least, field.name
        assert self.connections_per_address_max <= self.connections_max, self
        assert self.stream_ping_ms < self.stream_idle_ms, self
