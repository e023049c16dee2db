"""What an organization's quota object says until something happens to the organization.

Between two messages only time moves, and time alone changes nothing but projected use before an
instant that is known: the one at which the actor's timer would go off.
"""

from __future__ import annotations

import attrs

from meterd.actors.cell import Cell
from meterd.core.organization import OrganizationState
from meterd.core.quota import QuotaView, next_wakeup_ms, projected_ms


@attrs.frozen(kw_only=True)
class Standing:
    """A quota object, and what tells whether it still stands but for `projected_ms` and `as_of`."""

    view: QuotaView
    cell: Cell
    state: OrganizationState
    processed: int
    until_ms: int

    @classmethod
    def of(cls, cell: Cell, view: QuotaView) -> Standing:
        """Take the view that was just made of a cell's state."""
        assert cell.state is not None, cell.organization_id
        return cls(
            view=view,
            cell=cell,
            state=cell.state,
            processed=cell.processed,
            until_ms=next_wakeup_ms(cell.state, view.as_of_ms),
        )

    @property
    def organization_id(self) -> str:
        """Return whose it is."""
        return self.view.organization_id

    def projected_ms(self, now_ms: int) -> int | None:
        """Return projected use now, or None when anything else may have changed.

        The caller has made sure that the cell is the one that is ready. Every decision, whether it
        changes the state or crashes, counts as processed; a reload is another state.
        """
        cell = self.cell
        if (
            cell.processed != self.processed
            or cell.state is not self.state
            or now_ms >= self.until_ms
        ):
            return None
        cell.touched_ms = now_ms
        return projected_ms(self.state, now_ms)
