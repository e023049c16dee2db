"""Who may import, call and catch what: the rules that keep the architecture true."""

from __future__ import annotations

import ast
import itertools
import os
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.tidy.sources import ROOT, called, dotted, imported_modules, sources


CLOCKS = {
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
    "time.time",
    "time.time_ns",
    "time.localtime",
    "time.gmtime",
    "time.ctime",
}
"""The last two parts of a call, so that `dt.datetime.now()` is found too."""

CLOCK_READERS = (
    "meterd/adapters/clock.py",
    "meterd/testing/fake_stripe/clock.py",  # Stripe's own clock, which is not ours
)

CHANCE = {"random", "secrets", "uuid", "numpy"}
CHANCE_TAKERS = (
    "meterd/adapters/ids.py",
    "meterd/adapters/postgres_cluster.py",  # the embedded server's password: never seeded
    "meterd/cli/keys.py",  # makes keys without a system around it
    "meterd/cli/stripe.py",  # spreads retries without a system around it
    "meterd/client/chance.py",  # the client imports nothing of meterd
    "meterd/demo/",  # a seeded fleet, and a key that lives as long as the demonstration
    "meterd/testing/",  # seeded
    "meterd/system.py",  # where the source that everybody is given comes from
)

ASYNCIO_USERS = (
    "meterd/adapters/asyncio_thread.py",
    # What runs on that thread's loop, because these libraries speak asyncio only.
    "meterd/adapters/postgres/",
    "meterd/adapters/redis/",
    # The client runs in other people's programs, on whichever loop they have.
    "meterd/client/asyncio.py",
    "meterd/client/threads.py",
)

CATCH_ALLS = (
    "meterd/actors/supervisor.py",  # turns a failure into a strike or a restart
    "meterd/web/front_door.py",  # no peer's bytes cost more than its own connection
    "meterd/adapters/asyncio_thread.py",  # carries what a coroutine raised to its caller
    "meterd/client/asyncio.py",  # the customer's own exception, told to the task and raised again
    "meterd/client/threads.py",  # what its loop raised reaches the thread that waits for it
)

TASK_STARTERS = (
    "meterd/actors/",
    "meterd/system.py",
    # One task per connection, and what a stream needs while its connection lasts.
    "meterd/web/front_door.py",
    "meterd/web/front/",
    "meterd/web/agent_stream.py",
    "meterd/web/usage_stream.py",
    # Programs of their own.
    "meterd/client/",
    "meterd/testing/",
    "meterd/demo/",
    "meterd/cli/",
)

CORE_MAY_IMPORT = {
    "__future__",
    "abc",
    "attrs",
    "bisect",
    "calendar",
    "collections",
    "collections.abc",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "hashlib",
    "heapq",
    "itertools",
    "json",
    "operator",
    "re",
    "types",
    "typing",
}


def test_only_the_clock_adapter_reads_the_wall_clock() -> None:
    """Time that is not injected cannot be simulated, and jumps when the machine's clock does."""
    read = [
        source.place(node)
        for source in sources("meterd")
        if not source.is_in(*CLOCK_READERS)
        for node, name in called(source.tree)
        if ".".join(name.split(".")[-2:]) in CLOCKS
    ]
    read += [
        source.place(node)
        for source in sources("meterd")
        if not source.is_in(*CLOCK_READERS)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom)
        and any(f"{node.module}.{alias.name}" in CLOCKS for alias in node.names)
    ]

    assert read == []


def test_chance_comes_from_the_injected_source() -> None:
    """A run is repeatable from its seed only if nothing draws numbers on the side."""
    drawn = [
        source.place(node)
        for source in sources("meterd")
        if not source.is_in(*CHANCE_TAKERS)
        for node, module in imported_modules(source.tree)
        if module.split(".")[0] in CHANCE
    ]
    drawn += [
        source.place(node)
        for source in sources("meterd")
        if not source.is_in(*CHANCE_TAKERS)
        for node, name in called(source.tree)
        if name == "os.urandom"
    ]

    assert drawn == []


def test_only_what_runs_on_the_asyncio_thread_imports_asyncio() -> None:
    """Asyncio under Trio fails at run time, in the branch that nobody tried."""
    users = [
        source.place(node)
        for source in sources("meterd")
        if not source.is_in(*ASYNCIO_USERS)
        for node, module in imported_modules(source.tree)
        if module.split(".")[0] in {"asyncio", "uvloop", "trio_asyncio"}
    ]

    assert users == []


