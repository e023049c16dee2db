"""The composition root: what stands behind which port, what starts first, what stops last.

Everything is nested inside what it uses: front door in actors, actors in pools, pools in owner
lock, lock in database. Whatever ends, ends from the inside out, so the last flush always finds
its database. Stopping has phases, each with a deadline of its own (`_stop`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import attrs
import structlog
import trio
from typed_settings import Secret

from meterd import notifying, telemetry
from meterd.actors.cells import ActorPolicy, Cells, Decide
from meterd.actors.connections import ConnectionMeter
from meterd.actors.inspection import Inspector
from meterd.actors.keyring import KeyRing
from meterd.actors.ledger import FlushPolicy, Ledger
from meterd.actors.organizations import Organizations
from meterd.actors.pulse import Pulse
from meterd.actors.stripe import StripeActor
from meterd.actors.supervisor import Service
from meterd.adapters.asyncio_thread import AsyncioThread, open_asyncio_thread
from meterd.adapters.catalogue import load_catalogue
from meterd.adapters.clock import SystemClock
from meterd.adapters.embedded_postgres import open_embedded_postgres
from meterd.adapters.ids import IdSource
from meterd.adapters.postgres.charges import PostgresCharges
from meterd.adapters.postgres.durability import assert_durable_settings
from meterd.adapters.postgres.last_record import last_recorded_ms
from meterd.adapters.postgres.migrate import Migrations, assert_can_migrate
from meterd.adapters.postgres.owner import Ownership, own_database
from meterd.adapters.postgres.people import PostgresPeople
from meterd.adapters.postgres.pool import (
    PostgresPools,
    open_dedicated_connection,
    open_postgres_pools,
)
from meterd.adapters.postgres.store import PostgresStore
from meterd.adapters.postgres.stripe import PostgresStripe
from meterd.adapters.postgres.trail import PostgresTrail
from meterd.adapters.sd_notify import ServiceManager
from meterd.adapters.stripe.client import StripePayments, open_stripe
from meterd.bookkeeping import books_of, measure_books, scheduler_of
from meterd.charging import billing_of, charges_of, jobs_of
from meterd.config import Config
from meterd.core.decide import decide
from meterd.core.event import EVENT_AHEAD_MS
from meterd.core.organization import Rules
from meterd.core.supervision import StrikePolicy
from meterd.core.task import Plausibility
from meterd.core.units import DAY_MS, SECOND_MS, rfc3339
from meterd.errors import ConfigError
from meterd.notifying import live_of, sessions_of, webhooks_of
from meterd.observe.spans import Spans, no_span
from meterd.observe.tasktree import task_tree
from meterd.web.app import WebServices, create_app
from meterd.web.front_door import FrontDoor, FrontDoorLimits, TrustedProxies, open_listeners
from meterd.web.readiness import Readiness
from meterd.web.traced import TracedApp, traced_hot_path


log = structlog.get_logger(__name__)

CLOCK_AHEAD_MAX_MS = 35 * DAY_MS
"""A clock further than this past the last committed row is more likely wrong than right."""

Say = Callable[[str], None]


@attrs.frozen(kw_only=True)
class Meterd:
    """A running meterd, as tests and the command line see it."""

    config: Config
    url: str
    organizations: Organizations
    inspector: Inspector
    door: FrontDoor
    keyring: KeyRing
    stop: Callable[[], None]
    """Begin a clean stop; `run_meterd` returns when it is done."""


async def run_meterd(
    config: Config,
    *,
    say: Say,
    decide_with: Decide = decide,
    clock: SystemClock | None = None,
    spans: Spans | None = None,
    task_status: trio.TaskStatus[Meterd] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the whole service until a signal or `Meterd.stop`, then stop it in order.

    Reports started when it accepts requests. `say` gets sentences for the operator; without a
    `clock` it runs on the system's, and with `spans` they are told what happens.
    Errors: ConfigError, OwnedElsewhereError, EmbeddedPostgresError, StoreError before it is ready;
    OwnershipLostError or EscalatedError when it cannot go on.
    """
    with telemetry.tracing(config, spans) as opened:
        await _run(config, say, decide_with, clock, opened, task_status)


