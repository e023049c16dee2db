"""What the live feed costs: `python -m tests.bench.bench_live` prints a table.

`figures` gives the same as values for a report; with `--json` they are printed.

A server in a process of its own, on the store in memory, has one organization with a running
task, so that its figures change every second. This process opens VIEWERS sockets on it and counts
the frames. The server's CPU time is from /proc; with none looking it is the same server idle.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import attrs
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


@attrs.frozen
class ViewersFigures:
    """What so many viewers of one organization cost and get."""

    viewers: int
    cpu_percent: float
    """Of one core, by the server."""
    frames_per_s: float
    """That each viewer gets."""
    frame_bytes: int


def measure(count: int, measured_s: float = MEASURED_S) -> ViewersFigures:
    """Measure with so many viewers for so long."""
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
        frames, size = drain(selector, measured_s)
        used = (cpu_s(server.pid) - before) / measured_s
        for viewer in viewers:
            viewer.close()
        server.kill()
    return ViewersFigures(
        viewers=count,
        cpu_percent=round(used * 100, 1),
        frames_per_s=round(frames / measured_s / max(1, count), 2),
        frame_bytes=size // max(1, frames),
    )


def figures(
    viewers: Sequence[int] = VIEWERS, *, measured_s: float = MEASURED_S
) -> list[ViewersFigures]:
    """Measure each number of viewers in turn; a server of its own for each."""
    return [measure(count, measured_s) for count in viewers]


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
    """Print a line per number of viewers, or all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--viewers", type=int, nargs="*", default=VIEWERS)
    parser.add_argument("--seconds", type=float, default=MEASURED_S)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = figures(asked.viewers, measured_s=asked.seconds)
    if asked.json:
        print(json.dumps([attrs.asdict(each) for each in found]))  # noqa: T201
        return
    print(f"{'viewers':>8} {'CPU %':>7} {'frames/s each':>14} {'bytes':>6}")  # noqa: T201
    for each in found:
        print(  # noqa: T201
            f"{each.viewers:>8} {each.cpu_percent:>7.1f} {each.frames_per_s:>14.2f}"
            f" {each.frame_bytes:>6}"
        )


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        trio.run(serve)
    else:
        main()
