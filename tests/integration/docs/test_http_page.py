"""docs/reference/http.md against the routes and the problems of the code."""

from __future__ import annotations

import ast
import os
import re

from meterd.web.agent_session import CLOSE_TOO_MANY_ERRORS
from meterd.web.problems import KINDS
from meterd.web.stream_transport import CLOSE_IDLE, CLOSE_UNAUTHORIZED
from tests.integration.docs.pages import ROOT


PATH = ROOT / "docs/reference/http.md"
PAGE = PATH.read_text(encoding="utf-8")
ROUTES = re.findall(r"^\| \[`(GET|POST|PATCH|DELETE) ([^`]+)`\]", PAGE, re.MULTILINE)
PROBLEMS = re.compile(r"(?:^\| \d{3} \| `\w+` \| .+ \|\n)+", re.MULTILINE)


def routes_in_code() -> set[tuple[str, str]]:
    """Return method and path of every route that a blueprint of `meterd/web` declares."""
    found = set()
    for path in (ROOT / "meterd/web").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prefix = "/admin/v1" if 'url_prefix="/admin/v1"' in path.read_text() else ""
        constants = {
            node.target.id: node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.AsyncFunctionDef):
                continue
            for decorator in node.decorator_list:
                match decorator:
                    case ast.Call(func=ast.Attribute(attr=method), args=[ast.Constant(value=rule)]):
                        found.add((method.upper(), prefix + str(rule)))
                    case ast.Call(func=ast.Attribute(attr=method), args=[ast.Name(id=name)]):
                        found.add((method.upper(), prefix + str(constants.get(name, name))))
                    case _:
                        pass
    return {(method, re.sub(r"<(?:path:)?(\w+)>", r"{\1}", rule)) for method, rule in found}


def test_the_routes_on_the_page_exist() -> None:
    """Who programs against the page must not meet a 404."""
    known = routes_in_code() | {("GET", "/v1/agents/stream")}

    assert len(ROUTES) >= 20
    assert [route for route in ROUTES if route not in known] == []


def test_the_table_of_problems_is_that_of_the_code() -> None:
    """Callers branch on the code, support reads the sentence; `WRITE_DOCS=1` writes both anew."""
    table = "".join(
        f"| {kind.status} | `{code}` | {kind.detail} |\n" for code, kind in KINDS.items()
    )
    if os.environ.get("WRITE_DOCS") == "1":
        PATH.write_text(PROBLEMS.sub(lambda _: table, PAGE), encoding="utf-8")
        return

    assert PROBLEMS.findall(PAGE) == [table]


def test_the_close_codes_are_those_of_the_code() -> None:
    """A client that reads the wrong code reconnects for ever, or not at all."""
    page = set(re.findall(r"^\| (\d{4}) \|", PAGE, re.MULTILINE))

    assert {str(CLOSE_TOO_MANY_ERRORS), str(CLOSE_IDLE), str(CLOSE_UNAUTHORIZED)} <= page
    assert page == {"1008", "1009", "1012", "4401", "4403", "4408", "4429", "4508"}
