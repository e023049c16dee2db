"""How one charge reaches Stripe: each way it can go wrong, and where it ends."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

import attrs
import pytest
import trio
from trio.testing import MockClock

from meterd.actors.charge_policy import ChargePolicy
from meterd.actors.charges import MoveRefused
from meterd.adapters.stripe.billing import StripeBilling
from meterd.core.commands import Heartbeat
from meterd.core.overage import IN_FLIGHT_MS, KEY_TRIES_MAX, Charge, ChargeState, Review
from meterd.core.plan import Contract, Tier
from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from meterd.testing.fake_stripe import RequestFault
from tests.integration.billing.rig import DAY_S, Rig, open_rig
from tests.organizations import make_start


# The client hands httpx its body in an outdated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")

SMALL = Contract(agent_minutes=100, grace_percent=1_000)
ITEMS = "^/v1/invoiceitems$"


def only(rig: Rig) -> Charge:
    """Return the only charge there is."""
    (charge,) = rig.kept.kept.values()
    return charge


async def settle(rig: Rig) -> None:
    """Let four days pass, a look at what was pushed on each."""
    for _ in range(4):
        await rig.advance(1)


async def to_the_boundary(rig: Rig, *, minutes: int = 120) -> None:
    """Subscribe org_1 on 1 January, use minutes of which 100 are included; 1 February begins."""
    await rig.create("org_1", contract=SMALL)
    rig.subscribe("org_1", rig.make_price("pro", 14_900))
    await rig.hear()
    await rig.use("org_1", minutes)
    await rig.advance(30.9)
    await pass_moment(rig, 31 * DAY_S + 60)


async def pass_moment(rig: Rig, after_start_s: int) -> None:
    """Let time pass up to an instant without the charges actor doing anything."""
    start_s = rig.fake.objects("subscription")[0]["created"]
    world, to_s = rig.fake.world, start_s + after_start_s
    while (due_s := world.next_due_s()) is not None and due_s <= to_s:
        world.clock.jump_to(due_s)
        while world.run_due():
            pass
    world.clock.jump_to(to_s)
    if not rig.fake.faults.away:
        await rig.hear()


async def pass_month(rig: Rig) -> None:
    """Let January end, a minute ago."""
    rig.fake.clock.jump_to(rig.fake.clock.now_s + 31 * DAY_S + 60)
    await rig.charges.work()
    await rig.charges.work()


async def test_a_charge_rides_the_draft_of_its_renewal(autojump_clock: MockClock) -> None:
    """Attached while the draft is open, invoiced with it, paid with it."""
    async with open_rig() as rig:
        await to_the_boundary(rig)
        await rig.work()
        (item,) = rig.items()
        assert only(rig).invoice_id == item["invoice"]
        await rig.advance(1)

        invoice = next(
            each for each in rig.fake.objects("invoice") if each["id"] == item["invoice"]
        )
        assert (invoice["status"], invoice["amount_paid"]) == ("paid", 14_900 + 100)
        assert only(rig).state is ChargeState.INVOICED
        request = next(
            each for each in rig.fake.requests
            if (each.method, each.path) == ("POST", "/v1/invoiceitems")
        )  # fmt: skip
        assert request.idempotency_key == f"meterd:overage:{only(rig).id}:1"


async def test_a_draft_that_is_one_no_more_is_followed_by_an_attempt_without(
    autojump_clock: MockClock,
) -> None:
    """It was finalized between the look and the call: the item rides the next renewal."""
    async with open_rig() as rig:
        await to_the_boundary(rig)
        draft = next(each for each in rig.fake.objects("invoice") if each["status"] == "draft")

        class Late(StripeBilling):
            """Finds a draft that is finalized before anything is put on it."""

            async def open_draft(self, subscription_id: str) -> str | None:
                """Return the draft, too late."""
                found = await StripeBilling.open_draft(self, subscription_id)
                if draft["status"] == "draft":
                    rig.call("POST", f"/v1/invoices/{draft['id']}/finalize")
                return found

        rig.billing = Late(rig.payments)
        rig.restart()
        await rig.work()

        charge = only(rig)
        assert (charge.state, charge.attempt, charge.invoice_id) == (ChargeState.PUSHED, 2, None)
        assert [each["invoice"] for each in rig.items()] == [None]


async def test_stripe_away_for_25_hours_is_caught_up_with(autojump_clock: MockClock) -> None:
    """The reply was lost, the key is forgotten: the item is found by its name."""
    async with open_rig() as rig:
        await to_the_boundary(rig)
        rig.fake.faults.fail_next(*[RequestFault.DROP_AFTER] * 3, method="POST", path=ITEMS)
        await rig.charges.work()
        assert only(rig).state is ChargeState.PUSHING
        rig.fake.faults.away = True
        for hours in range(1, 26):
            await pass_moment(rig, 31 * DAY_S + hours * 3_600)
            await rig.charges.work()
        assert only(rig).state is ChargeState.PUSHING
        rig.fake.faults.away = False
        await settle(rig)

        assert (only(rig).state, only(rig).attempt) == (ChargeState.INVOICED, 1)
        assert len(rig.items()) == 1


async def test_an_old_key_without_an_item_is_renewed(autojump_clock: MockClock) -> None:
    """Nothing had happened at Stripe: the second attempt is the first that counts."""
    async with open_rig() as rig:
        await to_the_boundary(rig)
        rig.fake.faults.fail_next(*[RequestFault.DROP_BEFORE] * 3, method="POST", path=ITEMS)
        await rig.charges.work()
        await pass_moment(rig, 31 * DAY_S + 21 * 3_600)
        await rig.work()

        charge = only(rig)
        assert (charge.state, charge.attempt) == (ChargeState.PUSHED, 2)
        assert charge.first_at_ms is not None
        assert charge.key_at_ms is not None
        assert charge.key_at_ms - charge.first_at_ms > 20 * HOUR_MS


async def test_a_key_is_renewed_only_when_its_last_call_is_surely_over(
    autojump_clock: MockClock,
) -> None:
    """What Stripe still works on shows in no list: a new key asked for it would charge twice."""
    async with open_rig() as rig:
        await to_the_boundary(rig)
        rig.fake.faults.fail_next(*[RequestFault.DROP_BEFORE] * 9, method="POST", path=ITEMS)
        while not rig.kept.kept or only(rig).tries < KEY_TRIES_MAX:
            await rig.charges.work()
            last_call_ms = rig.clock.now_ms()
            await trio.sleep(1)

        assert (only(rig).state, only(rig).attempt) == (ChargeState.PUSHING, 1)
        assert only(rig).next_attempt_at_ms >= last_call_ms - SECOND_MS + IN_FLIGHT_MS
        await trio.sleep(IN_FLIGHT_MS / SECOND_MS)
        await rig.work()
        assert (only(rig).state, only(rig).attempt) == (ChargeState.PUSHED, 2)


async def test_an_item_made_while_our_clock_was_a_day_ahead_is_found(
    autojump_clock: MockClock,
) -> None:
    """The key is too old to trust and the attempt seems to begin after its item was created."""
    async with open_rig() as rig:
        await to_the_boundary(rig)
        rig.fake.faults.fail_next(*[RequestFault.DROP_AFTER] * 3, method="POST", path=ITEMS)
        await rig.charges.work()
        charge = only(rig)
        assert charge.first_at_ms is not None
        assert charge.key_at_ms is not None
        rig.kept.kept[charge.id] = attrs.evolve(
            charge,
            first_at_ms=charge.first_at_ms + DAY_MS,
            key_at_ms=charge.key_at_ms - DAY_MS,
        )
        await trio.sleep(60)
        await rig.work()

        assert (only(rig).state, only(rig).attempt) == (ChargeState.PUSHED, 1)
        assert len(rig.items()) == 1


async def test_a_database_restored_from_a_backup_charges_nothing_again(
    autojump_clock: MockClock,
) -> None:
    """It has forgotten the attempt, and Stripe the key: the item itself remembers its charge."""
    async with open_rig() as rig:
        await to_the_boundary(rig)
        await rig.work()
        pushed = only(rig)
        await rig.advance(3)
        rig.kept.kept.clear()
        rig.kept.marks.clear()
        rig.restart()
        await rig.work()
        await settle(rig)

        assert (only(rig).id, only(rig).state) == (pushed.id, ChargeState.INVOICED)
        assert only(rig).invoice_item_id == pushed.invoice_item_id
        assert len(rig.items()) == 1


async def test_a_failure_that_a_key_remembers_does_not_stop_a_charge(
    autojump_clock: MockClock,
) -> None:
    """Stripe repeats a stored 500 for a day; an item that exists is found all the same."""
    async with open_rig() as rig:
        await to_the_boundary(rig)
        rig.fake.faults.fail_next(RequestFault.ERROR_AFTER, method="POST", path=ITEMS)
        await rig.work()

        assert (only(rig).state, only(rig).attempt) == (ChargeState.PUSHED, 1)
        assert len(rig.items()) == 1


async def test_a_stripe_that_lists_and_creates_nothing_counts_as_away(
    autojump_clock: MockClock,
) -> None:
    """Looks that succeed must not hide that no push does: one charge at a time asks for it."""
    async with open_rig() as rig:
        price = rig.make_price("pro", 14_900)
        for number in range(5):
            await rig.create(f"org_{number}", contract=SMALL)
            rig.subscribe(f"org_{number}", price)
        await rig.hear()
        for number in range(5):
            await rig.use(f"org_{number}", 120)
        await rig.advance(30.9)
        await pass_moment(rig, 31 * DAY_S + 60)
        rig.fake.faults.fail_next(*[RequestFault.ERROR_BEFORE] * 100, method="POST", path=ITEMS)
        await rig.charges.work()
        was_away, failed = rig.charges.is_away, rig.charges.failures_in_a_row
        await trio.sleep(10)
        await rig.charges.work()
        tried_again = [each for each in rig.kept.kept.values() if each.tries > 1]
        rig.fake.faults.clear()
        await settle(rig)

        assert (was_away, failed) == (True, 5)
        assert len(tried_again) == 1
        assert not rig.charges.is_away
        assert {each.state for each in rig.kept.kept.values()} == {ChargeState.PUSHED}
        assert len(rig.items()) == 5


async def test_what_stripe_refuses_is_parked_and_goes_on_when_released(
    autojump_clock: MockClock,
) -> None:
    """A customer that is gone: a finding, then another customer, then a person's decision."""
    async with open_rig() as rig:
        await rig.create("org_1", Tier.PRO, SMALL, customer_id="cus_gone")
        await rig.use("org_1", 120)
        await rig.advance(32)

        charge = only(rig)
        assert charge.state is ChargeState.PARKED
        assert "resource_missing" in (charge.reason or "")
        assert [finding.kind for _, finding in rig.database.findings.values()] == ["charge_parked"]
        made = rig.call("POST", "/v1/customers", email="new@example.com")["id"]
        record = rig.database.organizations["org_1"]
        object.__setattr__(record.profile, "stripe_customer_id", made)
        released = await rig.charges.release(charge.id, actor="key_admin", reason="new customer")
        assert isinstance(released, Charge)
        await settle(rig)
        assert only(rig).state is ChargeState.INVOICED
        assert [each["customer"] for each in rig.items()] == [made]


