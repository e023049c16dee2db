"""A whole meterd but for PostgreSQL: real actors, key ring, application and front door.

The store is the twin in memory; `Store.is_away` makes it unreachable. Time is Trio's, so the same
world runs on sockets in real time and under an autojump clock without them.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from quart.testing.utils import sentinel
from typed_settings import Secret
from werkzeug.datastructures import Headers

from meterd.actors.cells import ActorPolicy, Cells
from meterd.actors.inspection import Inspector
from meterd.actors.keyring import KeyRing
from meterd.actors.ledger import FlushPolicy, Ledger
from meterd.actors.live import LiveFeed
from meterd.actors.organizations import Organizations
from meterd.actors.supervisor import Service
from meterd.adapters.ids import IdSource
from meterd.adapters.memory.store import Database, MemoryStore
from meterd.adapters.memory.trail import MemoryTrail
from meterd.config import Config
from meterd.core.decide import decide
from meterd.core.journal import OrganizationBatch, StoredOrganization
from meterd.core.organization import Rules
from meterd.core.task import Plausibility, Task
from meterd.errors import StoreRejectedError, StoreUnavailableError
from meterd.ports.keys import StoredKey
from meterd.web.app import Web, WebServices, create_app
from meterd.web.front_door import FrontDoor, open_listeners
from meterd.web.readiness import Readiness
from meterd.web.services import LiveServices
from meterd.web.tickets import Tickets
from meterd.web.usage_live import encode_alert, encode_snapshot
from tests.organizations import CATALOGUE, NOON_MS


ADMIN_KEY = "admin-key-for-tests-of-32-characters-or-more"
PAGE = "https://app.example.com"
"""The one origin that may open the live feed."""
UPGRADE_URL = "https://example.com/upgrade"


class TrioClock:
    """Wall time that begins at NOON_MS and goes with Trio's clock."""

    def __init__(self) -> None:
        self._from = trio.current_time()

    def now_ms(self) -> int:
        return NOON_MS + int((trio.current_time() - self._from) * 1_000)


class Store(MemoryStore):
    """The twin in memory, which can be away and can refuse facts."""

    is_away = False
    refuses = False
    holds_flushes = False
    """Readings are answered, writings wait."""
    lookups = 0
    keys_asked = 0
    """Keys that `revoked_among` was asked for, in all."""

    def _reach(self) -> None:
        if self.is_away:
            raise StoreUnavailableError("reach the store", "switched off by a test")

    async def flush(self, batches: Sequence[OrganizationBatch]) -> None:
        self._reach()
        if self.holds_flushes:
            raise StoreUnavailableError("flush", "held by a test")
        if self.refuses:
            raise StoreRejectedError("flush", "switched off by a test")
        await super().flush(batches)

    async def load(self, organization_ids: Sequence[str]) -> dict[str, StoredOrganization]:
        self._reach()
        return dict(await super().load(organization_ids))

    async def recall_task(self, organization_id: str, task_id: str) -> Task | None:
        self._reach()
        return await super().recall_task(organization_id, task_id)

    async def revocations(self) -> int:
        self._reach()
        return await super().revocations()

    async def revoked_among(self, key_ids: Sequence[str]) -> Sequence[str]:
        self._reach()
        self.keys_asked += len(key_ids)
        return await super().revoked_among(key_ids)

    async def find_key(self, digest: bytes) -> StoredKey | None:
        self._reach()
        self.lookups += 1
        return await super().find_key(digest)


def _lower(given: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in given.items()}


@attrs.frozen(kw_only=True)
class Seen:
    """An answer of the application; header names in lower case."""

    status_code: int
    headers: dict[str, str] = attrs.field(converter=_lower)
    raw: bytes

    @property
    def data(self) -> Any:
        """The JSON in the body."""
        return json.loads(self.raw)


