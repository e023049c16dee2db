"""A page of docs/, run as a reader would: its commands in order, what they print compared.

Rule 1: an `sh` block is typed; a `text` or `json` block right after it is what it must print, where
`...` stands for anything and trailing blanks do not matter.
Rule 2: a block with `meterd serve` belongs to the first terminal; it runs until the next such block
or the end of the page, and is then stopped by Ctrl-C.
Rule 3: a `python` block after "Save this as `name`" is saved under that name.
Rule 4: other blocks (`console`, `toml`, ...) are not run.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs


ROOT = Path(__file__).resolve().parents[3]

PAGE_PORT = "8080"
"""The port in the text; each run takes a free one instead."""

START_S_MAX = 90
STOP_S_MAX = 60
BLOCK_S_MAX = 90

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SAVED = re.compile(r"Save this as `([\w.-]+)`:\s*$")


@attrs.frozen(kw_only=True)
class Block:
    """One fenced block of a page."""

    language: str
    text: str
    saved_as: str | None
    """Name of the file a reader is told to save it in."""


def blocks_of(page: str) -> list[Block]:
    """Return the fenced blocks of a page under docs/, in order."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        saved = _SAVED.search(text[: match.start()])
        found.append(Block(language=match[1], text=match[2], saved_as=saved and saved[1]))
    return found


def steps_of(page: str) -> Iterator[tuple[Block, Block | None]]:
    """Yield what a reader types or saves, each with what it must print, if the page says."""
    blocks = blocks_of(page)
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        if block.language == "sh" or block.saved_as is not None:
            is_printed = block.language == "sh" and after and after.language in ("text", "json")
            yield block, after if is_printed else None


def assert_printed(printed: str, expected: str) -> None:
    """Fail unless a program printed what a page says."""
    pattern = ".*?".join(map(re.escape, _plain(expected).split("...")))
    assert re.fullmatch(pattern, _plain(printed), re.DOTALL), (
        f"{printed}\n--- expected:\n{expected}"
    )


def _plain(text: str) -> str:
    """Return text without trailing blanks; of an HTTP answer, without headers nobody waits for."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    if lines and lines[0].startswith("HTTP/"):
        dull = ("cache-control:", "x-content-type", "x-request-id:", "date:", "content-length:")
        lines = [line for line in lines if not line.startswith(dull)]
    return "\n".join(lines)


class Reader:
    """Somebody at two terminals in one directory, with `.venv/bin` of a checkout in it."""

    def __init__(self, directory: Path, variables: Mapping[str, str] | None = None) -> None:
        """Sit down in an empty directory; the service, if the page starts it, has a free port."""
        directory.chmod(0o755)  # as root, PostgreSQL's own account passes through
        self.directory = directory
        self.port = free_port()
        self._service: Service | None = None
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("METERD_")}
        self._environment = {**inherited, "PYTHONPATH": str(ROOT), **(variables or {})}
        bin_folder = directory / ".venv" / "bin"
        bin_folder.mkdir(parents=True)
        for name, command in (("python", ""), ("meterd", " -m meterd")):
            program = bin_folder / name
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{command} "$@"\n')
            program.chmod(0o755)

    def follow(self, page: str) -> int:
        """Do everything the page says and return how many blocks were run."""
        count = 0
        for block, printed in steps_of(page):
            count += 1
            self.do(block, printed)
        return count

    def do(self, block: Block, printed: Block | None) -> None:
        """Save or type one block; fail when it fails or prints something else."""
        if block.saved_as is not None:
            (self.directory / block.saved_as).write_text(block.text, encoding="utf-8")
        elif "meterd serve" in block.text:
            self._serve(block.text, printed)
        else:
            self._type(block.text, printed)

    def stop(self) -> None:
        """Press Ctrl-C in the first terminal; the service must end cleanly."""
        service, self._service = self._service, None
        if service is not None:
            service.stop()

    def close(self) -> None:
        """Leave no process behind, however the page went."""
        if self._service is not None:
            self._service.kill()

    def _serve(self, text: str, printed: Block | None) -> None:
        self.stop()
        *lines, last = self._local(text).strip().splitlines()
        self._type("\n".join(lines), None)
        assert last.startswith(".venv/bin/meterd serve"), last
        arguments = shlex.split(last)
        command = [*arguments, "--bind", f"127.0.0.1:{self.port}"]
        self._service = Service(command, self.directory, self._environment)
        ready = self._service.ready_line()
        if printed is not None:
            assert_printed(ready, self._local(printed.text))

    def _type(self, text: str, printed: Block | None) -> None:
        """Run commands in a shell; what it exports stays for the next ones."""
        with tempfile.NamedTemporaryFile(mode="r", encoding="utf-8") as exported:
            done = subprocess.run(
                [
                    "bash",
                    "-euo",
                    "pipefail",
                    "-c",
                    f"{self._local(text)}\nenv -0 > {exported.name}",
                ],
                cwd=self.directory,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=BLOCK_S_MAX,
                check=False,
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
            pairs = (pair.partition("=") for pair in exported.read().split("\0") if pair)
            self._environment = {name: value for name, _, value in pairs}
        if printed is not None:
            assert_printed(done.stdout, self._local(printed.text))

    def _local(self, text: str) -> str:
        return text.replace(f":{PAGE_PORT}", f":{self.port}")


class Service:
    """What runs in the first terminal."""

    def __init__(self, command: list[str], directory: Path, environment: Mapping[str, str]) -> None:
        """Start it, in a session of its own: Ctrl-C is for it alone."""
        self._log = (directory / "serve.log").open("a")
        self._process = subprocess.Popen(
            command,
            cwd=directory,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )

    def ready_line(self) -> str:
        """Return the line that says it is ready; fail when it ends instead."""
        assert self._process.stdout is not None
        alarm = threading.Timer(START_S_MAX, self._process.kill)
        alarm.start()
        try:
            line = self._process.stdout.readline()
        finally:
            alarm.cancel()
        assert line, Path(self._log.name).read_text()
        return line

    def stop(self) -> None:
        """Press Ctrl-C and expect a clean end."""
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(STOP_S_MAX) == 0
        self._close()

    def kill(self) -> None:
        """End it at once; its PostgreSQL follows."""
        self._process.kill()
        self._process.wait(STOP_S_MAX)
        self._close()

    def _close(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


def free_port() -> int:
    """Return a port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
