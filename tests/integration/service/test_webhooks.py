"""Outgoing webhooks on a real service: from a crossed line to a signed request, and its log."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from standardwebhooks import Webhook

from tests.integration.service.harness import Service, running_meterd


@attrs.define
class Received:
    """One request a customer's server got."""

    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        """The JSON in the body."""
        return json.loads(self.body)


@attrs.define
class Customer:
    """A customer's server: keeps what it gets and answers with `status`."""

    url: str = ""
    status: int = 200
    received: list[Received] = attrs.Factory(list)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Take one request and close."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive_some(65_536)
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")[1:]
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        while len(body) < int(headers["content-length"]):
            body += await stream.receive_some(65_536)
        self.received.append(Received(headers, body))
        answer = f"HTTP/1.1 {self.status} Whatever\r\nContent-Length: 0\r\n\r\n"
        await stream.send_all(answer.encode())
        await stream.aclose()

    async def has(self, kind: str, count: int = 1) -> list[Received]:
        """Wait until so many of a kind have come."""
        with trio.fail_after(15):
            while True:
                found = [each for each in self.received if each.content["type"] == kind]
                if len(found) >= count:
                    return found
                await trio.sleep(0.05)


@asynccontextmanager
async def customer() -> AsyncIterator[Customer]:
    """Run a customer's server."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server = Customer(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/hook")
        nursery.start_soon(trio.serve_listeners, server.serve, listeners)
        yield server
        nursery.cancel_scope.cancel()


async def crossing(service: Service, organization_id: str) -> None:
    """Use 92 of 100 minutes in one go."""
    assert (await service.adjust(organization_id, 92 * 60_000)).status_code == 201


async def test_a_crossed_line_reaches_the_customer_signed(database_url: str) -> None:
    """Each threshold once, under one id; the log says so; the button and resending work."""
    settings = {"METERD_DATABASE_URL": database_url, "METERD_WEBHOOKS_PRIVATE_ALLOWED": "true"}
    async with customer() as server, running_meterd(settings=settings) as service:
        key = await service.organization("org_1", "starter", contract={"agent_minutes": 100})
        other = await service.organization("org_2", "starter")
        async with service.client(key) as http, service.client(other) as stranger:
            made = await http.post("/v1/webhook-endpoints", json={"url": server.url})
            assert made.status_code == 201, made.text
            endpoint = made.json()
            path = f"/v1/webhook-endpoints/{endpoint['id']}"
            await crossing(service, "org_1")
            told = await server.has("usage.threshold_reached", 4)

            assert sorted(each.content["data"]["percent"] for each in told) == [50, 75, 80, 90]
            for each in told:
                Webhook(endpoint["secret"]).verify(each.body, each.headers)
            assert len({each.headers["webhook-id"] for each in told}) == 4

            log = (await http.get(f"{path}/deliveries?state=delivered&limit=2")).json()
            assert len(log["data"]) == 2
            assert log["next_cursor"]
            again = await http.post(f"{path}/deliveries/{log['data'][0]['id']}/resend")
            assert again.status_code == 202, again.text
            five = await server.has("usage.threshold_reached", 5)
            assert five[-1].headers["webhook-id"] == log["data"][0]["webhook_id"]

            assert (await http.post(f"{path}/test")).status_code == 202
            await server.has("webhook.test")
            one = {"limit": 1}
            listed = (await http.get("/v1/webhook-endpoints", params=one)).json()["data"]
            assert [("secret" in each, each["id"]) for each in listed] == [(False, endpoint["id"])]

            for method, route in (
                ("GET", path),
                ("PATCH", path),
                ("DELETE", path),
                ("POST", f"{path}/test"),
                ("GET", f"{path}/deliveries"),
                ("POST", f"{path}/deliveries/{log['data'][0]['id']}/resend"),
            ):
                body = {"disabled": True} if method == "PATCH" else None
                refused = await stranger.request(method, route, json=body)
                assert refused.status_code == 404, (method, route, refused.text)
            assert (await http.delete(path)).status_code == 204
            assert (await http.get(path)).status_code == 404


async def test_what_was_not_delivered_before_a_crash_is_delivered_after_it(
    database_url: str,
) -> None:
    """The outbox is in the database: a kill between the fact and the request loses nothing."""
    settings = {"METERD_DATABASE_URL": database_url, "METERD_WEBHOOKS_PRIVATE_ALLOWED": "true"}
    async with customer() as server:
        server.status = 500
        async with running_meterd(settings=settings) as service:
            key = await service.organization("org_1", "starter", contract={"agent_minutes": 100})
            async with service.client(key) as http:
                body = {"url": server.url, "kinds": ["quota.grace_started"]}
                assert (await http.post("/v1/webhook-endpoints", json=body)).status_code == 201
            assert (await service.adjust("org_1", 101 * 60_000)).status_code == 201
            first = await server.has("quota.grace_started")
            service.kill()
        server.status = 200
        async with running_meterd(settings=settings):
            both = await server.has("quota.grace_started", 2)
            assert {each.headers["webhook-id"] for each in both} == {first[0].headers["webhook-id"]}


async def test_private_addresses_are_refused_unless_a_setting_allows_them(
    database_url: str,
) -> None:
    """A plain service takes https only, and reaches nothing inside."""
    async with running_meterd(settings={"METERD_DATABASE_URL": database_url}) as service:
        key = await service.organization("org_1", "starter")
        async with service.client(key) as http:
            plain = await http.post("/v1/webhook-endpoints", json={"url": "http://example.com/"})
            assert (plain.status_code, plain.json()["errors"][0]["pointer"]) == (422, "/url")
            made = await http.post("/v1/webhook-endpoints", json={"url": "https://127.0.0.1:1/"})
            assert made.status_code == 201
            path = f"/v1/webhook-endpoints/{made.json()['id']}"
            await http.post(f"{path}/test")
            with trio.fail_after(10):
                while True:
                    [delivery] = (await http.get(f"{path}/deliveries")).json()["data"]
                    if delivery["attempts"]:
                        break
                    await trio.sleep(0.05)
            assert delivery["error"] == "the host has an address that is not public"
