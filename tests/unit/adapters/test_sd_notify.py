"""What is told to systemd, through a socket as systemd has one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from meterd.adapters.sd_notify import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """Give a socket such as systemd listens on, and its address."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.setblocking(False)
        yield listener, path


def heard(listener: socket.socket) -> list[str]:
    """Return every message that has arrived."""
    messages = []
    while True:
        try:
            messages.append(listener.recv(4_096).decode())
        except BlockingIOError:
            return messages


async def test_ready_and_stopping_are_told(manager: tuple[socket.socket, str]) -> None:
    """A unit of type notify is started when meterd accepts requests, not when it is forked."""
    listener, path = manager
    service = ServiceManager({"NOTIFY_SOCKET": path})

    service.ready()
    service.alive()
    service.stopping()

    ready, stopping = heard(listener)
    assert ready.startswith("READY=1\n")
    assert stopping.startswith("STOPPING=1\n")


async def test_the_watchdog_is_fed_three_times_an_interval(
    manager: tuple[socket.socket, str],
    autojump_clock: MockClock,  # noqa: ARG001  # asked for is switched on
) -> None:
    """Often enough to be late once, seldom enough to cost nothing."""
    listener, path = manager
    service = ServiceManager({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "30000000"})

    for _ in range(120):  # half a minute of beats
        service.alive()
        await trio.sleep(0.25)

    assert heard(listener) == ["WATCHDOG=1"] * 3


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "/nonexistent/notify", "WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "x"},
        {"NOTIFY_SOCKET": "@nobody-listens-here"},
    ],
)
async def test_nobody_listening_is_nobodys_trouble(environment: dict[str, str]) -> None:
    """Meterd runs the same without systemd, or with one that is gone."""
    service = ServiceManager(environment)

    service.ready()
    service.alive()
    service.stopping()


async def test_a_watchdog_meant_for_another_process_is_not_fed(
    manager: tuple[socket.socket, str],
) -> None:
    """WATCHDOG_PID names whom systemd expects to hear from."""
    listener, path = manager
    other = str(os.getpid() + 1)
    service = ServiceManager(
        {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": other}
    )

    service.alive()

    assert heard(listener) == []
