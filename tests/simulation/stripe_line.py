"""The way from one meterd process to Stripe, and what Stripe does with a request on a bad day.

A request that was sent arrives whatever becomes of its sender. It may get lost, be refused as too
many, fail before or after its work, lose its reply, or be worked on for longer than anybody waits:
then its key is in use until the work is done, long after the sender has given up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import stripe
import trio

from meterd.testing.fake_stripe.api import Answer, Call, api_error, rate_limit_error
from meterd.testing.fake_stripe.errors import StripeRefusedError
from tests.simulation.determinism import Chance
from tests.simulation.weather import Weather


if TYPE_CHECKING:
    from tests.simulation.stripe_account import StripeAccount


TIMEOUT_S = 20
"""So long a request waits for its reply; as in `adapters.stripe.client`."""

SLOW_S = (1.0, 100.0)
"""How long Stripe works on a slow request: up to five times as long as anybody waits for it."""


@attrs.define(eq=False)
class Reply:
    """What a request waits for; no answer means that the connection broke."""

    arrived: trio.Event = attrs.Factory(trio.Event)
    answer: Answer | None = None

    def come(self, answer: Answer | None) -> None:
        """Answer, or break the connection."""
        self.answer = answer
        self.arrived.set()


class StripeLine(stripe.HTTPClient):
    """An HTTP client of the package `stripe`, retries of the package included."""

    name = "simulated"

    def __init__(
        self, account: StripeAccount, *, chance: Chance, weather: Callable[[], Weather]
    ) -> None:
        super().__init__()
        self._account = account
        self._chance = chance
        self._weather = weather

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """Send a request and wait for its reply."""
        parts = urlsplit(url)
        call = Call(
            method=method.upper(),
            path=parts.path,
            query=parts.query,
            headers={name.lower(): value for name, value in headers.items()},
            body=(post_data or "").encode(),
        )
        reply = Reply()
        self._account.post(lambda: self._arrive(call, reply))
        with trio.move_on_after(TIMEOUT_S):
            await reply.arrived.wait()
        answer = reply.answer
        if answer is None:
            raise stripe.APIConnectionError("no reply", should_retry=True)  # type: ignore[no-untyped-call]
        return answer.body, answer.status, answer.headers

    async def sleep_async(self, secs: float) -> None:
        """Wait between two tries of the package."""
        await trio.sleep(secs)

    def _add_jitter_time(self, sleep_seconds: float) -> float:
        return sleep_seconds * self._chance.between(0.5, 1)

    def _arrive(self, call: Call, reply: Reply) -> None:
        chance, weather, account = self._chance, self._weather(), self._account
        if account.is_away:
            account.post(lambda: reply.come(None))
            return
        answer: Answer | None
        key = call.headers.get("idempotency-key") if call.method == "POST" else None
        is_push = call.method == "POST" and call.path == "/v1/invoiceitems"
        if key is not None and key in account.under_way:
            answer = account.refusal(_key_in_use())
        elif chance.happens(weather.stripe_busy):
            answer = account.refusal(rate_limit_error())
        elif chance.happens(weather.push_lost if is_push else weather.stripe_lost):
            answer = None
        elif chance.happens(weather.stripe_fails):
            answer = account.refusal(api_error())
        elif chance.happens(weather.stripe_slow):
            self._work_slowly(call, key)
            return
        else:
            is_broken = chance.happens(weather.stripe_breaks)
            answer = self._shown(call, account.answer(call, breaks_after=is_broken))
        if answer is not None and chance.happens(weather.stripe_reply_lost):
            answer = None
        account.post(lambda: reply.come(answer))

    def _work_slowly(self, call: Call, key: str | None) -> None:
        """Accept a request and do its work when nobody waits for it any more, or just before."""
        account = self._account
        if key is not None:
            account.under_way.add(key)

        def work() -> None:
            if key is not None:
                account.under_way.discard(key)
            account.answer(call)

        account.post(work, after_s=self._chance.between(*SLOW_S))

    def _shown(self, call: Call, answer: Answer) -> Answer:
        """Return what a list shows: what was created just now may be missing from it."""
        lag_s = self._weather().stripe_list_lag_s
        is_list = call.method == "GET" and call.path == "/v1/invoiceitems"
        if not is_list or answer.status != 200 or not lag_s:
            return answer
        page = json.loads(answer.body)
        newest_s = self._account.now_s - lag_s
        page["data"] = [each for each in page["data"] if each["date"] <= newest_s]
        return attrs.evolve(answer, body=json.dumps(page).encode())


def _key_in_use() -> StripeRefusedError:
    return StripeRefusedError(
        "There is currently another in-progress request using this idempotency key.",
        status=409,
        kind="idempotency_error",
        code="idempotency_key_in_use",
    )
