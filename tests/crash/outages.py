"""PostgreSQL goes away under load while five tasks of a tight organization run out of quota.

Rule 1: limits are decided without PostgreSQL: the five are stopped during the outage.
Rule 2: what cannot be made durable is answered 503 with Retry-After once `ack_timeout_ms` is over.
Rule 3: when it is over, new work is durable again within seconds, and the books are right.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import attrs
import psutil
import trio

from meterd.adapters.postgres.pool import RELEASE_S
from meterd.adapters.postgres_cluster import Cluster
from meterd.adapters.postgres_probe import DATABASE, HOST, USER
from meterd.testing.fault_proxy import Fault, FaultProxy, Link, open_fault_proxy
from tests.crash.agents import Ledger, working_agents
from tests.crash.findings import Findings
from tests.integration.service.books import query
from tests.integration.service.harness import Service, running_meterd
from tests.integration.service.stream import open_stream


ACK_TIMEOUT_MS = 1_000
SETTINGS = {"METERD_TASK_TIMEOUT_MS": "3000", "METERD_ACK_TIMEOUT_MS": str(ACK_TIMEOUT_MS)}
LIMIT_MS = 120_000
LEFT_MS = 10_000
TIGHT_TASKS = 5
TASK_MS = 2_500
"""What each of them says it ran: more than there was, and not more than has passed."""
STOPPED_WITHIN_S = 5
"""Five tasks use ten seconds in two; the rest is what a busy machine may add."""
REFUSED_WITHIN_S = ACK_TIMEOUT_MS / 1_000 + RELEASE_S + 1.5
"""A look-up that is given up gives its connection back first, which a dead server delays."""
RECOVERED_WITHIN_S = 30

READY_FOR_QUERY_IDLE = b"Z\x00\x00\x00\x05I"
"""How PostgreSQL ends a reply after the commit, outside of any transaction.
https://www.postgresql.org/docs/18/protocol-message-formats.html"""


@attrs.frozen
class Outage:
    """A way to take PostgreSQL away, and to bring it back."""

    name: str
    begin: Callable[[], None]
    end: Callable[[], None]