async def _run(
    config: Config,
    say: Say,
    decide_with: Decide,
    clock: SystemClock | None,
    spans: Spans | None,
    task_status: trio.TaskStatus[Meterd],
) -> None:
    catalogue = load_catalogue(config.plans)
    clock = clock or SystemClock(on_jump=_report_jump)
    chance = random.SystemRandom()
    ids = IdSource(clock.now_ms, chance)
    async with (
        open_asyncio_thread() as portal,
        _database(portal, config, say) as dsn,
        _owned(portal, config, dsn, say) as owner,
        open_postgres_pools(portal, dsn) as pools,
        _payments(config, _jitter(chance), say, spans or no_span) as payments,
        notifying.quota_sink(portal, config) as sink,
    ):
        await _check_clock(pools, config, clock)
        store = PostgresStore(pools, epoch=owner.epoch, clock=clock)
        ledger = Ledger(
            store,
            clock=clock,
            ids=ids,
            jitter=_jitter(chance),
            policy=FlushPolicy(
                interval_ms=config.flush_interval_ms,
                rows_max=config.flush_rows_max,
                journal_max=config.journal_commits_max,
            ),
            spans=spans or no_span,
        )
        cells = Cells(
            store,
            ledger,
            rules=Rules(
                catalogue=catalogue,
                task_timeout_ms=config.task_timeout_ms,
                record_interval_ms=config.record_interval_ms,
                tasks_per_agent=config.tasks_per_agent,
                tasks_per_organization=config.tasks_per_organization,
                plausibility=Plausibility(config.plausibility),
                payment_grace_ms=config.payment_grace_ms,
            ),
            clock=clock,
            ids=ids,
            jitter=_jitter(chance),
            policy=_actor_policy(config),
            decide=decide_with if spans is None else telemetry.traced(decide_with, spans),
            slowing=lambda: clock.slowing,
        )
        organizations = Organizations(cells)
        keyring = await KeyRing.open(
            store,
            clock=clock,
            ids=ids,
            chance=chance.randbytes,
            pepper=_secret(config.key_pepper),
            admin_key=_secret(config.admin_key),
            say=say,
        )
        inbox = PostgresStripe(pools, epoch=owner.epoch)
        charge_store = PostgresCharges(pools, epoch=owner.epoch)
        charges = charges_of(config, charge_store, payments, organizations, jitter=_jitter(chance))
        follower = StripeActor(
            inbox,
            payments,
            organizations,
            store,
            clock=clock,
            jitter=_jitter(chance),
            on_invoices=lambda _organization_id, _invoices: charges.kick(),
        )
        billing = billing_of(
            charge_store, charges, payments, inbox, follower, organizations, store, ids=ids
        )
        books = books_of(config, pools, organizations, catalogue)
        scheduler = scheduler_of(
            config,
            pools,
            books,
            epoch=owner.epoch,
            ids=ids,
            jitter=_jitter(chance),
            more=jobs_of(config, billing),
        )
        mirror = notifying.mirror_of(organizations, sink, _jitter(chance))
        keyring.sessions = sessions_of(config, clock)
        live = live_of(config, organizations, chance.randbytes)
        webhooks = webhooks_of(
            config,
            pools,
            clock=clock,
            jitter=_jitter(chance),
            chance=chance.randbytes,
            secret=keyring.secret_for(b"webhook endpoints"),
        )
        manager = ServiceManager()
        pulse = Pulse(on_beat=manager.alive)
        connections = ConnectionMeter(organizations, clock=clock, ids=ids)
        services = [
            Service("ledger", ledger.run, clock=clock),
            Service("activation", organizations.cells.activation.run, clock=clock),
            Service("timers", organizations.cells.timers.run, clock=clock),
            Service("janitor", organizations.cells.run_janitor, clock=clock),
            Service("keyring", keyring.watch, clock=clock),
            Service("connections", connections.run, clock=clock),
            Service("owner", owner.keep, clock=clock),
            Service("stripe", follower.run, clock=clock),
            Service("charges", charges.run, clock=clock),
            Service("scheduler", scheduler.run, clock=clock),
            Service("publisher", webhooks.publisher.run, clock=clock),
            Service("live", live.feed.run, clock=clock),
            *([] if mirror is None else [Service("mirror", mirror.run, clock=clock)]),
            Service("pulse", pulse.run, clock=clock),
        ]
        readiness = Readiness(organizations, services, clock=clock)
        inspector = Inspector(
            organizations,
            services,
            states={
                **telemetry.states(portal, pools, owner, pulse, clock),
                **notifying.states(live, webhooks, mirror),
                "stripe": lambda: follower.figures,
                "charges": lambda: charges.figures,
            },
        )
        web = WebServices(
            organizations=organizations,
            inspector=inspector,
            keyring=keyring,
            directory=store,
            readiness=readiness,
            clock=clock,
            ids=ids,
            config=config,
            stripe_store=inbox,
            stripe_actor=follower,
            books=books,
            scheduler=scheduler,
            webhooks=webhooks,
            live=live,
            connections=connections,
            trail=PostgresTrail(pools),
            people=PostgresPeople(pools),
            billing=billing,
        )
        telemetry.measure_organizations(web.metrics, organizations)
        telemetry.measure_ledger(web.metrics, organizations)
        telemetry.measure_store(web.metrics, pools, owner)
        telemetry.measure_stripe(web.metrics, follower)
        telemetry.measure_charges(web.metrics, charges)
        notifying.measure(web.metrics, live, webhooks, mirror)
        measure_books(web.metrics, books, scheduler)
        telemetry.measure_process(
            web.metrics, services=services, readiness=readiness, pulse=pulse, clock=clock
        )
        async with trio.open_nursery() as actors:
            for service in services:
                actors.start_soon(service.run)
            await organizations.cells.activate_at_work()
            await _serve(config, web, manager, spans, task_status)
            actors.cancel_scope.cancel()


