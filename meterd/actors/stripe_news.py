"""What events lead to: subscriptions and invoices, the newest version of each.

Rule 1: what was read just now is the newest there is, whatever clocks say; its version is never
        less than what was seen before.
Rule 2: of two payloads, where nothing can be looked at, the later news wins, whichever came first.
Rule 3: a first payment failure stays the first: the objects themselves do not tell it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import attrs

from meterd.core.stripe_objects import Json, read_invoice, read_subscription
from meterd.ports.stripe import PendingEvent, Seen, SeenInvoice, SeenSubscription


PAYMENT_FAILED = "invoice.payment_failed"

_Seen = TypeVar("_Seen", SeenSubscription, SeenInvoice)

_KIND_RANKS: Mapping[str, int] = {
    "customer.subscription.created": 0,
    "customer.subscription.deleted": 9,
    "invoice.created": 0,
    "invoice.finalized": 2,
    "invoice.payment_action_required": 3,
    "invoice.payment_failed": 4,
    "invoice.voided": 8,
    "invoice.marked_uncollectible": 8,
    "invoice.payment_succeeded": 9,
    "invoice.paid": 9,
}
"""Which of two payloads of one second is the later news; others lie in between."""

_OTHER_RANK = 1


@attrs.define
class News:
    """Objects that events lead to, the newest version of each."""

    subscriptions: dict[str, SeenSubscription] = attrs.Factory(dict)
    invoices: dict[str, SeenInvoice] = attrs.Factory(dict)
    failures_ms: dict[str, int] = attrs.Factory(dict)
    """Invoice id to the earliest payment failure told."""
    is_read: bool = False
    """Read from Stripe, not told by payloads: nothing that was seen before is newer."""

    def add_subscription(self, found: Json, version: str) -> None:
        """Take a subscription unless a newer version of it is here."""
        subscription = read_subscription(found)
        if subscription is None:
            return
        known = self.subscriptions.get(subscription.id)
        if known is None or known.version <= version:
            self.subscriptions[subscription.id] = SeenSubscription(
                subscription=subscription, version=version, object_json=_json(found)
            )

    def add_invoice(self, found: Json, version: str) -> None:
        """Take an invoice of a subscription unless a newer version of it is here."""
        invoice = read_invoice(found)
        if invoice is None or invoice.subscription_id is None:
            return
        known = self.invoices.get(invoice.id)
        if known is None or known.version <= version:
            self.invoices[invoice.id] = SeenInvoice(
                invoice=invoice, version=version, object_json=_json(found)
            )

    def add_failures(self, signals: Iterable[PendingEvent]) -> None:
        """Remember when payments failed: the objects themselves do not say."""
        for pending in signals:
            event = pending.event
            if event.type == PAYMENT_FAILED and event.invoice_id is not None:
                known_ms = self.failures_ms.get(event.invoice_id, event.created_at_ms)
                self.failures_ms[event.invoice_id] = min(known_ms, event.created_at_ms)

    def newer_than(self, seen: Seen) -> News:
        """Return what is news to somebody who has seen that; first failures stay first."""
        invoices = {}
        for invoice_id, each in self.invoices.items():
            known = seen.invoices.get(invoice_id)
            newest = self._newer(each, known) or known or each
            known_ms = None if known is None else known.invoice.failed_at_ms
            told = (self.failures_ms.get(invoice_id), known_ms)
            first_ms = min((at_ms for at_ms in told if at_ms is not None), default=None)
            invoice = attrs.evolve(newest.invoice, failed_at_ms=first_ms)
            invoices[invoice_id] = attrs.evolve(newest, invoice=invoice)
        subscriptions = {
            key: self._newer(each, seen.subscriptions.get(key))
            for key, each in self.subscriptions.items()
        }
        return News(
            subscriptions={key: each for key, each in subscriptions.items() if each is not None},
            invoices=invoices,
        )

    def _newer(self, each: _Seen, known: _Seen | None) -> _Seen | None:
        """Return what is newer than what was seen, with a version that says so, or None."""
        if known is None or known.version <= each.version:
            return each
        # Seen by a clock that ran ahead: news all the same, and never older than it.
        return attrs.evolve(each, version=known.version) if self.is_read else None


def from_payloads(signals: Sequence[PendingEvent]) -> News:
    """Return what payloads say; of two the later wins, in whatever order they are looked at."""
    news = News()
    for pending in signals:
        event = pending.event
        found = event.object
        rank = _KIND_RANKS.get(event.type, _OTHER_RANK)
        start_ms = 0
        subscription = read_subscription(found)
        if subscription is not None:
            start_ms = max((item.start_ms for item in subscription.items), default=0)
        version = f"{event.created_at_ms:015d}.{rank}.{start_ms:015d}.{event.id}"
        news.add_subscription(found, version)
        news.add_invoice(found, version)
    news.add_failures(signals)
    return news


def _json(found: Json) -> str:
    return json.dumps(found, separators=(",", ":"))
