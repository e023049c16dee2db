"""Which future moments of a subscription need looking at."""

from __future__ import annotations

from meterd.testing.fake_stripe import items, standing
from meterd.testing.fake_stripe.clock import DAY_S
from meterd.testing.fake_stripe.errors import Json
from meterd.testing.fake_stripe.world import World


TRIAL_NOTICE_S = 3 * DAY_S
"""`customer.subscription.trial_will_end` is sent this long before the end."""


def plan(world: World, subscription: Json) -> None:
    """Have every future moment of this subscription looked at; stale timers ignore themselves."""
    subscription_id = subscription["id"]
    if subscription["status"] in standing.ENDED:
        return
    _, end_s = items.period_of(subscription)
    world.schedule("period_end", subscription_id, end_s)
    if subscription["status"] == "trialing":
        notice_s = max(subscription["trial_end"] - TRIAL_NOTICE_S, world.now_s)
        world.schedule("trial_will_end", subscription_id, notice_s)
    cancel_at_s = subscription["cancel_at"]
    if cancel_at_s is not None and cancel_at_s < end_s:
        world.schedule("cancel_at", subscription_id, cancel_at_s)
    paused = subscription["pause_collection"]
    if paused is not None and paused["resumes_at"] is not None:
        world.schedule("resume_collection", subscription_id, paused["resumes_at"])