async def _serve(
    config: Config,
    web: WebServices,
    manager: ServiceManager,
    spans: Spans | None,
    task_status: trio.TaskStatus[Meterd],
) -> None:
    """Open the front door until a stop is asked for, then stop in order."""
    wired = create_app(web)
    door = FrontDoor(
        wired.app if spans is None else TracedApp(wired.app, spans),
        new_request_id=wired.new_request_id,
        limits=_door_limits(config),
        hot_path=wired.hot_path if spans is None else traced_hot_path(wired.hot_path, spans),
        stream_gate=wired.stream_gate,
        trusted_proxies=TrustedProxies(map(str, config.trusted_proxies)),
    )
    telemetry.measure_door(web.metrics, door)
    stopping = trio.Event()
    listeners = await _listen(config)
    url = _url_of(listeners)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, stopping)
        nursery.start_soon(_show_tasks_on_signal)
        await nursery.start(door.serve, listeners)
        web.readiness.is_accepting = True
        manager.ready()
        task_status.started(
            Meterd(
                config=config,
                url=url,
                organizations=web.organizations,
                inspector=web.inspector,
                door=door,
                keyring=web.keyring,
                stop=stopping.set,
            )
        )
        await stopping.wait()
        manager.stopping()
        with trio.CancelScope(shield=True):  # every phase has its own deadline
            await _stop(config, web, door)
        nursery.cancel_scope.cancel()


async def _stop(config: Config, web: WebServices, door: FrontDoor) -> None:
    """Stop from the outside in: no new work, answer what is open, then flush to zero."""
    log.info("stopping", unflushed=web.organizations.ledger.unflushed)
    web.readiness.is_accepting = False
    door.stop_accepting()
    await door.drained(timeout_ms=config.shutdown_requests_ms)
    door.abort_all()
    if web.connections is not None:
        with trio.move_on_after(config.shutdown_requests_ms / SECOND_MS):
            await web.connections.settle()
    web.organizations.cells.stop()
    ledger = web.organizations.ledger
    with trio.move_on_after(config.shutdown_flush_ms / SECOND_MS):
        await ledger.drained()
    if ledger.unflushed:
        log.error("stopped_with_unflushed_facts", unflushed=ledger.unflushed)
    else:
        log.info("stopped")


