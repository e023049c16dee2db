"""`WebhookStore` on both: a notification reaches each endpoint that wants it, once, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest

from meterd.adapters.memory.store import MemoryStore
from meterd.adapters.memory.webhooks import MemoryWebhooks
from meterd.adapters.postgres.trail import PostgresTrail
from meterd.adapters.postgres.webhooks import PostgresWebhooks
from meterd.adapters.sealing import Sealer
from meterd.core.notification import Notification, NotificationKind
from meterd.ports.webhooks import (
    DELIVERED,
    ENDPOINTS_MAX,
    FAILED,
    PENDING,
    TEST_KIND,
    Asked,
    DueDelivery,
    EndpointChange,
    WebhookEndpoint,
    WebhookStore,
)
from tests.contract.conftest import Store
from tests.make import NOW_MS, make_batch, make_new


def asked(number: int = 1) -> Asked:
    """Return who asked for the n-th change."""
    return Asked(audit_id=f"aud_{number}", actor="key_1", at_ms=NOW_MS + number)


@pytest.fixture
async def webhooks(store: Store) -> WebhookStore:
    """Give the webhooks of a store with two organizations."""
    await store.create_organization(make_new())
    await store.create_organization(make_new("org_2"))
    if isinstance(store, MemoryStore):
        return MemoryWebhooks(store.database)
    return PostgresWebhooks(store.pools, Sealer.of(b"k" * 32))


def endpoint(number: int = 1, organization_id: str = "org_1", **fields: Any) -> WebhookEndpoint:
    """Return an endpoint that wants everything."""
    plain = WebhookEndpoint(
        id=f"whk_{number}",
        organization_id=organization_id,
        url=f"https://example.com/{number}",
        secret="whsec_AAAA",
        created_at_ms=NOW_MS + number,
        created_by="key_1",
    )
    return attrs.evolve(plain, **fields)


def told(
    number: int, kind: NotificationKind = NotificationKind.TASK_LOST, at_ms: int = NOW_MS
) -> Notification:
    """Return a notification."""
    return Notification(id=f"evt_{number}", at_ms=at_ms, kind=kind, data_json='{"n":1}', seq=1)


async def audits(store: Store) -> Sequence[Any]:
    """Return what the audit log says of endpoints, oldest first."""
    if isinstance(store, MemoryStore):
        entries: list[Any] = [entry for _, entry in store.database.audits.values()]
    else:
        trail = PostgresTrail(store.pools)
        entries = list(await trail.audit(organization_id="org_1", action=None, after=None, limit=9))
    found = [each for each in entries if each.action.startswith("webhook_endpoint.")]
    return sorted(found, key=lambda each: (each.at_ms, each.id))


async def due(webhooks: WebhookStore, now_ms: int = NOW_MS, *busy: str) -> Sequence[DueDelivery]:
    """Return what is due, in order of endpoints."""
    found = await webhooks.due_deliveries(now_ms=now_ms, busy=busy, limit=10)
    return sorted(found, key=lambda each: each.endpoint.id)


async def test_endpoints_are_kept_as_given_and_bounded(webhooks: WebhookStore) -> None:
    """A customer's mistake in a loop must not make a thousand of them."""
    first = endpoint(kinds=("task.lost",), description="ü")
    assert await webhooks.add_endpoint(first)
    assert await webhooks.endpoints("org_1") == [first]
    assert await webhooks.endpoints("org_2") == []
    for number in range(2, ENDPOINTS_MAX + 1):
        assert await webhooks.add_endpoint(endpoint(number))
    assert not await webhooks.add_endpoint(endpoint(99))
    assert await webhooks.add_endpoint(endpoint(99, "org_2"))


