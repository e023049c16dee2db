"""What an organization decides for itself: its overage cap and when it wants to be told.

The cap is part of the terms, so it takes effect like a plan does: what ran so far is recorded
under the terms it ran under, and nothing recorded changes.
"""

from __future__ import annotations

import json

import attrs

from meterd.core.commands import ChangeSettings, Decision, Done
from meterd.core.following import enact_terms
from meterd.core.ids import fact_id
from meterd.core.metering import Draft
from meterd.core.organization import AuditEntry, OrganizationState, Profile
from meterd.core.plan import UNSET, Terms


def change_settings(state: OrganizationState, command: ChangeSettings, now_ms: int) -> Decision:
    """Let new settings take effect now; the same settings again change nothing."""
    draft = Draft(state, now_ms)
    enact_terms(draft, _with_cap(state.terms, command, now_ms))
    chosen = command.threshold_percents
    if chosen is not None and chosen != state.profile.threshold_percents:
        draft.profile = attrs.evolve(state.profile, threshold_percents=chosen)
        draft.rearm()
    if draft.terms is state.terms and draft.profile is state.profile:
        return Decision(Done())
    draft.audit = AuditEntry(
        id=fact_id("aud", now_ms, state.organization_id, draft.seq),
        at_ms=now_ms,
        actor=command.audited.actor,
        action="organization.settings",
        reason=command.audited.reason,
        before_json=_described(state.terms, state.profile),
        after_json=_described(draft.terms, draft.profile),
    )
    return draft.conclude(Done())


def _with_cap(old: Terms, command: ChangeSettings, now_ms: int) -> Terms:
    cap_usd = command.overage_cap_usd
    if cap_usd is UNSET or cap_usd == old.limits.overage_cap_usd:
        return old
    return attrs.evolve(
        old,
        seq=old.seq + 1,
        effective_at_ms=now_ms,
        limits=attrs.evolve(old.limits, overage_cap_usd=cap_usd),
        reason=command.audited.reason,
    )


def _described(terms: Terms, profile: Profile) -> str:
    cap_usd = terms.limits.overage_cap_usd
    fields = {
        "overage_cap_usd": None if cap_usd is None else str(cap_usd),
        "thresholds": list(profile.threshold_percents),
        "terms_seq": terms.seq,
    }
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))