async def test_an_organization_without_a_subscription_gets_an_invoice_of_its_own(
    autojump_clock: MockClock,
) -> None:
    """No renewal sweeps its items: a one-off invoice takes them all."""
    async with open_rig() as rig:
        customer = rig.call("POST", "/v1/customers", email="a@example.com")["id"]
        await rig.create("org_1", Tier.ENTERPRISE, customer_id=customer)
        await rig.use("org_1", 100)
        await rig.advance(31.5)
        await settle(rig)

        (invoice,) = rig.fake.objects("invoice")
        assert (invoice["billing_reason"], invoice["amount_paid"]) == ("manual", 500)
        assert only(rig).state is ChargeState.INVOICED


async def test_a_lost_reply_to_the_one_off_invoice_makes_no_second_one(
    autojump_clock: MockClock,
) -> None:
    """That the item is on an invoice is seen before another one is asked for."""
    async with open_rig() as rig:
        customer = rig.call("POST", "/v1/customers", email="a@example.com")["id"]
        await rig.create("org_1", Tier.ENTERPRISE, customer_id=customer)
        await rig.use("org_1", 100)
        rig.fake.faults.fail_next(
            *[RequestFault.DROP_AFTER] * 3, method="POST", path="^/v1/invoices$"
        )
        await rig.advance(31.5)
        await settle(rig)

        assert len(rig.fake.objects("invoice")) == 1
        assert only(rig).state is ChargeState.INVOICED


