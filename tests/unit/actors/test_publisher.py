# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual
"""The publisher on the store in memory, in virtual time: signed, tried again, given up."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import attrs
import trio
from standardwebhooks import Webhook
from trio.testing import MockClock

from meterd.actors.publisher import RETRY_DELAYS_MS, Publisher, PublisherPolicy, new_secret, signed
from meterd.adapters.memory.store import Database
from meterd.adapters.memory.webhooks import MemoryWebhooks
from meterd.core.notification import Notification, NotificationKind
from meterd.core.units import DAY_MS, HOUR_MS, SECOND_MS
from meterd.ports.webhooks import (
    DELIVERED,
    FAILED,
    PENDING,
    Delivery,
    DueDelivery,
    WebhookEndpoint,
    WebhookRefusedError,
)
from tests.served import TrioClock, halves


SECRET = new_secret(lambda count: bytes(range(count)))


@attrs.define
class Endpoints:
    """Customers' servers: what each answers, and what each got."""

    answers: dict[str, int | float | None] = attrs.Factory(dict)
    """A status; None: cannot be reached; a float: seconds before it answers 200."""
    got: list[tuple[str, int, Mapping[str, str], bytes]] = attrs.Factory(list)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        self.got.append((url, round(trio.current_time()), headers, body))
        answer = self.answers.get(url, 200)
        if answer is None:
            raise WebhookRefusedError("the host cannot be reached")
        if isinstance(answer, float):
            await trio.sleep(answer)
            return 200
        await trio.lowlevel.checkpoint()
        return answer

    def times(self, url: str) -> list[int]:
        return [at_s for asked, at_s, _, _ in self.got if asked == url]


@attrs.define
class World:
    database: Database
    endpoints: Endpoints
    publisher: Publisher
    clock: TrioClock

    async def add(self, number: int) -> None:
        endpoint = WebhookEndpoint(
            id=f"whk_{number}",
            organization_id="org_1",
            url=f"https://{number}.example",
            secret=SECRET,
            created_at_ms=number,
            created_by="key_1",
        )
        assert await MemoryWebhooks(self.database).add_endpoint(endpoint)

    def tell(self, *numbers: int) -> None:
        at_ms = self.clock.now_ms()
        kind = NotificationKind.LIMIT_REACHED
        told = [
            Notification(id=f"evt_{n}", at_ms=at_ms + n, kind=kind, data_json='{"n":1}', seq=1)
            for n in numbers
        ]
        self.database.webhooks.keep("org_1", told)

    def deliveries(self, number: int) -> list[Delivery]:
        found = self.database.webhooks.deliveries.values()
        return [each for each in found if each.endpoint_id == f"whk_{number}"]


@asynccontextmanager
async def publishing(poll_ms: int = 1_000) -> AsyncIterator[World]:
    """Run a publisher with two endpoints of org_1; tests of days look seldom."""
    database, endpoints, clock = Database(), Endpoints(), TrioClock()
    policy = PublisherPolicy(poll_ms=poll_ms)
    store = MemoryWebhooks(database)
    publisher = Publisher(store, endpoints, clock=clock, jitter=halves(), policy=policy)
    world = World(database, endpoints, publisher, clock)
    await world.add(1)
    await world.add(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publisher.run)
        yield world
        nursery.cancel_scope.cancel()


async def test_a_notification_is_delivered_signed_to_every_endpoint(
    autojump_clock: MockClock,
) -> None:
    """Within a second, once, with the headers of Standard Webhooks."""
    async with publishing() as world:
        world.tell(1)
        await trio.sleep(60)
        assert sorted(url for url, *_ in world.endpoints.got) == [
            "https://1.example",
            "https://2.example",
        ]
        _, at_s, headers, body = min(world.endpoints.got, key=lambda got: got[0])
        assert at_s <= 1
        content = json.loads(body)
        assert content["type"] == "quota.limit_reached"
        assert content["data"] == {"n": 1}
        assert content["timestamp"].startswith("2026-02-12T12:00:00")
        assert headers["webhook-id"] == "evt_1"
        sent_at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
        expected = Webhook(SECRET).sign("evt_1", sent_at, body.decode())
        assert headers["webhook-signature"] == expected
        assert {each.state for each in world.deliveries(1)} == {DELIVERED}


