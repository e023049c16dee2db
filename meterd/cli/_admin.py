"""Commands that ask a running meterd as an operator, over HTTP.

The address comes from `--url` or METERD_URL, the admin key from METERD_ADMIN_KEY only: options
show in the list of processes. `@asks_meterd` calls a command with `admin: Admin` and `as_json`.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs
import click
import httpx

from meterd.cli import ExitCode, refuse


URL_DEFAULT: Final = "http://127.0.0.1:8080"

TIMEOUT_S: Final = 30.0


@attrs.frozen
class Admin:
    """A running meterd, asked with the admin key; whatever goes wrong ends the command."""

    url: str
    key: str = attrs.field(repr=False)

    def get(self, path: str, **parameters: Any) -> Any:
        """Return the JSON of an answer."""
        given = {name: value for name, value in parameters.items() if value is not None}
        return self._ask("GET", path, params=given)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the JSON of an answer to a command."""
        return self._ask("POST", path, json=dict(body or {}))

    def delete(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the JSON of an answer to a removal."""
        return self._ask("DELETE", path, json=dict(body or {}))

    @property
    def headers(self) -> dict[str, str]:
        """Return what says who we are."""
        return {"authorization": f"Bearer {self.key}"}

    def _ask(self, method: str, path: str, **rest: Any) -> Any:
        try:
            answer = httpx.request(
                method,
                f"{self.url}/admin/v1/{path}",
                headers=self.headers,
                timeout=TIMEOUT_S,
                **rest,
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            refuse(
                f"no meterd answers at {self.url} ({error}): start it, or name it with --url",
                ExitCode.FAILED,
            )
        if not answer.is_success:
            code = ExitCode.USAGE if answer.is_client_error else ExitCode.FAILED
            refuse(_why(answer), code)
        return answer.json() if answer.content else {}


def asks_meterd(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--url` and `--json`, and call it with an `Admin`."""

    @click.option(
        "--url",
        envvar="METERD_URL",
        default=URL_DEFAULT,
        metavar="URL",
        help=f"The running meterd. [METERD_URL; default {URL_DEFAULT}]",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @functools.wraps(command)
    def run(*, url: str, **values: Any) -> Any:
        key = os.environ.get("METERD_ADMIN_KEY", "")
        if not key:
            refuse("set METERD_ADMIN_KEY to an admin key", ExitCode.USAGE)
        return command(admin=Admin(url.rstrip("/"), key), **values)

    return run


def show_json(content: Any) -> None:
    """Print JSON for people and programs."""
    click.echo(json.dumps(content, indent=2))


def show_table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under titles, as wide as needed; numbers to the right."""
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [
        max(len(title), *(len(row[column]) for row in texts)) if texts else len(title)
        for column, title in enumerate(titles)
    ]
    is_number = [
        bool(rows) and all(isinstance(row[column], int | None) for row in rows)
        for column in range(len(titles))
    ]
    for cells in (list(titles), *texts):
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, is_number, strict=True)
        ]
        click.echo("  ".join(parts).rstrip())


def _text(cell: Any) -> str:
    """Return a cell without anything that moves a cursor."""
    if cell is None:
        return "-"
    return "".join(one if one.isprintable() else "?" for one in str(cell))


def _why(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
    except ValueError:
        return f"meterd answered {answer.status_code}"
    errors = [f"{each['pointer']} {each['detail']}" for each in problem.get("errors", ())]
    return "\n".join([f"{problem.get('code')}: {problem.get('detail')}", *errors])
