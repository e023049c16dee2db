"""How an organization follows its subscriptions: periods, plan and the payment hold.

Rule 1: periods turn in one place (`turn_period`), by the clock or because Stripe says that one
        began. Reported time that is not in rows yet goes to the period it ran in; rows stay.
Rule 2: no counter is ever zeroed. A new period has its own, which starts from zero.
Rule 3: the cycle is followed under the old terms, then the terms change: nothing is re-priced.
Rule 4: what Stripe said before says nothing new: the same objects again change nothing.
"""

from __future__ import annotations

import json

import attrs

from meterd.core.commands import (
    Decision,
    Done,
    FollowSubscription,
    ProfileChanged,
    TermsChanged,
)
from meterd.core.cycle import Cycle, period_end_ms
from meterd.core.ids import fact_id
from meterd.core.metering import Draft
from meterd.core.notification import NotificationKind
from meterd.core.organization import AuditEntry, Hold, OrganizationState, Profile
from meterd.core.period import Period, label_for, next_month_start_ms
from meterd.core.plan import Catalogue, Terms, resolve
from meterd.core.quota import grace_end_ms
from meterd.core.subscription import (
    Alert,
    Standing,
    Status,
    Subscription,
    cycle_of,
    main_item,
    standing,
)
from meterd.core.units import rfc3339


FOLLOWER = "stripe"
"""Who the audit log names for what follows from Stripe's objects."""


def follow(state: OrganizationState, command: FollowSubscription, now_ms: int) -> Decision:
    """Bring plan, periods and payment state in line with what Stripe shows."""
    catalogue = state.rules.catalogue
    found = standing(catalogue, command.subscriptions, command.invoices)
    draft = Draft(state, now_ms)
    if found.is_over:
        _follow_to_the_end(draft, catalogue, command.subscriptions)
    elif found.cycle is not None:
        _follow_cycle(draft, found.cycle)
    enact_terms(draft, _followed_terms(draft, found))
    draft.profile = _followed_profile(draft, found, command)
    _report(draft, state.profile)
    if draft.profile == state.profile:
        draft.profile = state.profile
        if draft.terms is state.terms and draft.period is state.period:
            return Decision(Done())
    else:
        draft.notices.append(ProfileChanged(profile=draft.profile))
    _notify(draft)
    draft.audit = _audit(draft, "subscription.follow", command.reason)
    return draft.conclude(Done())


def expire_payment_grace(draft: Draft) -> None:
    """Place the payment hold once a cycle invoice has been unpaid for the whole grace time."""
    grace_end = grace_end_ms(draft.state)
    if grace_end is None or grace_end > draft.now_ms:
        return
    draft.profile = with_payment_hold(draft.profile, is_placed=True)
    draft.notices.append(ProfileChanged(profile=draft.profile))
    draft.audit = _audit(draft, "subscription.suspend", "the payment grace time is over")


# --- periods ------------------------------------------------------------------------------------


def turn_period(draft: Draft, at_ms: int) -> None:
    """End the open period at an instant and open the next: time belongs to when it ran."""
    moved = draft.unbill_after(at_ms)
    draft.record_all()
    ended = attrs.evolve(draft.period, end_ms=at_ms, closed=True, terms_seq=draft.terms.seq)
    draft.closed[ended.start_ms] = ended
    taken = {period.label for period in (*draft.state.closed_periods, *draft.closed.values())}
    draft.period = Period(
        start_ms=at_ms,
        end_ms=period_end_ms(draft.profile.cycle, at_ms),
        label=label_for(at_ms, taken),
        terms_seq=draft.terms.seq,
    )
    for task in list(draft.running()):  # projected use of the new period counts from its start
        if task.burning_from_ms < at_ms:
            draft.put(attrs.evolve(task, burning_from_ms=at_ms))
    for task_id, from_ms, until_ms in moved:
        draft.bill_again(task_id, from_ms, until_ms)


def _follow_cycle(draft: Draft, cycle: Cycle) -> None:
    """Let the open period follow an item: it opens at the item's start, or where it opened."""
    draft.profile = attrs.evolve(draft.profile, cycle=cycle)
    if draft.period.start_ms < cycle.start_ms <= draft.now_ms:
        turn_period(draft, cycle.start_ms)
    _end_period(draft, period_end_ms(cycle, draft.period.start_ms))


def _end_period(draft: Draft, end_ms: int) -> None:
    """Correct the open period's end; one that has passed is turned at, and so on up to now."""
    if end_ms != draft.period.end_ms:
        draft.period = attrs.evolve(draft.period, end_ms=end_ms)
    while draft.period.end_ms <= draft.now_ms:
        turn_period(draft, draft.period.end_ms)


def _follow_to_the_end(
    draft: Draft, catalogue: Catalogue, subscriptions: tuple[Subscription, ...]
) -> None:
    """Follow the last subscription as far as it went; what opened after it is the calendar's."""
    ended = []
    for subscription in subscriptions:
        item = main_item(catalogue, subscription)
        if subscription.status is Status.CANCELED and item is not None:
            cycle = cycle_of(subscription, item)
            if cycle is not None:
                ended.append(cycle)
    last = max(ended, key=lambda cycle: (cycle.end_ms, cycle.subscription_id), default=None)
    last = last or draft.profile.cycle
    if last is not None:
        _follow_cycle(draft, last)
    draft.profile = attrs.evolve(draft.profile, cycle=None)
    if last is not None and draft.period.start_ms >= last.end_ms:
        _end_period(draft, next_month_start_ms(draft.period.start_ms))