async def test_a_signature_is_what_the_specification_says() -> None:
    """Checked by hand: HMAC-SHA256 over id.timestamp.body under the decoded secret."""
    endpoint = WebhookEndpoint(
        id="whk_1",
        organization_id="org_1",
        url="https://example.com",
        secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        created_at_ms=0,
        created_by="key_1",
    )
    delivery = Delivery(
        id="dlv_1",
        endpoint_id="whk_1",
        notification_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        kind="test",
        created_at_ms=0,
        next_attempt_at_ms=0,
    )
    due = DueDelivery(delivery=delivery, endpoint=endpoint, at_ms=0, data_json="{}")
    headers, body = signed(due, 1_614_265_330_999)
    assert headers["webhook-timestamp"] == "1614265330"
    import base64  # noqa: PLC0415 - a second, independent computation
    import hashlib  # noqa: PLC0415
    import hmac  # noqa: PLC0415

    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    text = b"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330." + body
    digest = base64.b64encode(hmac.digest(key, text, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"


async def test_a_failing_endpoint_is_tried_for_three_days_and_then_given_up(
    autojump_clock: MockClock,
) -> None:
    """With growing pauses, always the same id; the other one has had it long ago."""
    async with publishing() as world:
        world.endpoints.answers["https://1.example"] = 500
        world.tell(1)
        await trio.sleep(5 * DAY_MS / SECOND_MS)
        times = world.endpoints.times("https://1.example")
        assert len(times) == len(RETRY_DELAYS_MS) + 1
        assert 3 * DAY_MS < (times[-1] - times[0]) * SECOND_MS < 4 * DAY_MS
        assert {headers["webhook-id"] for _, _, headers, _ in world.endpoints.got} == {"evt_1"}
        assert len(world.endpoints.times("https://2.example")) == 1
        [delivery] = world.deliveries(1)
        assert (delivery.state, delivery.status, delivery.error) == (FAILED, 500, "answered 500")


async def test_an_endpoint_that_comes_back_gets_what_it_missed(autojump_clock: MockClock) -> None:
    """An outage of an hour costs a customer no notification."""
    async with publishing() as world:
        world.endpoints.answers["https://1.example"] = None
        world.tell(1, 2, 3)
        await trio.sleep(HOUR_MS / SECOND_MS)
        assert {each.state for each in world.deliveries(1)} == {PENDING}
        assert world.deliveries(1)[0].error == "the host cannot be reached"
        world.endpoints.answers["https://1.example"] = 204
        await trio.sleep(3 * HOUR_MS / SECOND_MS)
        assert {each.state for each in world.deliveries(1)} == {DELIVERED}


async def test_a_slow_endpoint_delays_no_other_and_is_asked_one_at_a_time(
    autojump_clock: MockClock,
) -> None:
    """Ten notifications for both: the quick one has them at once."""
    async with publishing() as world:
        world.endpoints.answers["https://1.example"] = 4.0
        world.tell(*range(10))
        await trio.sleep(3)
        assert len(world.endpoints.times("https://2.example")) == 10
        assert len(world.endpoints.times("https://1.example")) == 1
        await trio.sleep(60)
        assert {each.state for each in world.deliveries(1)} == {DELIVERED}


async def test_gone_means_gone(autojump_clock: MockClock) -> None:
    """410 disables the endpoint and says so; what waits for it is not sent."""
    async with publishing() as world:
        world.endpoints.answers["https://1.example"] = 410
        world.tell(1, 2)
        await trio.sleep(DAY_MS / SECOND_MS)
        assert len(world.endpoints.times("https://1.example")) == 1
        endpoint = world.database.webhooks.endpoints["whk_1"]
        assert endpoint.disabled_reason == "the endpoint answered 410 Gone"
