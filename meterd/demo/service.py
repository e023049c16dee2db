"""`meterd serve` as a process of its own, and what an operator does to it over HTTP."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio


READY_PREFIX = "meterd ready on "
START_S_MAX = 120
STOP_S_MAX = 30
LINES_KEPT = 40


class DemoError(Exception):
    """The demonstration cannot go on; the message says why."""


@attrs.define(eq=False)
class Operator:
    """The service as its operator talks to it."""

    url: str
    http: httpx.AsyncClient

    async def create(
        self,
        organization_id: str,
        body: Mapping[str, Any],
        *,
        scopes: Sequence[str] = ("agent", "read"),
    ) -> str:
        """Create an organization and return a key of it."""
        await self.post("organizations", {"id": organization_id, **body})
        path = f"organizations/{organization_id}/keys"
        answer = await self.post(path, {"scopes": list(scopes), "name": "demo"})
        key: str = answer["key"]
        return key

    async def adjust(self, organization_id: str, agent_ms: int, reason: str) -> None:
        """Book agent time on an organization."""
        path = f"organizations/{organization_id}/adjustments"
        await self.post(path, {"agent_ms": agent_ms, "reason": reason})

    async def get(self, path: str, **query: str) -> Any:
        """Return what is under `/admin/v1/`."""
        return await self._ask("GET", path, params=query)

    async def list(self, path: str, **query: str) -> Any:
        """Return the first page of a list."""
        return (await self.get(path, **query))["data"]

    async def post(self, path: str, body: Mapping[str, Any] | None = None, **query: str) -> Any:
        """Create or do something under `/admin/v1/`."""
        return await self._ask("POST", path, json=body, params=query)

    async def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """Change something under `/admin/v1/`."""
        return await self._ask("PATCH", path, json=body)

    async def _ask(self, method: str, path: str, **request: Any) -> Any:
        answer = await self.http.request(method, f"/admin/v1/{path}", **request)
        if answer.is_error:
            raise DemoError(
                f"meterd answered {answer.status_code} to {method} {path}: {answer.text}"
            )
        return answer.json()


@contextlib.asynccontextmanager
async def running_service(
    data_dir: Path, *, settings: Mapping[str, str], say: Callable[[str], None]
) -> AsyncIterator[Operator]:
    """Run the service for the length of the block; it is stopped cleanly, or killed.

    Errors: DemoError with the end of the service's log when it does not become ready.
    """
    admin_key = secrets.token_urlsafe(32)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("METERD_")}
    command = [sys.executable, "-m", "meterd", "serve", "--bind", "127.0.0.1:0"]
    log: list[str] = []
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[trio.Process]) -> None:
            await trio.run_process(
                [*command, "--data-dir", str(data_dir)],
                env={**inherited, **settings, "METERD_ADMIN_KEY": admin_key},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the demonstration: it stops the service
                check=False,
                task_status=task_status,
            )

        process = await nursery.start(run)
        try:
            url = await _ready_url(nursery, process, log, say)
            headers = {"authorization": f"Bearer {admin_key}"}
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as http:
                yield Operator(url, http)
        finally:
            with trio.CancelScope(shield=True):
                await _stop(process)
        nursery.cancel_scope.cancel()


async def _ready_url(
    nursery: trio.Nursery, process: trio.Process, log: list[str], say: Callable[[str], None]
) -> str:
    """Return the address once the service accepts requests, passing on what it says until then."""
    found: list[str] = []
    ready = trio.Event()

    async def read(stream: trio.abc.ReceiveStream) -> None:
        rest = b""
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace")
                log.append(text)
                del log[:-LINES_KEPT]
                if text.startswith(READY_PREFIX):
                    found.append(text.removeprefix(READY_PREFIX).strip())
                    ready.set()
                elif not ready.is_set() and text.startswith("meterd: "):
                    say(text.removeprefix("meterd: "))
        ready.set()

    for stream in (process.stdout, process.stderr):
        assert stream is not None
        nursery.start_soon(read, stream)
    with trio.move_on_after(START_S_MAX):
        await ready.wait()
    if not found:
        raise DemoError("the service did not start; it said:\n" + "\n".join(log))
    return found[0]


async def _stop(process: trio.Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    with trio.move_on_after(STOP_S_MAX):
        await process.wait()
        return
    process.kill()
    await process.wait()