async def _stop_on_signal(stopping: trio.Event) -> None:
    """Stop cleanly on the first SIGTERM or SIGINT, at once on the second."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if stopping.is_set():
                log.error("stopped_by_second_signal")
                os._exit(1)
            stopping.set()


async def _show_tasks_on_signal() -> None:
    """Write the tree of tasks to the log whenever SIGUSR1 arrives."""
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async for _ in signals:
            log.warning("task_tree", tasks=list(task_tree()))


@contextlib.asynccontextmanager
async def _database(portal: AsyncioThread, config: Config, say: Say) -> AsyncIterator[str]:
    """Give the URL of the database to use: the configured one, or an embedded server's."""
    if config.database_url is not None:
        yield config.database_url.get_secret_value()
        return
    assert config.data_dir is not None, "the configuration names one of the two"
    async with (
        open_embedded_postgres(portal, config.data_dir, on_progress=say) as server,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(server.keep_running)
        yield server.dsn
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def _payments(
    config: Config, jitter: Iterator[float], say: Say, spans: Spans
) -> AsyncIterator[StripePayments | None]:
    """Give Stripe's API, or None without a key: then payloads are applied as they come."""
    key = _secret(config.stripe_api_key)
    if key is None:
        if config.stripe_webhook_secrets:
            say("no stripe_api_key: Stripe's events are applied as they come")
        yield None
        return
    async with open_stripe(
        key, jitter=jitter, api_base=config.stripe_api_base, spans=spans
    ) as payments:
        yield payments


@contextlib.asynccontextmanager
async def _owned(
    portal: AsyncioThread, config: Config, dsn: str, say: Say
) -> AsyncIterator[Ownership]:
    """Own the database, brought to this version's schema, for the length of the block."""
    async with open_dedicated_connection(portal, dsn, name="start") as connection:
        await connection.run(
            "check the database's settings",
            functools.partial(
                assert_durable_settings, is_unsafe_allowed=config.allow_unsafe_database
            ),
        )
    migrations = Migrations(portal, dsn)
    await assert_can_migrate(migrations)
    async with own_database(
        portal,
        dsn,
        owner=f"{socket.gethostname()} process {os.getpid()}",
        wait_ms=config.owner_wait_ms,
        takeover=config.takeover,
        prepare=functools.partial(migrations.upgrade, say),
    ) as owner:
        yield owner


async def _check_clock(pools: PostgresPools, config: Config, clock: SystemClock) -> None:
    """Refuse to meter with a clock that contradicts what is already recorded."""
    last_ms = await last_recorded_ms(pools)
    now_ms = clock.now_ms()
    if last_ms is None or last_ms - EVENT_AHEAD_MS <= now_ms <= last_ms + CLOCK_AHEAD_MAX_MS:
        return
    text = (
        f"the clock says {rfc3339(now_ms)} and the last record is from {rfc3339(last_ms)}: "
        "correct the clock, or accept it with --accept-clock"
    )
    if not config.accept_clock:
        raise ConfigError(text)
    log.warning("clock_accepted", now=rfc3339(now_ms), last_record=rfc3339(last_ms))


def _secret(secret: Secret[str] | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _actor_policy(config: Config) -> ActorPolicy:
    return ActorPolicy(
        mailbox_max=config.mailbox_max,
        ask_timeout_ms=config.ack_timeout_ms,
        ack_timeout_ms=config.ack_timeout_ms,
        passivate_after_ms=config.passivate_after_ms,
        strikes=StrikePolicy(
            strikes_max=config.strikes_max,
            window_ms=config.strikes_window_ms,
            quarantine_ms=config.quarantine_ms,
        ),
    )


def _door_limits(config: Config) -> FrontDoorLimits:
    return FrontDoorLimits(
        connections_max=config.connections_max,
        connections_per_address_max=min(config.connections_per_address_max, config.connections_max),
        stream_message_bytes_max=config.frame_bytes_max,
        stream_idle_ms=config.stream_idle_ms,
        stream_ping_ms=min(30_000, config.stream_idle_ms // 3),
    )


async def _listen(config: Config) -> list[trio.SocketListener]:
    try:
        return await open_listeners(config.bind.host, config.bind.port)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {config.bind}: {error.strerror or error}. "
            "Stop what uses the address, or choose another with --bind."
        ) from error


def _url_of(listeners: list[trio.SocketListener]) -> str:
    host, port, *_ = listeners[0].socket.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _jitter(chance: random.Random) -> Iterator[float]:
    """Yield numbers in [0, 1) that spread retries apart."""
    while True:
        yield chance.random()


def _report_jump(jump_ms: int) -> None:
    if jump_ms:
        log.error("clock_jump", jump_ms=jump_ms, advice="correct the clock or restart meterd")
    else:
        log.info("clock_jump_over")
