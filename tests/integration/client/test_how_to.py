"""docs/how-to/meter-an-agent.md, run as a reader would: its programs against a server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.scripted_meterd import KEY, ScriptedMeterd


ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/how-to/meter-an-agent.md").read_text(encoding="utf-8")
PROGRAMS = dict(
    re.findall(
        r"^## ([^\n]+)$(?:(?!^## ).)*?^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
    )
)

pytestmark = pytest.mark.slow


def run_program(text: str, url: str, key: str) -> str:
    """Run a program of the page in an interpreter of its own and give what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        cwd=ROOT,
        env={**os.environ, "METERD_URL": url, "METERD_KEY": key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_the_page_has_the_programs_it_promises() -> None:
    """A heading that moved must not silently switch its test off."""
    assert list(PROGRAMS) == ["asyncio", "Trio", "Threads", "Only ask"]


@pytest.mark.parametrize("name", ["asyncio", "Trio", "Threads"])
def test_each_program_meters_a_task(name: str, service: ScriptedMeterd) -> None:
    """What a reader copies works, warnings counted as errors."""
    printed = run_program(PROGRAMS[name], service.url, KEY)
    (booked,) = service.book.tasks.values()

    assert re.fullmatch(r"metered \d+ ms, settled: True\n", printed)
    assert booked.outcome == "succeeded"
    assert booked.elapsed_ms >= 200


@pytest.mark.parametrize("name", ["asyncio", "Trio", "Threads"])
def test_each_program_says_why_it_may_not_start(name: str, service: ScriptedMeterd) -> None:
    """The refusal a customer reads is the product's own sentence."""
    service.book.refusal = ("plan_limit_reached", "Plan limit reached. Upgrade to continue.")

    printed = run_program(PROGRAMS[name], service.url, KEY)

    assert printed == "Plan limit reached. Upgrade to continue. None\n"


def test_the_one_line_check_says_go(service: ScriptedMeterd) -> None:
    """The smallest use there is."""
    assert run_program(PROGRAMS["Only ask"], service.url, KEY) == "go\n"