@attrs.define(kw_only=True)
class World:
    """Everything a test may look at."""

    store: Store
    services: WebServices
    web: Web
    nursery: trio.Nursery

    async def add(
        self, organization_id: str = "org_1", plan: str = "starter", **fields: object
    ) -> None:
        """Create an organization as an operator would."""
        body = {"id": organization_id, "name": "Acme", "plan": plan, **fields}
        answer = await self.admin("POST", "/admin/v1/organizations", content=body)
        assert answer.status_code == 201, answer.data

    async def key(self, *scopes: str, organization_id: str = "org_1") -> str:
        """Return a new key with these scopes (agent and read unless named)."""
        _, text = await self.services.keyring.create(
            organization_id, scopes=scopes or ("agent", "read"), created_by="key_test"
        )
        return text

    async def admin(self, method: str, path: str, *, content: Any = None) -> Seen:
        """Ask as an operator, without a socket."""
        return await self.ask(method, path, ADMIN_KEY, content=content)

    async def ask(
        self,
        method: str,
        path: str,
        key: str | None = None,
        *,
        content: Any = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Seen:
        """Ask the application, without a socket."""
        sent = Headers(dict(headers or {}))
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        if content is not None:
            sent["Content-Type"] = "application/json"
            body = json.dumps(content).encode()
        client = self.web.app.test_client()
        answer = await client.open(
            path, method=method, headers=sent, data=body or b"", json=sentinel
        )
        raw = await answer.get_data(as_text=False)
        return Seen(status_code=answer.status_code, headers=dict(answer.headers.items()), raw=raw)


def halves() -> Iterator[float]:
    """Yield one half for ever: retries without chance."""
    while True:
        yield 0.5


@asynccontextmanager
async def open_world(
    *,
    task_timeout_ms: int = 60_000,
    ack_timeout_ms: int = 5_000,
    plausibility: Plausibility = Plausibility.OFF,
    database: Database | None = None,
) -> AsyncIterator[World]:
    """Run a meterd on the store in memory until the block ends."""
    clock = TrioClock()
    ids = IdSource(clock.now_ms, random.Random(1))
    config = Config(
        admin_key=Secret(ADMIN_KEY),
        upgrade_url=UPGRADE_URL,
        task_timeout_ms=task_timeout_ms,
        ack_timeout_ms=ack_timeout_ms,
    )
    database = database or Database()
    store = Store(database, epoch=database.take(), clock=clock)
    ledger = Ledger(
        store, clock=clock, ids=ids, jitter=halves(), policy=FlushPolicy(retry_max_ms=100)
    )
    cells = Cells(
        store,
        ledger,
        rules=Rules(
            catalogue=CATALOGUE, task_timeout_ms=task_timeout_ms, plausibility=plausibility
        ),
        clock=clock,
        ids=ids,
        jitter=halves(),
        policy=ActorPolicy(ask_timeout_ms=ack_timeout_ms, ack_timeout_ms=ack_timeout_ms),
        decide=decide,
    )
    organizations = Organizations(cells)
    feed = LiveFeed(organizations, encode=encode_snapshot, encode_alert=encode_alert)
    keyring = await KeyRing.open(
        store,
        clock=clock,
        ids=ids,
        chance=random.Random(2).randbytes,
        admin_key=ADMIN_KEY,
        say=print,
    )
    actors = [
        Service("ledger", ledger.run, clock=clock),
        Service("activation", organizations.cells.activation.run, clock=clock),
        Service("timers", organizations.cells.timers.run, clock=clock),
        Service("keyring", keyring.watch, clock=clock),
        Service("live", feed.run, clock=clock),
    ]
    readiness = Readiness(organizations, actors, clock=clock)
    readiness.is_accepting = True
    services = WebServices(
        organizations=organizations,
        inspector=Inspector(organizations, actors),
        keyring=keyring,
        directory=store,
        readiness=readiness,
        clock=clock,
        ids=ids,
        config=config,
        live=LiveServices(
            feed=feed, tickets=Tickets(clock, random.Random(3).randbytes), origins=frozenset({PAGE})
        ),
        trail=MemoryTrail(database),
    )
    async with trio.open_nursery() as nursery:
        for actor in actors:
            nursery.start_soon(actor.run)
        web = create_app(services)
        web.app.nursery = nursery  # what the application's start-up does
        yield World(store=store, services=services, web=web, nursery=nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_front(world: World, *, is_hot: bool = True) -> AsyncIterator[int]:
    """Serve a world on a port of this machine, with or without hot path and stream gate."""
    door = FrontDoor(
        world.web.app,
        new_request_id=world.web.new_request_id,
        hot_path=world.web.hot_path if is_hot else None,
        stream_gate=world.web.stream_gate if is_hot else None,
    )
    listeners = await open_listeners("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        await nursery.start(door.serve, listeners)
        yield listeners[0].socket.getsockname()[1]
        door.stop_accepting()
        await door.drained(timeout_ms=1_000)
        nursery.cancel_scope.cancel()