async def tight_organization(service: Service, name: str, agents: int, left_ms: int) -> str:
    """Create an organization with a hard limit of two minutes, nearly used; return its key."""
    contract = {"agents": agents, "agent_minutes": LIMIT_MS // 60_000, "grace_percent": 0}
    key = await service.organization(name, "pro", contract=contract)
    assert (await service.adjust(name, LIMIT_MS - left_ms)).status_code == 201
    return key


async def compare_limits(found: Findings, database_url: str, used_ms: Mapping[str, int]) -> None:
    """Each organization's ledger has what was used, `used_ms`, up to the hard limit."""
    rows = await query(
        database_url,
        "SELECT organization_id, sum(quantity_ms)::bigint AS ms FROM usage_records "
        "WHERE organization_id <> 'load' AND resource_type = 'agent_minute' "
        "GROUP BY organization_id",
    )
    billed_ms = {row["organization_id"]: row["ms"] for row in rows}
    found.over_ms += sum(max(0, ms - LIMIT_MS) for ms in billed_ms.values())
    expected_ms = {name: min(LIMIT_MS, ms) for name, ms in used_ms.items()}
    found.expect(billed_ms == expected_ms, f"billed {billed_ms}, expected {expected_ms}")


async def outage_under_load(
    service: Service, key: str, ledger: Ledger, found: Findings, outage: Outage
) -> None:
    """Take PostgreSQL away, look at what goes on and what is refused, bring it back."""
    name = f"tight-{found.cycles}"
    found.tight.append(name)
    tight = await tight_organization(service, name, TIGHT_TASKS, LEFT_MS)
    async with open_stream(service.stream_url, tight) as stream:
        for number in range(TIGHT_TASKS):
            await stream.start(f"{name}-{number}", f"agent-{number}")
        began_s = trio.current_time()
        outage.begin()
        try:
            for number in range(TIGHT_TASKS):
                await stream.expect("stop", within_s=10, task_id=f"{name}-{number}")
            stopped_s = trio.current_time() - began_s
            found.expect(
                stopped_s <= STOPPED_WITHIN_S,
                f"{outage.name}: stopped after {stopped_s:.1f} s",
            )
            await _ask_during_outage(service, key, found, outage, name)
        finally:
            outage.end()
            ended_s = trio.current_time()
        found.recoveries_s.append(await ledger.recovery_s(ended_s, RECOVERED_WITHIN_S))
        for number in range(TIGHT_TASKS):
            await stream.finish(f"{name}-{number}", TASK_MS)
    found.cycles += 1


async def _ask_during_outage(
    service: Service, key: str, found: Findings, outage: Outage, name: str
) -> None:
    async with service.client(key) as http:
        check = await http.get("/v1/quota/check")
        found.expect(check.status_code == 200, f"{outage.name}: check {check.status_code}")
        asked_s = trio.current_time()
        body = {"task_id": f"{name}-refused", "agent_id": "http"}
        refused = await http.post("/v1/tasks", json=body)
        took_s = trio.current_time() - asked_s
    found.expect(
        refused.status_code == 503 and int(refused.headers.get("retry-after", 0)) > 0,
        f"{outage.name}: {refused.status_code} {refused.text}",
    )
    found.expect(took_s <= REFUSED_WITHIN_S, f"{outage.name}: 503 after {took_s:.1f} s")


async def freeze(data_dir: Path, cycles: int, agents: int) -> Findings:
    """Stop every process of the embedded PostgreSQL with SIGSTOP for a while, `cycles` times."""
    found, ledger = Findings(), Ledger()
    async with running_meterd("--data-dir", str(data_dir), settings=SETTINGS) as service:
        key = await service.organization("load", "enterprise")
        postmaster = postmaster_of(service.process.pid)
        outage = Outage(
            "frozen",
            lambda: signal_all(postmaster, signal.SIGSTOP),
            lambda: signal_all(postmaster, signal.SIGCONT),
        )
        async with working_agents(service.url, key, ledger, agents):
            for _ in range(cycles):
                await ledger.recovery_s(trio.current_time())
                await outage_under_load(service, key, ledger, found, outage)
        url = embedded_url(data_dir)
        await settle(found, url, ledger)
        found.expect(await service.stop() == 0, "SIGTERM did not end in exit 0")
    return found


@contextlib.asynccontextmanager
async def _behind_proxy(database_url: str) -> AsyncIterator[tuple[FaultProxy, str]]:
    parts = urlsplit(database_url)
    async with open_fault_proxy(parts.hostname or HOST, parts.port or 5432) as proxy:
        account = parts.netloc.rpartition("@")[0]
        yield proxy, urlunsplit(parts._replace(netloc=f"{account}@{HOST}:{proxy.port}"))


async def unreachable(database_url: str, cycles: int, agents: int) -> Findings:
    """Lose PostgreSQL behind a proxy, in turn to a black hole and to refused connections."""
    found, ledger = Findings(), Ledger()
    async with (
        _behind_proxy(database_url) as (proxy, url),
        running_meterd("--database-url", url, settings=SETTINGS) as service,
    ):
        key = await service.organization("load", "enterprise")

        def refuse() -> None:
            proxy.set_fault(Fault.REFUSE)
            proxy.reset()

        ways = (
            Outage("black hole", lambda: proxy.set_fault(Fault.BLACK_HOLE), lambda: heal(proxy)),
            Outage("refused", refuse, lambda: heal(proxy)),
        )
        async with working_agents(service.url, key, ledger, agents):
            for cycle in range(cycles):
                await ledger.recovery_s(trio.current_time())
                await outage_under_load(service, key, ledger, found, ways[cycle % len(ways)])
        await settle(found, database_url, ledger)
        found.expect(await service.stop() == 0, "SIGTERM did not end in exit 0")
    return found


async def cut_after_commit(database_url: str, cycles: int, agents: int) -> Findings:
    """Swallow the replies of commits, with resets and a trickling network in between."""
    found, ledger = Findings(), Ledger()
    async with (
        _behind_proxy(database_url) as (proxy, url),
        running_meterd("--database-url", url, settings=SETTINGS) as service,
    ):
        key = await service.organization("load", "enterprise")
        async with working_agents(service.url, key, ledger, agents):
            for cycle in range(cycles):
                await ledger.recovery_s(trio.current_time())
                proxy.set_fault(Fault.TRICKLE if cycle % 3 == 1 else Fault.NONE)
                cuts = proxy.cuts
                if cycle % 3 == 2:
                    proxy.reset()
                proxy.cut_reply(is_flush_reply)
                with trio.fail_after(10):
                    # The proxy has no word for it, and needs none elsewhere.
                    while proxy.cuts == cuts:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                cut_s = trio.current_time()
                found.recoveries_s.append(await ledger.recovery_s(cut_s, RECOVERED_WITHIN_S))
            heal(proxy)
        found.cycles = proxy.cuts
        await settle(found, database_url, ledger)
        found.expect(await service.stop() == 0, "SIGTERM did not end in exit 0")
    return found


async def settle(found: Findings, database_url: str, ledger: Ledger) -> None:
    """Compare the books after a trial, when every agent has settled."""
    found.count(ledger)
    await found.compare_acknowledged(database_url, ledger.acknowledged_ms)
    await found.compare_ran(database_url, ledger)
    await compare_limits(found, database_url, dict.fromkeys(found.tight, LIMIT_MS + 1))
    await found.audit("--database-url", database_url)


def heal(proxy: FaultProxy) -> None:
    """Let everything pass again."""
    proxy.set_fault(Fault.NONE)


def postmaster_of(pid: int) -> psutil.Process:
    """Return the embedded PostgreSQL of a meterd process."""
    [postmaster] = [
        child for child in psutil.Process(pid).children() if child.name().startswith("postgres")
    ]
    return postmaster


def signal_all(postmaster: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to a PostgreSQL with all its backends."""
    # The postmaster first: once it is stopped, no new backend comes.
    postmaster.send_signal(number)
    for backend in postmaster.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            backend.send_signal(number)


def embedded_url(data_dir: Path) -> str:
    """Return the URL of the running embedded PostgreSQL of a data directory."""
    cluster = Cluster(directory=data_dir)
    return f"postgresql://{USER}:{cluster.read_password()}@{HOST}:{cluster.read_port()}/{DATABASE}"


def is_flush_reply(link: Link, reply: bytes) -> bool:
    """Tell whether PostgreSQL says with this that facts are committed.

    ReadyForQuery outside of a transaction follows the commit; the command's tag stands before it.
    """
    return (
        b"meterd flush" in link.opening
        and reply.endswith(READY_FOR_QUERY_IDLE)
        and any(tag in reply for tag in (b"INSERT ", b"SELECT "))
    )
