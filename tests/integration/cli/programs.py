"""Commands of meterd as programs of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import attrs
import trio

from tests.integration.service.harness import environment


@attrs.frozen
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


async def meterd(
    *arguments: str, settings: Mapping[str, str] | None = None, timeout_s: float = 60
) -> Ran:
    """Run `meterd ARGUMENTS` to its end, within a minute unless it may take longer."""
    with trio.fail_after(timeout_s):
        ran: subprocess.CompletedProcess[bytes] = await trio.run_process(
            [sys.executable, "-m", "meterd", *arguments],
            env=environment(settings or {}),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())