async def test_pending_items_of_a_cancelled_subscription_are_invoiced(
    autojump_clock: MockClock,
) -> None:
    """Its last period has overage and there is no renewal to ride."""
    async with open_rig() as rig:
        await rig.create("org_1", contract=SMALL)
        made = rig.subscribe("org_1", rig.make_price("pro", 14_900))
        await rig.hear()
        await rig.use("org_1", 120)
        await rig.advance(10)
        rig.call("DELETE", f"/v1/subscriptions/{made['id']}")
        await rig.advance(25)

        assert only(rig).state is ChargeState.INVOICED
        last = rig.fake.objects("invoice")[-1]
        assert (last["billing_reason"], last["amount_paid"]) == ("manual", 100)


async def test_items_beside_another_customer_s_subscription_get_an_invoice_of_their_own(
    autojump_clock: MockClock,
) -> None:
    """Its renewals are made for somebody else: pending items of ours would wait for ever."""
    async with open_rig() as rig:
        customer = rig.call("POST", "/v1/customers", email="own@example.com")["id"]
        await rig.create("org_1", contract=SMALL, customer_id=customer)
        rig.subscribe("org_1", rig.make_price("pro", 14_900))
        await rig.hear()
        await rig.use("org_1", 120)
        await rig.advance(32)
        await settle(rig)

        (item,) = rig.items()
        assert item["customer"] == customer
        (own,) = [each for each in rig.fake.objects("invoice") if each["customer"] == customer]
        assert (own["billing_reason"], own["amount_paid"]) == ("manual", 100)
        assert only(rig).state is ChargeState.INVOICED


