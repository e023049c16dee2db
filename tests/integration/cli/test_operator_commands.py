"""Operators' commands against a running meterd, as somebody types them."""

from __future__ import annotations

import functools
import itertools
import json
import signal
import subprocess
import sys

import pytest
import trio

from tests.integration.cli.programs import Ran, meterd
from tests.integration.service.harness import ADMIN_KEY, Service, environment, running_meterd
from tests.integration.service.stream import open_stream


pytestmark = pytest.mark.slow


async def asked(service: Service, *arguments: str) -> Ran:
    """Run a command that asks this meterd."""
    return await meterd(*arguments, settings={"METERD_URL": service.url})


async def test_an_operator_sees_and_steers_everything_from_a_terminal(database_url: str) -> None:
    """Top, show, trace, restart, passivate, organizations, dead letters; tables and JSON."""
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("acme", "starter")
        async with open_stream(service.stream_url, key) as stream:
            await stream.start("t", "a")
            top = await asked(service, "actors", "top", "--json", "--sort", "address")
            table = await asked(service, "actors", "top")
            on = await asked(service, "actors", "trace", "acme", "--on", "--reason", "look")
            await stream.beat("t", 1_000)
            trace = await asked(service, "actors", "trace", "acme", "--json")
            busy = await asked(service, "actors", "passivate", "acme")
            restarted = await asked(service, "actors", "restart", "acme")
            await stream.finish("t", 1_000)
        pulse = await asked(service, "actors", "show", "service/pulse", "--json")
        owner = await asked(service, "actors", "show", "service/owner", "--json")
        gone = await asked(service, "actors", "passivate", "acme")
        unknown = await asked(service, "actors", "show", "nobody")
        organizations = await asked(service, "orgs", "--json")
        organization = await asked(service, "orgs", "acme", "--json")
        letters = await asked(service, "dead-letters")
        events = await asked(service, "stripe", "events", "--json")
        audit = await service.http.get("/admin/v1/audit?organization_id=acme")

    addresses = [actor["address"] for actor in json.loads(top.out)]
    assert {"organization/acme", "service/ledger", "service/pulse"} <= set(addresses)
    assert "organization/acme" in table.out
    assert on.code == 0
    assert [one["message"][:9] for one in json.loads(trace.out)] == ["Heartbeat"]
    assert (busy.code, "actor_busy" in busy.err) == (2, True)
    assert restarted.code == 0
    assert json.loads(pulse.out)["state"]["peak_ms"] >= 0
    assert json.loads(owner.out)["state"]["lock_held"] is True
    assert json.loads(owner.out)["state"]["pools"]["flush"]["limit"] == 2
    assert gone.out == "organization/acme has left memory\n"
    assert (unknown.code, "actor_unknown" in unknown.err) == (2, True)
    assert [each["id"] for each in json.loads(organizations.out)] == ["acme"]
    assert json.loads(organization.out)["quota"]["agent_minutes"]["used_ms"] == 1_000
    assert letters.out == "no dead letters\n"
    assert json.loads(events.out) == []
    actions = [entry["action"] for entry in audit.json()["data"]]
    assert actions.count("actor.passivate") == 2
    assert {"actor.trace", "actor.restart", "organization.create", "key.create"} <= set(actions)
    assert ADMIN_KEY not in "".join(service.log) + audit.text


async def test_commands_say_what_is_wrong_when_nobody_answers() -> None:
    """Wrong address, wrong key: one sentence on standard error, no traceback."""
    nobody = await meterd("orgs", settings={"METERD_URL": "http://127.0.0.1:1"})
    keyless = await meterd("orgs", settings={"METERD_ADMIN_KEY": ""})

    assert (nobody.code, nobody.err.count("\n")) == (1, 1)
    assert "no meterd answers" in nobody.err
    assert (keyless.code, "METERD_ADMIN_KEY" in keyless.err) == (2, True)


async def test_sigusr1_shows_where_every_task_waits(database_url: str) -> None:
    """When nothing moves, the tree of tasks says what it waits for; values are not shown."""
    async with running_meterd("--database-url", database_url) as service:
        service.process.send_signal(signal.SIGUSR1)
        with trio.fail_after(10):
            while not (lines := [line for line in service.log if "task_tree" in line]):  # noqa: ASYNC110
                await trio.sleep(0.05)  # the log of another process has no event
        assert (await service.http.get("/healthz")).status_code == 200

    tasks = json.loads(lines[0])["tasks"]
    assert any("Ledger.run" in task or "ledger.py" in task for task in tasks)
    assert any("pulse.py" in task for task in tasks)
    assert ADMIN_KEY not in lines[0]


async def test_a_live_trace_shows_messages_as_they_happen(database_url: str) -> None:
    """Two terminals at three in the morning: one works, the other watches, and says how it ends."""
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("acme", "starter")
        watched = [sys.executable, "-m", "meterd", "actors", "trace", "acme", "--live"]
        async with open_stream(service.stream_url, key) as stream, trio.open_nursery() as nursery:
            await stream.start("t", "a")
            process = await nursery.start(
                functools.partial(
                    trio.run_process,
                    watched,
                    env=environment({"METERD_URL": service.url}),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    check=False,
                )
            )
            shown = b""
            with trio.fail_after(30):
                for elapsed_ms in itertools.count(1):
                    await stream.beat("t", elapsed_ms)
                    with trio.move_on_after(0.2):
                        shown += await process.stdout.receive_some()
                    if b"Heartbeat" in shown:
                        break
            await service.stop()
            said = b"".join([chunk async for chunk in process.stderr])
            nursery.cancel_scope.cancel()

    assert b"Heartbeat" in shown
    assert said.startswith(b"meterd: the live trace")
