"""Reports as files: written whole or not at all, and committed with git when that is asked for.

A file appears under its name only when it is complete and on disk; a reader, or a crash, sees the
old one or the new one. Git is told about that one file, in whatever repository the directory lies.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import attrs
import structlog
import trio


log = structlog.get_logger(__name__)

GIT_S = 60.0
"""Seconds a git command may take."""


@attrs.frozen
class ReportFiles:
    """The directory of the reports."""

    directory: Path
    is_committed: bool = False
    """Commit each report that changed, when the directory lies in a git repository."""

    def path(self, day: str) -> Path:
        """Return where the report of a day lies: `daily-revenue-YYYY-MM-DD.md`."""
        return self.directory / f"daily-revenue-{day}.md"

    async def write(self, day: str, text: str) -> Path:
        """Write a report and return its path. Errors: OSError."""
        path = self.path(day)
        await trio.to_thread.run_sync(_write, path, text.encode())
        if self.is_committed:
            await self._commit(path, day)
        return path

    async def _commit(self, path: Path, day: str) -> None:
        """Commit the file alone; a failure is told and costs nothing but the commit."""
        added = await self._git("add", "--", path.name)
        if added.returncode:
            log.warning("report_not_committed", day=day, git=_said(added))
            return
        same = await self._git("diff", "--cached", "--quiet", "--", path.name)
        if same.returncode == 0:
            return
        committed = await self._git(
            "commit", "--quiet", "-m", f"Daily revenue, {day}", "--", path.name
        )
        if committed.returncode:
            log.warning("report_not_committed", day=day, git=_said(committed))

    async def _git(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        with trio.move_on_after(GIT_S):
            try:
                return await trio.run_process(
                    ["git", *arguments],  # the operator's own
                    cwd=self.directory,
                    check=False,
                    capture_stdout=True,
                    capture_stderr=True,
                    env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
                )
            except OSError as error:
                return subprocess.CompletedProcess(arguments, 127, b"", str(error).encode())
        return subprocess.CompletedProcess(arguments, 124, b"", b"git took too long")


def _said(result: subprocess.CompletedProcess[bytes]) -> str:
    return result.stderr.decode(errors="replace").strip()[:500]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_bytes() == content:
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
