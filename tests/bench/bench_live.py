"""What the live feed costs: `python -m tests.bench.bench_live` prints a table.

A server in a process of its own, on the store in memory, has one organization with a running
task, so that its figures change every second. This process opens VIEWERS sockets on it and counts
the frames. The server's CPU time is from /proc; with none looking it is the same server idle.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import time

import trio

from tests.served import open_front, open_world


VIEWERS = (0, 1, 500, 2_000)
WARM_S = 2
MEASURED_S = 10


async def serve() -> None:
    """Serve one organization with a running task; print port and key."""
    async with open_world(task_timeout_ms=3_600_000) as world:
        await world.add()
        key = await world.key("agent", "read")
        started = await world.ask("POST", "/v1/tasks", key, content={"agent_id": "a"})
        assert started.status_code == 201, started.data
        async with open_front(world) as port:
            print(port, key, flush=True)  # noqa: T201
            await trio.sleep_forever()


def cpu_s(pid: int) -> float:
    """Return the processor time a process has used."""
    fields = open(f"/proc/{pid}/stat").read().rpartition(") ")[2].split()  # noqa: SIM115, PTH123
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_viewer(port: int, key: str) -> socket.socket:
    """Connect and upgrade."""
    viewer = socket.create_connection(("127.0.0.1", port))
    viewer.sendall(
        f"GET /v1/usage/live HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        f"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n"
        f"authorization: Bearer {key}\r\n\r\n".encode()
    )
    assert viewer.recv(12) == b"HTTP/1.1 101"
    viewer.setblocking(False)
    return viewer


def measure(count: int) -> tuple[float, float, int]:
    """Return CPU seconds per second, frames per second and viewer, and bytes per frame."""
    command = [sys.executable, "-m", "tests.bench.bench_live", "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port, key = server.stdout.readline().split()
        viewers = [open_viewer(int(port), key) for _ in range(count)]
        selector = selectors.DefaultSelector()
        for viewer in viewers:
            selector.register(viewer, selectors.EVENT_READ)
        drain(selector, WARM_S)
        before = cpu_s(server.pid)
        frames, size = drain(selector, MEASURED_S)
        used = (cpu_s(server.pid) - before) / MEASURED_S
        for viewer in viewers:
            viewer.close()
        server.kill()
    return used, frames / MEASURED_S / max(1, count), size // max(1, frames)


def drain(selector: selectors.BaseSelector, seconds: float) -> tuple[int, int]:
    """Read for so long; return frames (one a read: they are a second apart) and bytes."""
    frames = size = 0
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        for ready, _ in selector.select(left):
            assert isinstance(ready.fileobj, socket.socket)
            data = ready.fileobj.recv(65_536)
            assert data, "dropped"
            frames += 1
            size += len(data)
    return frames, size


def main() -> None:
    """Print a line per number of viewers."""
    print(f"{'viewers':>8} {'CPU %':>7} {'frames/s each':>14} {'bytes':>6}")  # noqa: T201
    for count in VIEWERS:
        used, frames, size = measure(count)
        print(f"{count:>8} {used * 100:>7.1f} {frames:>14.2f} {size:>6}")  # noqa: T201


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        trio.run(serve)
    else:
        main()