async def test_a_flush_makes_deliveries_for_who_wants_them(
    store: Store, webhooks: WebhookStore
) -> None:
    """By organization and kind, not for a disabled one, and once however often it is flushed."""
    lost = NotificationKind.TASK_LOST.value
    await webhooks.add_endpoint(endpoint(1))
    await webhooks.add_endpoint(endpoint(2, kinds=(lost,)))
    await webhooks.add_endpoint(endpoint(3, kinds=("quota.recovered",)))
    await webhooks.add_endpoint(endpoint(4))
    await webhooks.add_endpoint(endpoint(5, "org_2"))
    await webhooks.change_endpoint("org_1", "whk_4", EndpointChange(is_disabled=True), asked())
    batch = make_batch(notifications=(told(1),))
    await store.flush([batch])
    await store.flush([batch])

    found = await due(webhooks)
    assert [each.endpoint.id for each in found] == ["whk_1", "whk_2"]
    assert [each.delivery.notification_id for each in found] == ["evt_1"] * 2
    assert {(each.at_ms, each.delivery.kind, each.delivery.state) for each in found} == {
        (NOW_MS, lost, PENDING)
    }
    assert {each.data_json.replace(" ", "") for each in found} == {'{"n":1}'}
    assert len(await webhooks.deliveries("whk_1", state=None, after=None, limit=10)) == 1


async def test_the_oldest_due_delivery_of_each_free_endpoint_comes(
    store: Store, webhooks: WebhookStore
) -> None:
    """One endpoint's backlog is worked off in order and hides nobody else's news."""
    await webhooks.add_endpoint(endpoint(1))
    await webhooks.add_endpoint(endpoint(2))
    later = told(2, at_ms=NOW_MS + 5)
    await store.flush([make_batch(notifications=(told(1), later))])

    assert await due(webhooks, NOW_MS - 1) == []
    assert [each.delivery.notification_id for each in await due(webhooks)] == ["evt_1", "evt_1"]
    assert [each.endpoint.id for each in await due(webhooks, NOW_MS, "whk_1")] == ["whk_2"]
    first = (await due(webhooks))[0].delivery
    await webhooks.settle_delivery(
        attrs.evolve(
            first,
            state=DELIVERED,
            attempts=1,
            attempted_at_ms=NOW_MS + 1,
            status=200,
            duration_ms=12,
        )
    )
    assert (await due(webhooks, NOW_MS + 5))[0].delivery.notification_id == "evt_2"


async def test_a_delivery_is_listed_as_settled_and_can_be_sent_again(
    store: Store, webhooks: WebhookStore
) -> None:
    """The log says what the last attempt was; sending again starts over under the same id."""
    await webhooks.add_endpoint(endpoint())
    await store.flush([make_batch(notifications=tuple(told(n) for n in range(3)))])
    listed = await webhooks.deliveries("whk_1", state=None, after=None, limit=2)
    cursor = (listed[-1].created_at_ms, listed[-1].id)
    rest = await webhooks.deliveries("whk_1", state=None, after=cursor, limit=2)
    assert len({each.id for each in (*listed, *rest)}) == 3

    failed = attrs.evolve(
        listed[0],
        state=FAILED,
        attempts=9,
        next_attempt_at_ms=NOW_MS + 3,
        attempted_at_ms=NOW_MS + 2,
        error="refused",
    )
    await webhooks.settle_delivery(failed)
    assert await webhooks.deliveries("whk_1", state=FAILED, after=None, limit=9) == [failed]
    again = await webhooks.resend("whk_1", failed.id, at_ms=NOW_MS + 9)
    assert again == attrs.evolve(failed, state=PENDING, attempts=0, next_attempt_at_ms=NOW_MS + 9)
    assert await webhooks.resend("whk_other", failed.id, at_ms=NOW_MS) is None


async def test_a_test_goes_to_one_endpoint_only(webhooks: WebhookStore) -> None:
    """Whatever kinds it has chosen."""
    chosen = endpoint(1, kinds=("task.lost",))
    await webhooks.add_endpoint(chosen)
    await webhooks.add_endpoint(endpoint(2))
    made = await webhooks.add_test(chosen, "evt_t", at_ms=NOW_MS)

    [found] = await due(webhooks)
    assert (found.delivery, found.endpoint) == (made, chosen)
    assert made.kind == TEST_KIND