async def test_charge_of_a_subscription_that_is_gone_is_pushed_all_the_same(
    autojump_clock: MockClock,
) -> None:
    """Somebody removed a test clock, and all that belonged to it: it has no draft any more."""
    async with open_rig() as rig:
        await to_the_boundary(rig)
        (subscription,) = rig.fake.objects("subscription")
        for invoice in rig.fake.objects("invoice"):
            del rig.fake.world.tables["invoice"][invoice["id"]]
        del rig.fake.world.tables["subscription"][subscription["id"]]
        await rig.work()

        assert (only(rig).state, only(rig).last_error) == (ChargeState.PUSHED, None)


async def test_without_a_customer_a_charge_is_somebody_else_s(autojump_clock: MockClock) -> None:
    """It stays manual; released without a customer it is manual again; voided it is final."""
    async with open_rig() as rig:
        await rig.create("org_1", Tier.PRO, SMALL)
        await rig.use("org_1", 120)
        await rig.advance(32)
        charge = only(rig)
        assert charge.state is ChargeState.MANUAL

        await rig.charges.release(charge.id, actor="key_admin", reason="try")
        await rig.work()
        assert only(rig).state is ChargeState.MANUAL
        await rig.charges.write_off(charge.id, actor="key_admin", reason="a gift")
        refused = await rig.charges.release(charge.id, actor="key_admin", reason="no")
        assert refused == MoveRefused(ChargeState.VOID)
        assert await rig.charges.release("chg_none", actor="key_admin", reason="?") is None
        audits = [
            (audit.action, audit.reason)
            for _, audit in rig.database.audits.values()
            if audit.action.startswith("charge.")
        ]
        assert audits == [("charge.release", "try"), ("charge.void", "a gift")]


async def test_the_first_customers_charges_are_looked_at_once(autojump_clock: MockClock) -> None:
    """First two: both wait; after their release the third passes, and so do their next ones."""
    policy = ChargePolicy(review=Review(2))
    async with open_rig(policy=policy) as rig:
        for number in range(3):
            customer = rig.call("POST", "/v1/customers", email="a@example.com")["id"]
            await rig.create(f"org_{number}", Tier.PRO, SMALL, customer_id=customer)
        for number in range(2):
            await rig.use(f"org_{number}", 120)
        await rig.advance(32)
        assert {charge.state for charge in rig.kept.kept.values()} == {ChargeState.REVIEW}
        for charge in list(rig.kept.kept.values()):
            await rig.charges.release(charge.id, actor="key_admin", reason="looks right")
        for number in range(3):
            await rig.use(f"org_{number}", 120)
        await rig.advance(28)
        await settle(rig)

        assert len(rig.kept.kept) == 5
        assert {charge.state for charge in rig.kept.kept.values()} == {ChargeState.INVOICED}


async def test_the_actor_runs_by_itself_and_survives_a_store_that_is_away(
    autojump_clock: MockClock,
) -> None:
    """A kick wakes it; nothing but losing the database ends it."""
    async with open_rig() as rig:
        await to_the_boundary(rig)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.charges.run)
            await trio.sleep(30)
            nursery.cancel_scope.cancel()

        assert only(rig).state is ChargeState.PUSHED
        assert rig.charges.last_error is None
        assert not rig.charges.is_away


