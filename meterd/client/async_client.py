"""What the Trio and the asyncio client share: everything but waiting, cancelling and starting.

A shell adds the life of the driver, the shield around a settlement, and how a body is cancelled.
"""

from __future__ import annotations

import dataclasses
import ssl
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx

from meterd.client import http_api
from meterd.client.chance import Chance, SystemChance
from meterd.client.driver import Driver, Runtime, Tracked
from meterd.client.errors import Unreachable
from meterd.client.policy import OnStop, Outcome, Settings, UnreachablePolicy
from meterd.client.quota import Check, Quota
from meterd.client.session import Session
from meterd.client.task import TaskHandle
from meterd.client.transport import Transport
from meterd.client.wire import TaskRequest


SETTLE_TIMEOUT_MS = 5_000
"""How long leaving a task waits for its settlement; it goes on in the background afterwards."""
CLOSE_TIMEOUT_MS = 5_000
"""How long leaving the client waits for everything to be settled."""
HANG_UP_TIMEOUT_S = 3
"""How long the connection may take to close once nothing is left to say."""


class TaskBase(TaskHandle):
    """A running task of an async client."""

    tracked: Tracked | None = None
    """The driver's record of the task, once it has started."""

    async def wait_stop(self) -> None:
        """Wait until meterd asks the task to stop; `stop` then says why."""
        assert self.tracked is not None, "the task has not started"
        while self.stop is None:
            await self.tracked.stopped.wait()


class AsyncMeterd(ABC):
    """The common part of the async clients; use `meterd.client.trio` or `meterd.client.asyncio`.

    `url` is the service's base address, `key` an organization key with the scope `agent` (and
    `read`, or `agent`, for `check` and `quota`). `unreachable` is the declared policy for an
    absent meterd, `on_stop` what a `stop` does to a body. `settings` holds the finer limits;
    `ssl_context` replaces the default trust. `transport` and `chance` let a simulation stand in
    for the network and for randomness.
    """

    def __init__(  # noqa: PLR0913 - keyword-only, each a choice of its own
        self,
        url: str,
        key: str,
        *,
        unreachable: UnreachablePolicy | None = None,
        on_stop: OnStop = "cancel",
        settle_timeout_ms: int = SETTLE_TIMEOUT_MS,
        close_timeout_ms: int = CLOSE_TIMEOUT_MS,
        settings: Settings | None = None,
        ssl_context: ssl.SSLContext | None = None,
        transport: Transport | None = None,
        chance: Chance | None = None,
    ) -> None:
        chosen = settings or Settings()
        if unreachable is not None:
            chosen = dataclasses.replace(chosen, unreachable=unreachable)
        self._http_url = http_api.http_url(url)
        self._key = key
        self._policy = chosen.unreachable
        self._on_stop = on_stop
        self._settle_timeout_ms = settle_timeout_ms
        self._close_timeout_ms = close_timeout_ms
        self._ssl_context = ssl_context
        self._chance = chance or SystemChance()
        self._session = Session(chosen, self._chance)
        self._runtime = self._make_runtime()
        self._driver = Driver(
            self._session,
            self._runtime,
            transport or self._make_transport(url, key, ssl_context),
        )
        self._http: httpx.AsyncClient | None = None
        self.unsettled: list[str] = []
        """After leaving the client: ids of tasks whose end meterd never acknowledged."""

    _life: AbstractAsyncContextManager[None] | None = None

    @abstractmethod
    def _make_runtime(self) -> Runtime:
        """Return the time and the waiting of the shell's world."""

    @abstractmethod
    def _make_transport(self, url: str, key: str, ssl_context: ssl.SSLContext | None) -> Transport:
        """Return the shell's WebSocket."""

    @property
    def latest_quota(self) -> Quota | None:
        """The last quota object meterd sent on the stream, without asking for a new one."""
        return self._session.quota

    async def check(self, agent_id: str | None = None) -> Check:
        """Ask whether `agent_id`, or a new agent, may start work now; nothing is reserved.

        Errors: Unauthorized, Forbidden, RequestRejected; Unreachable under `FailClosed`.
        Source: GET /v1/quota/check.
        """
        try:
            answer = await self._get(http_api.CHECK_PATH, http_api.check_query(agent_id))
            return http_api.read_check(answer.status_code, answer.headers, answer.content)
        except Unreachable as error:
            return http_api.unreachable_check(self._policy, error)

    async def quota(self) -> Quota:
        """Give the organization's quota.

        Errors: Unauthorized, Forbidden, Unreachable. Source: GET /v1/quota.
        """
        answer = await self._get(http_api.QUOTA_PATH, {})
        return http_api.read_quota(answer.status_code, answer.content)

    async def _get(self, path: str, query: Mapping[str, str]) -> httpx.Response:
        if self._http is None:
            self._http = httpx.AsyncClient(
                timeout=http_api.TIMEOUT_S,
                verify=True if self._ssl_context is None else self._ssl_context,
            )
        try:
            return await self._http.get(
                self._http_url + path, params=dict(query), headers=http_api.headers(self._key)
            )
        except httpx.TransportError as error:
            raise Unreachable(f"meterd cannot be reached: {type(error).__name__}.") from error

    async def _close_http(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    def request(
        self,
        agent_id: str,
        task_id: str | None,
        user_id: str | None,
        metadata: Mapping[str, Any] | None,
    ) -> TaskRequest:
        """Make a task's request, with a new id unless one is given. Errors: ValueError."""
        return TaskRequest(
            task_id=self._chance.task_id() if task_id is None else task_id,
            agent_id=agent_id,
            user_id=user_id,
            metadata=metadata,
        )

    async def begin(self, request: TaskRequest, task: TaskHandle) -> Tracked:
        """Start a task and wait for the verdict. Errors: MeterdClientError."""
        if self._life is None:
            raise RuntimeError("the client is not open: use it inside `async with`")
        return await self._driver.begin(request, task)

    async def end(self, tracked: Tracked, outcome: Outcome) -> None:
        """End a task and wait, at most `settle_timeout_ms`, for its settlement."""
        self._driver.finish(tracked, outcome)
        await self._driver.settled(tracked, self._settle_timeout_ms)

    def elapsed_ms(self, task_id: str) -> int:
        """Give a running task's cumulative milliseconds; safe to ask from any thread."""
        return self._session.elapsed_ms(task_id, self._runtime.now_ms())