async def test_a_change_touches_only_what_is_given_and_only_the_owners(
    webhooks: WebhookStore,
) -> None:
    """Another tenant's endpoint is like none."""
    await webhooks.add_endpoint(endpoint())
    change = EndpointChange(kinds=("task.lost",))
    assert await webhooks.change_endpoint("org_2", "whk_1", change, asked()) is None
    changed = await webhooks.change_endpoint("org_1", "whk_1", change, asked())
    assert changed == endpoint(kinds=("task.lost",))
    off = await webhooks.change_endpoint(
        "org_1", "whk_1", EndpointChange(is_disabled=True), asked(2)
    )
    assert off is not None
    assert off.disabled_at_ms == NOW_MS + 2
    back = EndpointChange(is_disabled=False, url="https://example.com/x")
    on = await webhooks.change_endpoint("org_1", "whk_1", back, asked(3))
    assert on == endpoint(kinds=("task.lost",), url="https://example.com/x")
    assert not await webhooks.remove_endpoint("org_2", "whk_1", asked(4))
    assert await webhooks.remove_endpoint("org_1", "whk_1", asked(4))
    assert await webhooks.endpoints("org_1") == []


async def test_an_endpoint_that_is_gone_gets_nothing_more(
    store: Store, webhooks: WebhookStore
) -> None:
    """410 disables it with the reason; settling after a removal changes nothing."""
    await webhooks.add_endpoint(endpoint())
    await store.flush([make_batch(notifications=(told(1), told(2)))])
    [first] = await due(webhooks)
    gone = attrs.evolve(first.delivery, state=FAILED, attempted_at_ms=NOW_MS + 4, status=410)
    await webhooks.settle_delivery(gone, disable="gone")
    assert await due(webhooks) == []
    [kept] = await webhooks.endpoints("org_1")
    assert (kept.disabled_at_ms, kept.disabled_reason) == (NOW_MS + 4, "gone")
    await webhooks.remove_endpoint("org_1", "whk_1", asked(4))
    await webhooks.settle_delivery(gone)


async def test_old_notifications_are_forgotten_unless_somebody_waits(
    store: Store, webhooks: WebhookStore
) -> None:
    """What is still to be delivered stays, however old it is."""
    await webhooks.add_endpoint(endpoint(kinds=("quota.recovered",)))
    recovered = NotificationKind.RECOVERED
    await store.flush(
        [make_batch(notifications=(told(1), told(2, recovered), told(3, at_ms=NOW_MS + 9)))]
    )
    assert await webhooks.forget_notifications(before_ms=NOW_MS + 9) == 1
    [kept] = await due(webhooks)
    await webhooks.settle_delivery(attrs.evolve(kept.delivery, state=DELIVERED))
    assert await webhooks.forget_notifications(before_ms=NOW_MS + 9) == 1


async def test_an_endpoint_made_again_is_the_first_and_takes_no_second_place(
    webhooks: WebhookStore,
) -> None:
    """A request that is repeated after a crash finds what it had made, its secret included."""
    first = endpoint()
    for number in range(2, ENDPOINTS_MAX + 1):
        await webhooks.add_endpoint(endpoint(number))

    assert await webhooks.add_endpoint(first) == first
    assert await webhooks.add_endpoint(endpoint(secret="whsec_BBBB", url="https://x.y/")) == first
    assert len(await webhooks.endpoints("org_1")) == ENDPOINTS_MAX


async def test_every_change_of_an_endpoint_is_in_the_audit_log_and_no_secret_is(
    store: Store, webhooks: WebhookStore
) -> None:
    """Who pointed the organization's alerts elsewhere, when, and from where; told once each."""
    await webhooks.add_endpoint(endpoint())
    await webhooks.add_endpoint(endpoint())
    change = EndpointChange(url="https://elsewhere.example/")
    await webhooks.change_endpoint("org_1", "whk_1", change, asked(2))
    await webhooks.change_endpoint("org_2", "whk_1", change, asked(3))
    await webhooks.remove_endpoint("org_1", "whk_1", asked(3))
    await webhooks.remove_endpoint("org_1", "whk_1", asked(4))

    told = await audits(store)

    assert [(each.action, each.actor) for each in told] == [
        ("webhook_endpoint.create", "key_1"),
        ("webhook_endpoint.change", "key_1"),
        ("webhook_endpoint.delete", "key_1"),
    ]
    assert "https://example.com/1" in told[1].before_json
    assert "https://elsewhere.example/" in told[1].after_json
    assert not any("whsec_" in each.before_json + each.after_json for each in told)