async def test_a_task_that_runs_over_the_renewal_is_charged_in_the_periods_it_ran_in(
    autojump_clock: MockClock,
) -> None:
    """Ten minutes before it, five of them past the plan, four after it: 25 cents, once."""
    async with open_rig() as rig:
        await rig.create("org_1", contract=SMALL)
        rig.subscribe("org_1", rig.make_price("pro", 14_900))
        await rig.hear()
        await rig.use("org_1", 95)
        await rig.advance(31 - 10 / 1_440)
        (item,) = rig.fake.objects("subscription")[0]["items"]["data"]
        boundary_s = item["current_period_end"]

        async def report(times: int) -> None:
            """Run on, reporting every half minute."""
            for _ in range(times):
                rig.fake.clock.jump_to(rig.fake.clock.now_s + 30)
                elapsed_ms = (rig.fake.clock.now_s - started_s) * SECOND_MS
                answer = await rig.organizations.ask("org_1", Heartbeat("task_1", elapsed_ms))
                await rig.organizations.durable("org_1", answer.seq)

        started_s = rig.fake.clock.now_s
        await rig.organizations.ask("org_1", make_start("task_1"))
        await report(19)
        rig.fake.clock.jump_to(boundary_s + 5)
        while rig.fake.world.run_due():
            pass
        await rig.hear()
        await rig.work()
        assert rig.kept.kept == {}, "the task has not said yet how long it ran before the end"
        rig.fake.clock.jump_to(started_s + 10 * 60)
        await report(8)
        await rig.work()

        charge = only(rig)
        assert (charge.quantity, charge.amount_cents, charge.state) == (5, 25, ChargeState.PUSHED)
        record = rig.database.organizations["org_1"]
        used = [period.used_ms // MINUTE_MS for _, period in record.periods.values()]
        assert used == [105, 4]


async def test_overage_of_a_customer_that_was_deleted_waits_for_a_person(
    autojump_clock: MockClock,
) -> None:
    """Cancelled at once, then deleted, with a month's overage open: told, and never lost."""
    async with open_rig() as rig:
        await rig.create("org_1", contract=SMALL)
        made = rig.subscribe("org_1", rig.make_price("pro", 14_900))
        await rig.hear()
        await rig.use("org_1", 120)
        rig.call("DELETE", f"/v1/subscriptions/{made['id']}")
        rig.call("DELETE", f"/v1/customers/{made['customer']}")
        await rig.advance(32)

        assert (only(rig).state, only(rig).amount_cents) == (ChargeState.PARKED, 100)
        assert [finding.kind for _, finding in rig.database.findings.values()] == ["charge_parked"]
        assert rig.items() == []


async def test_an_invoice_of_its_own_that_was_thrown_away_is_made_again(
    autojump_clock: MockClock,
) -> None:
    """Somebody deleted the draft: its item is pending again, and still to be paid."""
    async with open_rig() as rig:
        customer = rig.call("POST", "/v1/customers", email="a@example.com")["id"]
        await rig.create("org_1", Tier.ENTERPRISE, customer_id=customer)
        await rig.use("org_1", 100)
        await pass_month(rig)
        (draft,) = rig.fake.objects("invoice")
        rig.call("DELETE", f"/v1/invoices/{draft['id']}")
        for _ in range(4):
            await rig.advance(1)

        (invoice,) = rig.fake.objects("invoice")
        assert (invoice["status"], invoice["amount_paid"]) == ("paid", 500)
        assert only(rig).state is ChargeState.INVOICED


async def test_a_key_that_another_version_of_meterd_used_is_given_up(
    autojump_clock: MockClock,
) -> None:
    """It would have described the item in other words: Stripe refuses the key, not the charge."""
    async with open_rig() as rig:
        customer = rig.call("POST", "/v1/customers", email="a@example.com")["id"]
        await rig.create("org_1", Tier.ENTERPRISE, customer_id=customer)
        await rig.use("org_1", 100)
        rig.fake.faults.fail_next(RequestFault.ERROR_AFTER, method="POST", path=ITEMS)
        await pass_month(rig)
        (item,) = rig.items()
        rig.call("DELETE", f"/v1/invoiceitems/{item['id']}")
        (charge,) = rig.kept.kept.values()
        assert charge.state is ChargeState.PUSHING
        rig.kept.kept[charge.id] = attrs.evolve(charge, quantity=99)
        await rig.work()

        assert (only(rig).state, only(rig).attempt) == (ChargeState.PUSHED, 2)
        assert len(rig.items()) == 1
