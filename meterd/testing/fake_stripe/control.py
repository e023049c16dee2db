"""`/_fake/…`: the switches over HTTP, in JSON, for tests and demos in other processes.

GET  /_fake/state                  objects by kind, clock, deliveries, request log
POST /_fake/clock                  {"advance_seconds": n | "to": s, "pause_ms"?: real ms per step}
POST /_fake/payments               {"customer", "outcome": succeed|fail|none, "script"?: [...]}
POST /_fake/faults                 any field of Faults; "request_rates": {fault: rate};
                                   "fail_next": {"faults": [...], "method"?, "path"?}; "clear": true
POST /_fake/settings               any field of Settings
POST /_fake/endpoints              {"url", "secret"?, "events"?} -> {"id", "secret"}
POST /_fake/endpoints/{id}/roll    {"keeps_old_s"?} -> {"secret"}
POST /_fake/events/{id}/resend     {"copies"?}
POST /_fake/release                {"shuffle_seed"?, "copies"?}: held deliveries go out
POST /_fake/checkout/{id}/pay      the visitor pays
POST /_fake/customers/{id}/discount  {"coupon"}: as in the Dashboard
POST /_fake/portal/{id}/change     {"price"}       POST /_fake/portal/{id}/cancel
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

import attrs
import trio

from meterd.testing.fake_stripe import discounts, hooks, hosted
from meterd.testing.fake_stripe.api import Answer, Call, error_body
from meterd.testing.fake_stripe.errors import Json, StripeRefusedError, bad_param
from meterd.testing.fake_stripe.faults import Faults, RequestFault
from meterd.testing.fake_stripe.world import Settings, World


if TYPE_CHECKING:
    from meterd.testing.fake_stripe.handle import FakeStripe


OUTCOMES = frozenset({"succeed", "fail", "none"})


def set_payments(world: World, customer_id: str, outcome: str, script: list[str]) -> None:
    """Decide what a customer's payments do: the script first, then the outcome."""
    if {outcome, *script} - OUTCOMES:
        raise bad_param(f"Outcomes are {sorted(OUTCOMES)}.", "outcome")
    world.get("customer", customer_id, param="customer")
    world.hidden.payments[customer_id] = outcome
    world.hidden.payment_script[customer_id] = deque(script)


async def answer(fake: FakeStripe, call: Call) -> Answer:
    """Answer one control request."""
    try:
        given = json.loads(call.body) if call.body else {}
        if not isinstance(given, dict):
            raise bad_param("The body is a JSON object.", "body")
        status, body = HTTPStatus.OK, json.dumps(await _act(fake, call, given)).encode()
    except StripeRefusedError as refused:
        status, body = HTTPStatus(refused.status), error_body(refused)
    except (ValueError, TypeError, KeyError) as error:
        unusable = bad_param(f"{type(error).__name__}: {error}", "body")
        status, body = HTTPStatus.BAD_REQUEST, error_body(unusable)
    return Answer(status=status, body=body, headers={"content-type": "application/json"})


async def _act(fake: FakeStripe, call: Call, given: Json) -> Json:
    steps = call.path.removeprefix("/_fake/").split("/")
    if call.method == "GET" and steps == ["state"]:
        return state(fake)
    if call.method == "POST":
        match steps:
            case [name] if name in ACTIONS:
                return await ACTIONS[name](fake, given)
            case ["endpoints", endpoint_id, "roll"]:
                keeps_s = given.get("keeps_old_s", 86_400)
                return {"secret": hooks.roll_secret(fake.world, endpoint_id, keeps_old_s=keeps_s)}
            case ["events", event_id, "resend"]:
                await fake.resend(event_id, copies=given.get("copies", 1))
                return {"now": fake.clock.now_s}
            case ["checkout", session_id, "pay"]:
                return hosted.complete_session(fake.world, session_id)
            case ["customers", customer_id, "discount"]:
                return discounts.give_customer(fake.world, customer_id, given["coupon"])
            case ["portal", session_id, "change"]:
                return hosted.change_plan(fake.world, session_id, given["price"])
            case ["portal", session_id, "cancel"]:
                return hosted.cancel_in_portal(fake.world, session_id)
            case _:
                pass
    raise StripeRefusedError(f"No such control: {call.path}", status=HTTPStatus.NOT_FOUND)


def state(fake: FakeStripe) -> Json:
    """Everything there is to see, as JSON."""
    return {
        "now": fake.clock.now_s,
        "objects": {kind: list(table.values()) for kind, table in fake.world.tables.items()},
        "lines": fake.world.hidden.lines,
        "deliveries": [delivery.facts() for delivery in fake.dispatcher.deliveries],
        "requests": json.loads(
            json.dumps([attrs.asdict(each) for each in fake.requests], default=str)
        ),
        "next_due": fake.world.next_due_s(),
    }


async def _clock(fake: FakeStripe, given: Json) -> Json:
    pause_ms = given.get("pause_ms", 0)

    async def between() -> None:
        await trio.sleep(pause_ms / 1_000)

    to_s = given.get("to", fake.clock.now_s + given.get("advance_seconds", 0))
    await fake.advance_to(int(to_s), between=between if pause_ms else None)
    return {"now": fake.clock.now_s, "next_due": fake.world.next_due_s()}


async def _payments(fake: FakeStripe, given: Json) -> Json:
    outcome = given.get("outcome", "succeed")
    set_payments(fake.world, given["customer"], outcome, given.get("script", []))
    return {"customer": given["customer"], "outcome": outcome}


async def _faults(fake: FakeStripe, given: Json) -> Json:
    faults = fake.faults
    if given.pop("clear", False):
        faults.clear()
    planned = given.pop("fail_next", None)
    if planned is not None:
        faults.fail_next(
            *(RequestFault(name) for name in planned["faults"]),
            method=planned.get("method"),
            path=planned.get("path", ""),
        )
    rates = given.pop("request_rates", None)
    if rates is not None:
        faults.request_rates = {RequestFault(name): float(rate) for name, rate in rates.items()}
    _set_fields(faults, given, attrs.fields_dict(Faults))
    fake.dispatcher.wake()
    return {"away": faults.away}


async def _settings(fake: FakeStripe, given: Json) -> Json:
    _set_fields(fake.settings, given, attrs.fields_dict(Settings))
    return attrs.asdict(fake.settings)


def _set_fields(target: object, given: Json, known: Json) -> None:
    for name, value in given.items():
        if name not in known or name.startswith("_"):
            raise bad_param(f"No such switch: {name}", name)
        setattr(target, name, value)


async def _endpoints(fake: FakeStripe, given: Json) -> Json:
    request = {"url": given["url"], "enabled_events": given.get("events", ["*"])}
    made = hooks.create_endpoint(fake.world, request, secret=given.get("secret"))
    return {"id": made["id"], "secret": made["secret"]}


async def _release(fake: FakeStripe, given: Json) -> Json:
    await fake.release(shuffle_seed=given.get("shuffle_seed"), copies=given.get("copies", 1))
    return {"now": fake.clock.now_s}


ACTIONS: dict[str, Callable[[FakeStripe, Json], Awaitable[Json]]] = {
    "clock": _clock,
    "payments": _payments,
    "faults": _faults,
    "settings": _settings,
    "endpoints": _endpoints,
    "release": _release,
}
