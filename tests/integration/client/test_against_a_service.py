"""What needs no knobs: runs against the scripted meterd, or a real one that is named.

`METERD_TEST_URL` and `METERD_TEST_KEY` (scopes agent and read, five free agents) name a real one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import AsyncExitStack

import attrs
import pytest

import meterd.client
from meterd.client import TaskClosed
from tests.fakes.scripted_meterd import KEY, scripted_meterd
from tests.integration.client.shells import SHELLS, Shell


pytestmark = pytest.mark.slow


@attrs.frozen
class Address:
    """Where a service listens, and a key it accepts."""

    url: str
    key: str


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    """Give the service named in the environment, or else a scripted one."""
    url = os.environ.get("METERD_TEST_URL")
    if url is not None:
        yield Address(url, os.environ["METERD_TEST_KEY"])
        return
    with scripted_meterd() as service:
        yield Address(service.url, KEY)


@pytest.fixture(params=SHELLS, ids=lambda shell: shell.name)
def shell(request: pytest.FixtureRequest) -> Shell:
    """Each of the three clients in turn."""
    chosen: Shell = request.param
    return chosen


def test_a_task_is_metered_to_the_millisecond(shell: Shell, address: Address) -> None:
    """What the server counts is what the body ran."""

    async def scenario() -> None:
        async with shell.client(address.url, address.key) as client:
            async with client.task(
                agent_id="agent-1", user_id="user-1", metadata={"step": 1}
            ) as task:
                await shell.sleep(0.2)
            assert task.is_settled
            assert task.metered_ms == task.elapsed_ms >= 200

    shell.run(scenario)


def test_five_agents_share_a_connection(shell: Shell, address: Address) -> None:
    """Starts, heartbeats and ends of several tasks travel together."""

    async def scenario() -> None:
        async with shell.client(address.url, address.key) as client:
            async with AsyncExitStack() as stack:
                handles = [
                    await stack.enter_async_context(client.task(agent_id=f"agent-{number}"))
                    for number in range(5)
                ]
                await shell.sleep(0.1)
            assert all(handle.is_settled for handle in handles)

    shell.run(scenario)


def test_an_ended_task_cannot_begin_again(shell: Shell, address: Address) -> None:
    """The same id twice is one task, and that one has ended."""
    task_id = f"task-{secrets.token_hex(8)}"

    async def scenario() -> None:
        async with shell.client(address.url, address.key) as client:
            async with client.task(agent_id="agent-1", task_id=task_id):
                pass
            with pytest.raises(TaskClosed):
                async with client.task(agent_id="agent-1", task_id=task_id):
                    pytest.fail("the body began")

    shell.run(scenario)


def test_check_and_quota_agree(shell: Shell, address: Address) -> None:
    """The same organization, seen through two requests."""

    async def scenario() -> None:
        async with shell.client(address.url, address.key) as client:
            checked = await client.check("agent-1")
            quota = await client.quota()
            assert checked.allowed
            assert checked.quota.organization_id == quota.organization_id
            assert quota.period_start < quota.period_end

    shell.run(scenario)


def test_the_one_line_check_answers(address: Address) -> None:
    """No client to open, no event loop."""
    assert meterd.client.check(address.url, address.key, "agent-1")
    assert meterd.client.quota(address.url, address.key).agent_minutes.used >= 0
