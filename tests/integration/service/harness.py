"""A real meterd as its own process, and the HTTP calls tests make to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import attrs
import httpx
import trio


ADMIN_KEY = "test-admin-key-of-at-least-32-characters"
REPORTS = tempfile.TemporaryDirectory(prefix="meterd-reports-")
"""Where services under test write their reports: not where the tests were started."""

READY_PREFIX = "meterd ready on "

START_S_MAX = 60


@attrs.define(eq=False)
class Service:
    """One running `meterd serve`; `http` is authorized with the admin key."""

    process: trio.Process
    url: str
    http: httpx.AsyncClient
    log: list[str]

    @property
    def stream_url(self) -> str:
        """Return the URL of the agent stream."""
        return self.url.replace("http://", "ws://") + "/v1/agents/stream"

    async def organization(self, organization_id: str, plan: str, **fields: Any) -> str:
        """Create an organization and return a key for its agents."""
        body = {"id": organization_id, "name": organization_id.title(), "plan": plan, **fields}
        created = await self.http.post("/admin/v1/organizations", json=body)
        assert created.status_code == 201, created.text
        return await self.key(organization_id, "agent", "read", "manage")

    async def key(self, organization_id: str, *scopes: str) -> str:
        """Return a new key of an organization."""
        answer = await self.http.post(
            f"/admin/v1/organizations/{organization_id}/keys", json={"scopes": list(scopes)}
        )
        assert answer.status_code == 201, answer.text
        key: str = answer.json()["key"]
        return key

    async def adjust(self, organization_id: str, agent_ms: int) -> httpx.Response:
        """Book an adjustment on an organization's current period."""
        return await self.http.post(
            f"/admin/v1/organizations/{organization_id}/adjustments",
            json={"agent_ms": agent_ms, "reason": "test"},
        )

    def client(self, key: str) -> httpx.AsyncClient:
        """Return an HTTP client authorized with a key."""
        return httpx.AsyncClient(
            base_url=self.url, headers={"authorization": f"Bearer {key}"}, timeout=30
        )

    def kill(self) -> None:
        """End the process as a crash would."""
        self.process.send_signal(signal.SIGKILL)

    async def stop(self, timeout_s: float = 30) -> int:
        """Ask the process to stop and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        with trio.fail_after(timeout_s):
            return await self.process.wait()


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without settings of the outside, plus these."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("METERD_")}
    return {
        **inherited,
        "METERD_ADMIN_KEY": ADMIN_KEY,
        "METERD_LOG_FORMAT": "json",
        "METERD_REPORTS_DIR": REPORTS.name,
        **settings,
    }


@contextlib.asynccontextmanager
async def running_meterd(
    *options: str,
    settings: Mapping[str, str] | None = None,
    port: int = 0,
    program: Sequence[str] = ("meterd",),
) -> AsyncIterator[Service]:
    """Run `meterd serve` with options for the length of the block; it must become ready.

    `program` is the module to run, with what goes before `serve`.
    """
    serve = ["serve", "--bind", f"127.0.0.1:{port}", *options]
    command = [sys.executable, "-m", *program, *serve]
    log: list[str] = []
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[trio.Process]) -> None:
            await trio.run_process(
                command,
                env=environment(settings or {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                check=False,
                task_status=task_status,
            )

        process = await nursery.start(run)
        ready: trio.MemorySendChannel[str]
        ready, was_ready = trio.open_memory_channel[str](10)
        nursery.start_soon(_read_lines, process.stderr, log, None)
        nursery.start_soon(_read_lines, process.stdout, log, ready)
        url = None
        with trio.move_on_after(START_S_MAX):
            async for line in was_ready:
                if line.startswith(READY_PREFIX):
                    url = line.removeprefix(READY_PREFIX).strip()
                    break
        assert url is not None, "meterd did not become ready:\n" + "\n".join(log[-50:])
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as http:
            try:
                yield Service(process, url, http, log)
            finally:
                with trio.CancelScope(shield=True):
                    if process.returncode is None:
                        process.send_signal(signal.SIGKILL)
                    await process.wait()
        nursery.cancel_scope.cancel()


async def _read_lines(
    stream: trio.abc.ReceiveStream | None,
    log: list[str],
    ready: trio.MemorySendChannel[str] | None,
) -> None:
    assert stream is not None
    rest = b""
    with contextlib.ExitStack() as stack:
        if ready is not None:
            stack.enter_context(ready)
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace")
                log.append(text)
                if ready is not None and text.startswith(READY_PREFIX):
                    ready.send_nowait(text)
