"""What the demonstration shows: a live table on a terminal, plain lines everywhere else."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import attrs
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from meterd.demo.fleet import Organization


EVENTS_SHOWN = 12
BAR_CELLS = 24

_STYLES = {
    "ok": "green",
    "warning": "yellow",
    "grace": "dark_orange",
    "exceeded": "bold red",
    "unlimited": "cyan",
    "suspended": "bold red",
}


@attrs.define
class Screen:
    """Draws the organizations and the latest events; on no terminal it prints the events."""

    console: Console
    organizations: Sequence[Organization]
    events: deque[Text] = attrs.Factory(lambda: deque(maxlen=EVENTS_SHOWN))
    live: Live | None = None

    def tell(self, at_s: int, organization: Organization | None, text: str) -> None:
        """Show an event at a second of the demonstration."""
        title = "" if organization is None else organization.title
        line = Text.assemble((f"{at_s:3d} s ", "dim"), (f"{title:<12}", "bold"), " ", text)
        if self.live is None:
            self.console.print(line, soft_wrap=True)
        else:
            self.events.append(line)

    def draw(self, left_s: int) -> None:
        """Draw the current state; nothing when there is no terminal."""
        if self.live is not None:
            self.live.update(self._picture(left_s), refresh=True)

    def _picture(self, left_s: int) -> Group:
        table = Table(title=f"meterd demo - {left_s} s left", title_justify="left", expand=True)
        for heading in ("organization", "state", "used of the allowance", "agents", "acknowledged"):
            table.add_column(heading)
        for organization in self.organizations:
            table.add_row(*_cells(organization))
        return Group(table, Panel(Group(*self.events), title="events", title_align="left"))


def _cells(organization: Organization) -> tuple[Text, Text, Text, Text, Text]:
    quota: Any = organization.quota
    name = Text.assemble((organization.title, "bold"), f"\n{organization.plan}")
    if not quota:
        return name, Text("starting", "dim"), Text(), Text(), Text()
    minutes, agents = quota["agent_minutes"], quota["agents"]
    state = quota["state"]
    limit = "unlimited" if agents["limit"] is None else agents["limit"]
    return (
        name,
        Text(state.upper(), _STYLES.get(state, "")),
        _allowance(minutes, _STYLES.get(state, "")),
        Text(f"{agents['active']} of {limit}"),
        Text(f"{seconds(organization.acknowledged_ms)}\ndurable"),
    )


def _allowance(minutes: Any, style: str) -> Text:
    projected_ms, hard = minutes["projected_ms"], minutes["hard_limit"]
    if hard is None:
        return Text(f"{seconds(projected_ms)}\nno limit", style)
    hard_ms = hard * 60_000
    filled = min(BAR_CELLS, projected_ms * BAR_CELLS // max(1, hard_ms))
    bar = Text.assemble(("█" * filled, style), ("░" * (BAR_CELLS - filled), "dim"))
    return Text.assemble(
        bar, f"\n{seconds(projected_ms)} of {minutes['limit']} min, stops at {hard} min"
    )


def seconds(duration_ms: int) -> str:
    """Return a duration for people: minutes, seconds and tenths."""
    minutes, rest_ms = divmod(duration_ms, 60_000)
    return f"{minutes} min {rest_ms // 1000:02d}.{rest_ms % 1000 // 100} s"
