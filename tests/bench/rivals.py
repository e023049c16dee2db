"""Servers that are measured beside meterd, each a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs


PEERS = Path(__file__).parent / "peers"
REDIS_START_S = 5


@attrs.frozen
class Server:
    """One running server."""

    name: str
    pid: int
    port: int
    key: str


class CannotRunError(Exception):
    """A peer cannot be measured on this machine; the report says why."""


def peer_python(directory: Path) -> str:
    """Return the interpreter of the peers' environment, made when it is missing or outdated.

    Errors: CannotRunError when their packages cannot be installed.
    """
    wanted = PEERS / "requirements.txt"
    stamp = directory / hashlib.sha256(wanted.read_bytes()).hexdigest()[:16]
    python = directory / "bin" / "python"
    if not stamp.exists():
        shutil.rmtree(directory, ignore_errors=True)
        for command in (
            [sys.executable, "-m", "venv", str(directory)],
            [str(python), "-m", "pip", "install", "--quiet", "-r", str(wanted)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise CannotRunError(f"its packages cannot be installed: {done.stderr[-200:]}")
        stamp.touch()
    return str(python)


@contextlib.contextmanager
def running(name: str, command: list[str]) -> Iterator[Server]:
    """Run a server that prints its port; CannotRunError when it does not."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline().strip()
        if not line.isdigit():
            process.kill()
            raise CannotRunError(f"it did not start: {process.stderr.read()[-300:]}")
        yield Server(name, process.pid, int(line), "bench")
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running_redis(directory: Path) -> Iterator[str]:
    """Run a Redis that keeps everything in memory; give its URL. Errors: CannotRunError."""
    program = shutil.which("redis-server")
    if program is None:
        raise CannotRunError("there is no redis-server on this machine")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--save", "", "--appendonly", "no", "--dir", str(directory), "--bind", "127.0.0.1"]
    process = subprocess.Popen([program, "--port", str(port), *options], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + REDIS_START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise CannotRunError("redis-server did not start") from error
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()
