"""What one world is like: its troubles and its settings, all drawn from the seed, zero included."""

from __future__ import annotations

import attrs

from meterd.core.units import MINUTE_MS, SECOND_MS
from tests.simulation.determinism import Chance


MONTH_END_MS = 1_772_323_200_000
"""2026-03-01T00:00:00Z: most worlds live through this midnight."""


@attrs.frozen(kw_only=True)
class Weather:
    """Probabilities are per call, frame or look; times are what their names say."""

    begins_at_ms: int
    storm_s: float
    """How long the safety phase lasts."""
    organizations: int
    clients: int
    # The store.
    store_latency_s: float
    refused: float
    """The call fails and did nothing."""
    lost_reply: float
    """The call fails and had taken effect."""
    stalled: float
    """The call hangs for longer than anybody waits, then fails either way."""
    poisoned: float
    """Of tasks: whose facts the store rejects for a while."""
    # The network.
    frame_latency_s: float
    frame_lost: float
    frame_late: float
    frame_doubled: float
    cut_every_s: float
    """Mean life of a connection; 0: for ever."""
    # meterd.
    crash_every_s: float
    down_s: float
    takeover: float
    """Of crashes: another instance takes over while the old one still runs."""
    bug: float
    """Of starts: the actor raises."""
    wall_steps: bool
    orders_every_s: float
    events_every_s: float
    """How often a customer's system has counted something."""
    settings_every_s: float
    """How often a customer changes the cap on overage."""
    keys_every_s: float
    """How often an organization makes, rolls or revokes a key."""
    has_redis: bool
    redis_away: float
    redis_stalled: float
    redis_reply_lost: float
    redis_empty_every_s: float
    job_minute: int
    """When the hourly jobs are due: in the storm or after it."""
    reconciles: bool
    """Both sides are held against each other by a job; else only where notices were lost."""
    # Stripe.
    stripe_lost: float
    """The request never arrives."""
    stripe_reply_lost: float
    stripe_fails: float
    """500, and nothing was done."""
    stripe_breaks: float
    """500 although the work is done; the key remembers the 500."""
    stripe_busy: float
    """429."""
    stripe_slow: float
    """The work is done when nobody waits for it any more."""
    stripe_list_lag_s: int
    """How old an invoice item is before lists show it."""
    stripe_away_every_s: float
    stripe_retries: int
    """How often the package `stripe` tries by itself."""
    stripe_draft_s: int
    """How long a renewal's invoice stays a draft."""
    stripe_orders_every_s: float
    """How often a customer changes or stops paying a subscription."""
    notice_lost: float
    """Of attempts to tell of an event."""
    notices_away_every_s: float
    """How often nobody is told of anything for a while, nor later."""
    cards_fail: float
    """Of customers: who cannot pay for the renewal."""
    notice_late: float
    notice_doubled: float
    # Settings.
    task_timeout_ms: int
    record_interval_ms: int
    flush_interval_ms: int
    rows_max: int
    journal_max: int
    mailbox_max: int
    tasks_max: int
    """How many tasks an organization may run at once."""
    passivate_after_ms: int
    ack_timeout_ms: int
    payment_grace_ms: int
    charge_wait_ms: int
    push_lost: float
    """Of requests to make an invoice item: which never arrive."""

    @classmethod
    def drawn(cls, seed: int) -> Weather:
        """Return the weather of a seed."""
        chance = Chance(seed, "weather")
        is_month_end = chance.happens(0.7)
        ago_ms = chance.whole(0, 8 * MINUTE_MS) if is_month_end else 9 * 24 * 60 * MINUTE_MS
        begins_at_ms = MONTH_END_MS - ago_ms
        return cls(
            begins_at_ms=begins_at_ms,
            job_minute=(begins_at_ms // MINUTE_MS + chance.pick(1, 1, 2)) % 60,
            reconciles=chance.happens(0.15),
            storm_s=chance.between(50, 130),
            organizations=chance.pick(1, 1, 2, 3),
            clients=chance.whole(2, 6),
            store_latency_s=chance.pick(0.0, 0.005, 0.05, 0.3),
            refused=chance.sometimes(0.3),
            lost_reply=chance.sometimes(0.45),
            stalled=chance.sometimes(0.05),
            poisoned=chance.sometimes(0.1),
            frame_latency_s=chance.pick(0.001, 0.02, 0.2),
            frame_lost=chance.sometimes(0.25),
            frame_late=chance.sometimes(0.1),
            frame_doubled=chance.sometimes(0.1),
            cut_every_s=chance.pick(0.0, 30.0, 120.0),
            crash_every_s=chance.pick(0.0, 12.0, 25.0, 60.0),
            down_s=chance.pick(0.1, 2.0, 20.0),
            takeover=chance.sometimes(0.8),
            bug=chance.sometimes(0.15),
            wall_steps=chance.happens(0.4),
            orders_every_s=chance.pick(0.0, 5.0, 20.0),
            task_timeout_ms=chance.pick(6, 15, 30) * SECOND_MS,
            record_interval_ms=chance.pick(10, 45, 120) * SECOND_MS,
            flush_interval_ms=chance.pick(5, 20, 300),
            rows_max=chance.pick(2, 10, 500),
            journal_max=chance.pick(8, 60, 100_000),
            mailbox_max=chance.pick(3, 1_000),
            tasks_max=chance.pick(5, 12, 10_000),
            passivate_after_ms=chance.pick(2_000, 20_000, 600_000),
            ack_timeout_ms=chance.pick(1_000, 5_000),
            stripe_lost=chance.sometimes(0.7),
            stripe_reply_lost=chance.sometimes(0.5),
            stripe_fails=chance.sometimes(0.3),
            stripe_breaks=chance.sometimes(0.4),
            stripe_busy=chance.sometimes(0.3),
            stripe_slow=chance.sometimes(0.5),
            stripe_list_lag_s=chance.pick(0, 0, 5, 20),
            stripe_away_every_s=chance.pick(0.0, 0.0, 60.0),
            stripe_retries=chance.pick(0, 0, 2),
            stripe_draft_s=chance.pick(3, 10, 60),
            stripe_orders_every_s=chance.pick(0.0, 10.0, 40.0),
            notice_lost=chance.sometimes(0.5),
            notices_away_every_s=chance.pick(0.0, 0.0, 25.0),
            cards_fail=chance.sometimes(0.6),
            notice_late=chance.sometimes(0.7),
            notice_doubled=chance.sometimes(0.3),
            payment_grace_ms=chance.pick(5, 30) * SECOND_MS,
            events_every_s=chance.pick(0.0, 4.0, 8.0),
            settings_every_s=chance.pick(0.0, 4.0, 15.0),
            has_redis=chance.happens(0.5),
            redis_away=chance.pick(0.0, 0.3, 0.9),
            redis_stalled=chance.sometimes(0.2),
            redis_reply_lost=chance.sometimes(0.3),
            redis_empty_every_s=chance.pick(0.0, 30.0),
            keys_every_s=chance.pick(0.0, 0.0, 5.0),
            charge_wait_ms=chance.pick(1, 1, 30) * SECOND_MS,
            push_lost=chance.sometimes(1.0),
        )

    def calm(self) -> Weather:
        """Return the weather after the storm: the same place, and nothing goes wrong."""
        return attrs.evolve(
            self,
            store_latency_s=0.002,
            refused=0.0,
            lost_reply=0.0,
            stalled=0.0,
            poisoned=0.0,
            frame_latency_s=0.01,
            frame_lost=0.0,
            frame_late=0.0,
            frame_doubled=0.0,
            cut_every_s=0.0,
            crash_every_s=0.0,
            bug=0.0,
            orders_every_s=0.0,
            events_every_s=0.0,
            settings_every_s=0.0,
            wall_steps=False,
            stripe_lost=0.0,
            push_lost=0.0,
            stripe_reply_lost=0.0,
            stripe_fails=0.0,
            stripe_breaks=0.0,
            stripe_busy=0.0,
            stripe_slow=0.0,
            stripe_list_lag_s=0,
            stripe_away_every_s=0.0,
            stripe_orders_every_s=0.0,
            notice_lost=0.0,
            notices_away_every_s=0.0,
            cards_fail=0.0,
            redis_away=0.0,
            redis_stalled=0.0,
            redis_reply_lost=0.0,
            redis_empty_every_s=0.0,
            notice_late=0.0,
            notice_doubled=0.0,
        )
