"""Waiting for the end of a process, in a service that has thousands of connections open."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess

import pytest
import trio
import trio.testing

from meterd.adapters.embedded_postgres import _process_ended


SELECT_MAX = 1_024
"""Descriptors from here on are not for `select`."""


async def test_the_end_of_a_process_is_seen_whatever_the_number_of_open_files() -> None:
    """The watch over PostgreSQL once took the whole service down, from 1,024 files on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * SELECT_MAX:
        pytest.skip("this system does not let a process open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * SELECT_MAX, hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        taken = os.open(os.devnull, os.O_RDONLY)
        stack.callback(os.close, taken)
        while taken < SELECT_MAX:
            taken = os.dup(taken)
            stack.callback(os.close, taken)
        process = stack.enter_context(subprocess.Popen(["sleep", "60"]))  # noqa: ASYNC220  # starts at once
        stack.callback(process.kill)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_process_ended, process.pid)
            await trio.testing.wait_all_tasks_blocked()
            process.kill()
            with trio.fail_after(5):
                await _process_ended(process.pid)
