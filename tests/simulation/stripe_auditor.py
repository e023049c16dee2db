"""The auditor of money: what Stripe's invoices must say, from the rows alone, by naive arithmetic.

It shares no rule with the core or the charges: it adds up what the ledger's rows cost, looks at
what lies at Stripe, and wants both to be the same, to the cent, once and for every customer.
"""

from __future__ import annotations

from collections import defaultdict
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING

from meterd.adapters.memory.store import Database, OrganizationRecord
from meterd.core.overage import Charge
from tests.simulation.stripe_account import Customer, Json, StripeAccount
from tests.simulation.violation import expect


if TYPE_CHECKING:
    from tests.simulation.meterd_process import StripeTables


PeriodKey = tuple[str, str]
"""Organization and billing period."""


class StripeAuditor:
    """Watches meterd's charges and Stripe's invoices in one world."""

    def __init__(self, database: Database, tables: StripeTables, account: StripeAccount) -> None:
        self._database = database
        self._tables = tables
        self._account = account
        self._items: dict[str, str] = {}

    @property
    def charged_cents(self) -> int:
        """Return the cents of all invoice items that are meterd's."""
        found = self._account.objects("invoiceitem")
        return sum(each["amount"] for each in found if "meterd_charge" in each["metadata"])

    # --- while it happens ------------------------------------------------------------------------

    def on_event(self, event: Json) -> None:
        """I3: a charge becomes one invoice item, never a second one."""
        if event["type"] != "invoiceitem.created":
            return
        item = event["data"]["object"]
        charge_id = item["metadata"].get("meterd_charge")
        if charge_id is None:
            return
        known = self._items.setdefault(charge_id, item["id"])
        expect(known == item["id"], "I3 charged twice", charge_id, known, item["id"])
        charge = self._tables.charges.get(charge_id)
        expect(charge is not None, "I3 asked before it was written down", charge_id)
        assert charge is not None
        state = charge.state.value
        expect(state in {"pushing", "pushed", "invoiced"}, "I3 asked before it was", state)
        expect(item["amount"] == charge.amount_cents, "I3 the amount of an item", item, charge)

    def unsettled(self, now_ms: int) -> list[str]:
        """Return what is still under way: notices, charges, periods without charges."""
        waiting = [key for key, kept in self._tables.events.items() if kept.state == "pending"]
        waiting += [
            f"{charge.id} {charge.state.value}"
            for charge in self._tables.charges.values()
            if charge.state.value in {"new", "pushing"} or self._rides_a_final_invoice(charge)
        ]
        waiting += [f"job {name}" for name in self._tables.jobs.running]
        for key, record in self._database.organizations.items():
            owed = owed_cents(record)
            charged = self._charged_cents(key)
            for _, period in record.periods.values():
                if period.closed and owed[period.label] != charged[period.label]:
                    waiting.append(f"{key} {period.label}")
                if not period.closed and period.end_ms <= now_ms:
                    waiting.append(f"{key} {period.label} is over")
        return waiting

    def _rides_a_final_invoice(self, charge: Charge) -> bool:
        """Tell whether a charge should know by now that its invoice was finalized."""
        if charge.state.value != "pushed" or charge.invoice_item_id is None:
            return False
        item = self._account.fake.world.table("invoiceitem").get(charge.invoice_item_id)
        if item is None or item["invoice"] is None:
            return item is None
        invoice = self._account.fake.world.table("invoice").get(item["invoice"])
        return invoice is None or invoice["status"] != "draft"

    # --- the end ---------------------------------------------------------------------------------

    def conclude(self) -> None:
        """I3 and P6: what was owed was charged, once, and nothing else; plans are what is paid."""
        for run in self._tables.jobs.kept:
            is_known = run.outcome.value != "running" or run.job in self._tables.jobs.running
            expect(is_known, "P6 a run that nobody is at is over", run)
        for run_of, subject in self._tables.jobs.done:
            if run_of == "report":
                times = self._tables.work_done[run_of, subject]
                expect(times >= 1, "P6 a job that succeeded has done its work", subject)
        for kept in self._tables.events.values():
            expect(kept.state == "done", "P6 no notice is given up", kept)
        items: dict[str, list[Json]] = defaultdict(list)
        for item in self._account.objects("invoiceitem"):
            if "meterd_charge" in item["metadata"]:
                items[item["metadata"]["meterd_charge"]].append(item)
        for charge_id, found in items.items():
            expect(len(found) == 1, "I3 charged twice", charge_id, found)
            expect(charge_id in self._tables.charges, "I3 nobody's charge", found)
        customers = {each.organization_id: each for each in self._account.customers}
        for key, record in self._database.organizations.items():
            self._conclude_charges(key, record, items, customers.get(key))
        for customer in self._account.customers:
            self._conclude_plan(customer)

    def _conclude_charges(
        self,
        organization_id: str,
        record: OrganizationRecord,
        items: dict[str, list[Json]],
        customer: Customer | None,
    ) -> None:
        owed = owed_cents(record)
        at_stripe: dict[str, int] = defaultdict(int)
        held: dict[str, int] = defaultdict(int)
        for charge in self._tables.charges.values():
            if charge.organization_id != organization_id:
                continue
            state = charge.state.value
            found = items.get(charge.id, [])
            facts = (charge.id, charge.billing_period, state, charge.amount_cents)
            if state == "manual":
                held[charge.billing_period] += charge.amount_cents
                expect(not found, "I3 a held charge is not pushed", *facts)
                is_known = customer is not None and customer.is_linked
                expect(not is_known, "I3 whose customer is known is charged", *facts)
                continue
            expect(state in {"pushed", "invoiced"}, "P6 a charge is settled", *facts)
            expect(len(found) == 1, "I3 a pushed charge is one item", *facts)
            expect(found[0]["id"] == charge.invoice_item_id, "I3 which item it became", *facts)
            expect(found[0]["amount"] == charge.amount_cents, "I3 the amount", *facts)
            expect(
                customer is not None and found[0]["customer"] == customer.id,
                "P5 whose customer pays",
                *facts,
            )
            at_stripe[charge.billing_period] += found[0]["amount"]
        for period in (period for _, period in record.periods.values()):
            label = period.label
            billed = at_stripe[label] + held[label]
            expect(
                billed == (owed[label] if period.closed else 0),
                "I3 all that is owed",
                (organization_id, label, owed[label], at_stripe[label], held[label]),
            )

    def _conclude_plan(self, customer: Customer) -> None:
        """Expect the plan that is paid, the period that is paid, and no hold on who has paid."""
        record = self._database.organizations[customer.organization_id]
        subscription = self._account.fake.world.get("subscription", customer.subscription_id)
        terms = record.terms[max(record.terms)]
        status = subscription["status"]
        holds = {hold.value for hold in record.profile.holds}
        tier = subscription["items"]["data"][0]["price"]["metadata"]["meterd_tier"]
        facts = (customer.organization_id, status, tier, terms.plan.value, holds)
        expect(record.profile.stripe_customer_id == customer.id, "P6 the customer", *facts)
        if status == "active":
            expect(terms.plan.value == tier, "P6 the plan that is paid", *facts)
            expect("payment" not in holds, "P6 who has paid is not suspended", *facts)
            cycle = record.profile.cycle
            is_followed = cycle is not None and cycle.subscription_id == customer.subscription_id
            expect(is_followed, "P6 the subscription is followed", *facts)
            item = subscription["items"]["data"][0]
            period = record.periods[max(record.periods)][1]
            end_s = item["current_period_end"]
            expect(period.end_ms == end_s * 1_000, "P6 the period that is paid", *facts)
        elif status == "canceled":
            expect("payment" not in holds, "P6 nothing is owed any more", *facts)
            expect(record.profile.cycle is None, "P6 what has ended is not followed", *facts)

    def _charged_cents(self, organization_id: str) -> dict[str, int]:
        found: dict[str, int] = defaultdict(int)
        for charge in self._tables.charges.values():
            if charge.organization_id == organization_id:
                found[charge.billing_period] += charge.amount_cents
        return found


def owed_cents(record: OrganizationRecord) -> dict[str, int]:
    """Return what each period's rows cost in cents, rounded half-up once."""
    costs: dict[str, Decimal] = defaultdict(Decimal)
    for row in record.rows.values():
        costs[row.billing_period] += row.quantity * row.unit_cost_usd
    return defaultdict(int, {label: cents(cost) for label, cost in costs.items()})


def cents(usd: Decimal) -> int:
    """Return dollars as whole cents; half a cent is rounded away from zero."""
    return int((usd * 100).quantize(Decimal(1), ROUND_HALF_UP))