def test_only_the_supervisor_and_two_edges_catch_everything() -> None:
    """A swallowed AssertionError is a broken invariant that goes on billing.

    A handler that cleans up and ends in a bare `raise` swallows nothing.
    """
    caught = []
    for source in sources("meterd"):
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ExceptHandler) or source.is_in(*CATCH_ALLS):
                continue
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {dotted(kind) if kind is not None else "everything" for kind in kinds}
            goes_on = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            if not goes_on and names & {
                "Exception",
                "BaseException",
                "everything",
                "trio.Cancelled",
                "Cancelled",
            }:
                caught.append(source.place(node))

    assert caught == []


def test_only_actors_and_connections_start_tasks() -> None:
    """A task that nobody supervises dies unseen, or takes the whole process with it."""
    started = [
        source.place(node)
        for source in sources("meterd")
        if not source.is_in(*TASK_STARTERS)
        for node, name in called(source.tree)
        if name.endswith((".start_soon", "open_nursery", ".spawn_system_task"))
    ]

    assert started == []


def test_the_core_imports_only_what_is_listed() -> None:
    """A list of what is forbidden misses what nobody thought of; this is a list of what is not."""
    imported = [
        f"{source.place(node)} imports {module}"
        for source in sources("meterd/core")
        for node, module in imported_modules(source.tree)
        if module not in CORE_MAY_IMPORT
        and module != "meterd.errors"
        and module.split(".")[:2] != ["meterd", "core"]
    ]

    assert imported == []


def test_the_core_never_waits() -> None:
    """A pure function that awaits is neither."""
    waiting = [
        source.place(node)
        for source in sources("meterd/core")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    ]

    assert waiting == []


def test_no_float_is_in_the_core() -> None:
    """Amounts, limits and durations are int and Decimal; 0.1 + 0.2 has no place in a bill."""
    floats = []
    for source in sources("meterd/core"):
        for node in ast.walk(source.tree):
            is_literal = isinstance(node, ast.Constant) and isinstance(node.value, float)
            is_name = isinstance(node, ast.Name) and node.id == "float"
            is_division = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
            if is_literal or is_name or is_division:
                floats.append(source.place(node))

    assert floats == [], "int // int, or Decimal through core.money"


def test_no_duration_or_amount_is_a_float_anywhere() -> None:
    """Names that end in a unit of time or money promise an exact number."""
    exact = ("_ms", "_usd", "_minutes", "_bytes", "_max")
    floats = []
    for source in sources("meterd"):
        for node in ast.walk(source.tree):
            match node:
                case ast.AnnAssign(target=target, annotation=kind) if dotted(target).endswith(
                    exact
                ):
                    annotation: ast.expr = kind
                case ast.arg(arg=name, annotation=ast.expr() as kind) if name.endswith(exact):
                    annotation = kind
                case _:
                    continue
            if "float" in {dotted(part) for part in ast.walk(annotation)}:
                floats.append(source.place(node))

    assert floats == []


def test_every_library_imported_is_declared() -> None:
    """What happens to be installed on one machine is missing on the next."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    declared = {
        _bare(requirement)
        for requirement in (*project["project"]["dependencies"], *itertools.chain(*extras))
    }
    development = {_bare(r) for r in project["dependency-groups"]["dev"] if isinstance(r, str)}
    owners = packages_distributions()
    undeclared = []
    for source in sources("meterd"):
        for node, module in imported_modules(source.tree):
            top = module.split(".")[0]
            if top == "meterd" or top in sys.stdlib_module_names:
                continue
            allowed = declared | development if source.is_in("meterd/testing/") else declared
            if not {_bare(owner) for owner in owners.get(top, [top])} & allowed:
                undeclared.append(f"{source.place(node)} imports {module}")

    assert undeclared == []


@pytest.mark.slow
def test_imports_point_inwards() -> None:
    """import-linter's contracts in pyproject.toml hold: a layer knows only those below it."""
    linter = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run(
        [linter, "--no-cache", "--no-logo"],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr


def _bare(requirement: str) -> str:
    """Return the normalized name of a requirement: `PyJWT[crypto]>=2` → pyjwt."""
    name = requirement
    for separator in "[<>=!~; ":
        name = name.split(separator)[0]
    return name.lower().replace("_", "-")
