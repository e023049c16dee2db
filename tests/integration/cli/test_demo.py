"""`meterd demo --with-billing`, as somebody tries it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import trio

from tests.integration.cli.programs import meterd
from tests.integration.service.harness import environment


pytestmark = pytest.mark.slow

MINUTES_3 = 180

HAPPENS = (
    "Acme     subscribes on Stripe's page and pays $49.00: plan starter",
    "Initech  pays by contract: an operator links its Stripe customer",
    "Initech  its January is over: 220 minutes past the plan cost $8.80",
    "Acme     is renewed while five of its agents run",
    "Acme     54 minutes past the plan cost $2.70 and are an invoice item, on the draft",
    "Globex   200 minutes past the plan cost $10.00 and are an invoice item, on the draft",
    "Acme     February begins from zero, with 145 minutes of it used",
    "Acme     invoice of $51.70: paid",
    "Globex   invoice of $159.00: the card is declined",
    "Globex   Stripe: past_due; meterd: ok",
    "Globex   the grace is over: the running task is told to stop",
    "Globex   a new one gets 402 suspended",
    "Globex   pays $159.00 with another card;",
    "Σ invoice items at Stripe $21.50 (3 items) = Σ overage in the ledger $21.50",
    "meterd reconcile stripe: 0 differences",
    "meterd audit: 3 organizations checked, 0 differences",
)


async def test_the_month_of_billing_is_told_in_order_and_the_sums_agree() -> None:
    """Checkout, renewal, overage, a late payment, and both sides agree to the cent."""
    ran = await meterd("demo", "--with-billing", timeout_s=MINUTES_3)

    assert ran.code == 0, ran.out + ran.err
    places = [ran.out.find(text) for text in HAPPENS]
    assert -1 not in places, (HAPPENS[places.index(-1)], ran.out)
    assert places == sorted(places), ran.out
    assert ran.err == ""


async def test_ctrl_c_ends_the_month_and_leaves_nothing_running() -> None:
    """Who has seen enough gets the terminal back, at once, and a failure code."""
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[trio.Process]) -> None:
            await trio.run_process(
                [sys.executable, "-m", "meterd", "demo", "--with-billing"],
                env=environment({}),
                stdout=subprocess.PIPE,
                check=False,
                task_status=task_status,
            )

        process = await nursery.start(run)
        assert process.stdout is not None
        seen = b""
        with trio.fail_after(MINUTES_3):
            async for chunk in process.stdout:
                seen += chunk
                if b"from here on" in seen:
                    break
            process.send_signal(signal.SIGINT)
            async for chunk in process.stdout:
                seen += chunk
            code = await process.wait()

    assert (code, seen.splitlines()[-1]) == (1, b"Stopped.")


async def test_real_seconds_and_leaps_exclude_each_other() -> None:
    """An option without an effect would be a lie."""
    ran = await meterd("demo", "--with-billing", "--seconds", "60")

    assert ran.code == 2
    assert "with --with-billing time leaps" in ran.err
