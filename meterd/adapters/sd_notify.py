"""What meterd tells systemd: ready, stopping, still alive. sd_notify(3), without its library.

Rule 1: without NOTIFY_SOCKET nothing is sent; systemd not listening is nobody's trouble.
Rule 2: the watchdog is fed from the event loop, so a loop that stands still is noticed.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Final

import trio


FEEDS_PER_WATCHDOG: Final = 3
"""Signs of life in each interval of the watchdog; systemd asks for two at least."""


class ServiceManager:
    """The service manager that started this process, if there is one."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""
        variables = os.environ if environment is None else environment
        self._address = _address_in(variables.get("NOTIFY_SOCKET", ""))
        self._feed_every_s = _watchdog_s(variables) / FEEDS_PER_WATCHDOG
        self._fed_s = -self._feed_every_s

    def ready(self) -> None:
        """Say that requests are accepted."""
        self._send("READY=1\nSTATUS=accepting requests")

    def stopping(self) -> None:
        """Say that a stop has begun; the watchdog is fed until the end."""
        self._send("STOPPING=1\nSTATUS=stopping: flushing what is accepted")

    def alive(self) -> None:
        """Feed the watchdog if it is due; called often, sends seldom."""
        now_s = trio.current_time()
        if self._feed_every_s > 0 and now_s - self._fed_s >= self._feed_every_s:
            self._fed_s = now_s
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if self._address is None:
            return
        # Not waiting: a full socket means that systemd is behind; the next message may fit.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.setblocking(False)
            sender.sendto(text.encode(), self._address)


def _address_in(text: str) -> str | None:
    """Return the socket's address; `@` begins an abstract one. None for what we do not know."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _watchdog_s(variables: Mapping[str, str]) -> float:
    """Return the watchdog's interval in seconds, 0 when it is not meant for us."""
    interval = variables.get("WATCHDOG_USEC", "")
    pid = variables.get("WATCHDOG_PID", str(os.getpid()))
    if not interval.isdecimal() or pid != str(os.getpid()):
        return 0.0
    return int(interval) / 1_000_000