# --- terms --------------------------------------------------------------------------------------


def enact_terms(draft: Draft, terms: Terms) -> None:
    """Let new terms begin now; what ran so far is priced under the terms it ran under."""
    if terms is draft.terms:
        return
    draft.record_all()
    draft.terms, draft.terms_changed = terms, True
    draft.period = attrs.evolve(draft.period, terms_seq=terms.seq)
    draft.rearm()
    draft.notices.append(TermsChanged(terms=terms))


def _followed_terms(draft: Draft, found: Standing) -> Terms:
    old = draft.terms
    plan = old.plan if found.tier is None else found.tier
    is_told = found.subscription_id is not None or found.is_over
    trialing = found.trialing if is_told else old.trialing
    limits = resolve(
        draft.state.rules.catalogue,
        plan,
        old.contract,
        trialing=trialing,
        overage_cap_usd=old.limits.overage_cap_usd,
    )
    if (plan, trialing, limits) == (old.plan, old.trialing, old.limits):
        return old
    about = found.subscription_id or "no subscription"
    return Terms(
        seq=old.seq + 1,
        effective_at_ms=draft.now_ms,
        plan=plan,
        contract=old.contract,
        trialing=trialing,
        limits=limits,
        reason=f"{FOLLOWER}: {about}",
    )


# --- payment and profile ------------------------------------------------------------------------


def with_payment_hold(profile: Profile, *, is_placed: bool) -> Profile:
    """Return the profile with the payment hold placed or lifted; the operator's stays."""
    others = profile.holds - {Hold.PAYMENT}
    reason = profile.hold_reason if others else None
    if not is_placed:
        return attrs.evolve(profile, holds=others, hold_reason=reason)
    return attrs.evolve(
        profile, holds=others | {Hold.PAYMENT}, hold_reason=reason or "payment failed"
    )


def _followed_profile(draft: Draft, found: Standing, command: FollowSubscription) -> Profile:
    profile = draft.profile
    customer_id = profile.stripe_customer_id or command.customer_id
    others = {each.customer_id for each in command.subscriptions if each.status.is_live}
    others -= {customer_id or ""}
    alerts = found.alerts | {f"{Alert.OTHER_CUSTOMER.value}:{other}" for other in others}
    profile = attrs.evolve(profile, stripe_customer_id=customer_id, billing_alerts=alerts)
    if found.subscription_id is None and not found.is_over:
        return profile
    since_ms = found.unpaid_since_ms
    profile = attrs.evolve(profile, past_due_since_ms=since_ms)
    if found.is_over or (found.is_good and since_ms is None):
        return with_payment_hold(profile, is_placed=False)
    if found.is_stopped or _is_grace_over(draft, since_ms):
        return with_payment_hold(profile, is_placed=True)
    return profile


def _is_grace_over(draft: Draft, since_ms: int | None) -> bool:
    grace_ms = draft.state.rules.payment_grace_ms
    return since_ms is not None and since_ms + grace_ms <= draft.now_ms


# --- what people see ----------------------------------------------------------------------------


def _report(draft: Draft, before: Profile) -> None:
    """Report what became doubtful, once: as long as it stays so nothing is repeated."""
    for alert in sorted(draft.profile.billing_alerts - before.billing_alerts):
        kind, _, about = alert.partition(":")
        draft.find(kind, json.dumps({"about": about, "source": FOLLOWER}))


def _notify(draft: Draft) -> None:
    """Tell the organization of a changed subscription, and of the first failed payment."""
    state, profile = draft.state, draft.profile
    if draft.terms is not state.terms or profile.cycle != state.profile.cycle:
        draft.notify(
            NotificationKind.SUBSCRIPTION_UPDATED,
            previous_plan=state.terms.plan.value,
            trialing=draft.terms.trialing,
            subscription_id=profile.cycle and profile.cycle.subscription_id,
        )
    since_ms = profile.past_due_since_ms
    if since_ms is not None and state.profile.past_due_since_ms is None:
        ends_ms = since_ms + state.rules.payment_grace_ms
        draft.notify(
            NotificationKind.PAYMENT_FAILED,
            past_due_since=rfc3339(since_ms),
            suspended_from=rfc3339(ends_ms),
        )


def _audit(draft: Draft, action: str, reason: str) -> AuditEntry:
    state = draft.state
    return AuditEntry(
        id=fact_id("aud", draft.now_ms, state.organization_id, draft.seq),
        at_ms=draft.now_ms,
        actor=FOLLOWER,
        action=action,
        reason=reason,
        before_json=_described(state.terms, state.profile, state.period),
        after_json=_described(draft.terms, draft.profile, draft.period),
    )


def _described(terms: Terms, profile: Profile, period: Period) -> str:
    since_ms = profile.past_due_since_ms
    fields = {
        "plan": terms.plan.value,
        "trialing": terms.trialing,
        "terms_seq": terms.seq,
        "subscription_id": profile.cycle and profile.cycle.subscription_id,
        "stripe_customer_id": profile.stripe_customer_id,
        "holds": sorted(hold.value for hold in profile.holds),
        "past_due_since": None if since_ms is None else rfc3339(since_ms),
        "billing_period": period.label,
        "period_start": rfc3339(period.start_ms),
        "period_end": rfc3339(period.end_ms),
    }
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))
