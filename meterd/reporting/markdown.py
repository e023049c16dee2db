"""The report as Markdown: six sections, then what an operator should look at.

A section is always there, in the same order, so that yesterday's file and today's compare line by
line. Lists are cut at LINES_MAX; the rest is counted, and complete in the JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from meterd.core.revenue import Movement
from meterd.reporting.figures import (
    HISTORY_DAYS,
    AtRisk,
    Candidate,
    Report,
    RevenuePart,
)
from meterd.reporting.text import counted, escaped, number, signed_usd, sparkline, table, usd


T = TypeVar("T")

LINES_MAX = 20

MOVEMENT_NAMES = {
    Movement.NEW: "new",
    Movement.REACTIVATION: "reactivation",
    Movement.EXPANSION: "expansion",
    Movement.CONTRACTION: "contraction",
    Movement.CHURN: "churn",
}


CHARGE_NAMES = {
    "invoiced": "billed, on an invoice",
    "manual": "billed by other means",
    "new": "to be billed next",
    "parked": "parked",
    "pushed": "billed, on the next invoice",
    "pushing": "being billed",
    "review": "to review",
    "void": "written off",
}


def markdown(report: Report) -> str:
    """Return the report as text that ends with a newline."""
    lines = [
        f"# Daily revenue, {report.day}",
        "",
        _first_sentence(report),
        "",
        *_revenue(report),
        *_tiers(report),
        *_usage(report),
        *_overage(report),
        *_at_risk(report),
        *_candidates(report),
        *_attention(report),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _first_sentence(report: Report) -> str:
    day = "The UTC day" if report.is_whole else "The UTC day so far (it is not over)"
    activity = report.facts.activity
    ended = (
        activity.tasks_succeeded
        + activity.tasks_failed
        + activity.tasks_cancelled
        + activity.tasks_lost
    )
    return (
        f"{day}: {counted(report.customers, 'organization')}, "
        f"{counted(activity.agent_minutes, 'agent-minute')} by "
        f"{counted(activity.agents, 'agent')}, {counted(ended, 'task')} ended "
        f"({number(activity.tasks_succeeded)} succeeded, "
        f"{number(activity.tasks_failed)} failed, {number(activity.tasks_cancelled)} cancelled, "
        f"{number(activity.tasks_lost)} lost), {counted(activity.api_calls, 'API call')}."
    )


def _revenue(report: Report) -> Iterator[str]:
    yield "## 1. Monthly recurring revenue"
    yield ""
    part = report.revenue
    if part is None:
        yield "No snapshot of this day was taken, and none can be made afterwards."
        yield ""
        return
    paying = sum(line.paying for line in report.tiers)
    yield (
        f"**MRR {usd(part.mrr_usd)}** from {counted(paying, 'paying customer')} "
        f"({usd(12 * part.mrr_usd)} a year){_change(part)}"
    )
    if len(report.facts.daily_mrr_cents) > 1:
        yield ""
        bars = sparkline(report.facts.daily_mrr_cents)
        yield f"`{bars}` the last {len(report.facts.daily_mrr_cents)} days"
    yield ""
    if part.since is not None:
        rows = [[f"MRR on {part.since}", "", usd(part.before_usd)]]
        rows += [
            [name, number(moved.customers), signed_usd(moved.usd)]
            for kind, name in MOVEMENT_NAMES.items()
            for moved in (part.movements[kind],)
        ]
        rows.append([f"MRR on {report.day}", "", usd(part.mrr_usd)])
        yield from table(["movement", "customers", "USD a month"], rows, "lrr")
        yield ""
        yield from _movers(part)
    if part.contract_usd:
        contracts = "enterprise contracts without a subscription"
        yield f"{usd(part.contract_usd)} of the MRR comes from {contracts}."
        yield ""
    for currency, amount in part.other_currencies.items():
        yield f"Not in the MRR: {amount:,} {escaped(currency.upper())} a month."
        yield ""
    if part.unknown:
        yield (
            f"Uncertain: {counted(part.unknown, 'customer')} with a price or a discount of unknown "
            "value, which counts nothing."
        )
        yield ""


def _movers(part: RevenuePart) -> Iterator[str]:
    if not part.movers:
        return
    rows = [
        [
            _customer(each.name, each.organization_id),
            MOVEMENT_NAMES[each.movement],
            usd(each.before_usd),
            usd(each.after_usd),
            signed_usd(each.change_usd),
        ]
        for each in _first(part.movers)
    ]
    headings = ["who moved", "movement", "before", "after", "USD a month"]
    yield from table(headings, rows, "llrrr")
    yield from _rest(len(part.movers))


def _change(part: RevenuePart) -> str:
    if part.before_usd is None:
        return ", no earlier snapshot to compare with."
    change = part.mrr_usd - part.before_usd
    percent = f" ({change * 100 / part.before_usd:+.1f} %)" if part.before_usd else ""
    return f", {signed_usd(change)}{percent} since {part.since}."


def _tiers(report: Report) -> Iterator[str]:
    yield "## 2. Active subscriptions by tier"
    yield ""
    rows = [
        [
            line.tier.value,
            number(line.active),
            number(line.paying) if report.revenue is not None else "-",
            number(line.by_stripe),
            number(line.trialing),
            number(line.past_due),
            number(line.suspended),
            usd(line.mrr_usd) if report.revenue is not None else "-",
        ]
        for line in report.tiers
    ]
    rows.append(_all_tiers(report))
    headings = ["tier", "active", "paying", "by Stripe", "trialing", "past due", "suspended", "MRR"]
    yield from table(headings, rows, "lrrrrrrr")
    yield ""


def _all_tiers(report: Report) -> list[str]:
    lines, revenue = report.tiers, report.revenue
    return [
        "all",
        number(sum(line.active for line in lines)),
        number(sum(line.paying for line in lines)) if revenue is not None else "-",
        number(sum(line.by_stripe for line in lines)),
        number(sum(line.trialing for line in lines)),
        number(sum(line.past_due for line in lines)),
        number(sum(line.suspended for line in lines)),
        usd(None if revenue is None else revenue.mrr_usd),
    ]


def _usage(report: Report) -> Iterator[str]:
    yield "## 3. Agent-minutes per customer"
    yield ""
    if not report.usage:
        yield "No customers."
        yield ""
        return
    yield "In their current billing periods, up to the end of the day."
    yield ""
    rows = [
        [
            line.tier.value,
            number(line.customers),
            f"{line.mean:,}",
            f"{line.median:,}",
            number(line.p90),
            number(line.top),
            number(line.day_minutes),
            f"`{sparkline(line.daily_minutes)}`",
        ]
        for line in report.usage
    ]
    headings = [
        "tier",
        "customers",
        "mean",
        "median",
        "p90",
        "most",
        "this day, all",
        f"{HISTORY_DAYS} days, all",
    ]
    yield from table(headings, rows, "lrrrrrrl")
    yield ""


def _overage(report: Report) -> Iterator[str]:
    part = report.overage
    yield "## 4. Overage revenue"
    yield ""
    rows = [
        ["on this day", "", usd(report.facts.activity.overage_usd)],
        ["open periods so far", counted(part.open_customers, "customer"), usd(part.open_usd)],
        [
            f"periods ended in {part.month}",
            counted(part.billed.periods, "period"),
            usd(part.billed.usd),
        ],
    ]
    rows += [
        [f"of them {CHARGE_NAMES.get(state, state)}", "", usd(amount)]
        for state, amount in part.billed.charges.items()
    ]
    yield from table(["overage", "from", "USD"], rows, "lrr")
    yield ""


def _at_risk(report: Report) -> Iterator[str]:
    yield "## 5. At risk"
    yield ""
    if not report.at_risk:
        yield "No paying customer uses less than 10 % of its quota, pro rata."
        yield ""
        return
    yield (
        f"{counted(len(report.at_risk), 'paying customer')} below 10 % of the quota, "
        "pro rata of the elapsed period."
    )
    yield ""
    headings = ["customer", "tier", "MRR", "used", "pro rata", "for", "trend", "14 days"]
    yield from table(headings, [_at_risk_row(each) for each in _first(report.at_risk)], "llrrrrll")
    yield from _rest(len(report.at_risk))


def _at_risk_row(each: AtRisk) -> list[str]:
    days = f"{each.days}+ days" if each.days >= HISTORY_DAYS else counted(each.days, "day")
    return [
        _customer(each.name, each.organization_id),
        each.tier.value,
        usd(each.mrr_usd),
        f"{number(each.used_minutes)} min",
        f"{each.pro_rata_percent} %",
        days,
        _trend(each.last_week_minutes, each.week_before_minutes),
        f"`{sparkline(each.daily_minutes)}`",
    ]


def _trend(last_week: int, week_before: int) -> str:
    if last_week > week_before:
        return f"up, {number(week_before)} → {number(last_week)} min a week"
    if last_week < week_before:
        return f"down, {number(week_before)} → {number(last_week)} min a week"
    return f"flat, {number(last_week)} min a week"


def _candidates(report: Report) -> Iterator[str]:
    yield "## 6. Upgrade candidates"
    yield ""
    if not report.candidates:
        yield "No customer is at 80 % of its quota, or will be before its period ends."
        yield ""
        return
    yield (
        f"{counted(len(report.candidates), 'customer')} at 80 % of the quota, or there "
        "before the period ends."
    )
    yield ""
    headings = [
        "customer",
        "tier",
        "used",
        "of quota",
        "80 %",
        "100 %",
        "next tier",
        "more a month",
    ]
    headings.append("overage if they stay")
    rows = [_candidate_row(each) for each in _first(report.candidates)]
    yield from table(headings, rows, "llrrllrrr")
    yield from _rest(len(report.candidates))


def _candidate_row(each: Candidate) -> list[str]:
    price = "by contract" if each.next_price_usd is None else usd(each.next_price_usd)
    return [
        _customer(each.name, each.organization_id),
        each.tier.value,
        f"{number(each.used_minutes)} of {number(each.included_minutes)} min",
        f"{number(each.percent)} %",
        each.reaches or "reached",
        "reached" if each.is_full else each.full_on or "-",
        f"{each.next_tier.value}, {price}",
        "-" if each.extra_usd is None else signed_usd(each.extra_usd),
        usd(each.overage_usd),
    ]


def _attention(report: Report) -> Iterator[str]:
    yield "## To look at"
    yield ""
    yield f"* **Books:** {_books(report)}"
    yield f"* **Late upgrades:** {_late(report)}"
    yield f"* **Past due or suspended:** {_troubled(report)}"
    yield f"* **Leaving:** {_leaving(report)}"
    yield f"* **Findings:** {_findings(report)}"
    waiting = [f"{number(n)} {what}" for what, n in report.facts.set_aside.items() if n]
    yield f"* **Parked or dead:** {', '.join(waiting) or 'nothing'}."


def _books(report: Report) -> str:
    last = report.facts.reconciled
    if last is None:
        return "no reconciliation has run yet."
    if last.outcome != "succeeded":
        return f"the reconciliation of {_minute(last.finished_at)} **{last.outcome}**."
    if last.differences:
        found = counted(last.differences, "difference")
        return f"**{found}** at {_minute(last.finished_at)}, see findings."
    checked = f"{counted(last.organizations, 'organization')}, {_minute(last.finished_at)}"
    return f"ledger, counters and tasks agree ({checked})."


def _minute(instant: str) -> str:
    """Return an RFC 3339 instant as people write it."""
    return f"{instant[:10]} {instant[11:16]} UTC"


def _late(report: Report) -> str:
    if not report.late_upgrades:
        return "none."
    named = [
        f"{_customer(each.name, each.organization_id)} {each.before.value} → {each.after.value} "
        f"with {each.left_percent} % of the period left"
        for each in _first(report.late_upgrades)
    ]
    return f"{'; '.join(named)}{_more(len(report.late_upgrades))}."


def _troubled(report: Report) -> str:
    if not report.troubled:
        return "none."
    named = [
        f"{_customer(each.name, each.organization_id)} {each.why}"
        + (f" since {each.since}" if each.since else "")
        + f" ({usd(each.mrr_usd)} MRR)"
        for each in _first(report.troubled)
    ]
    return f"{'; '.join(named)}{_more(len(report.troubled))}."


def _leaving(report: Report) -> str:
    found = report.facts.leaving
    if not found:
        return "nobody has cancelled."
    named = [
        f"{_customer(each.name, each.organization_id)} on {each.ends_on} ({usd(each.mrr_usd)} MRR)"
        for each in _first(found)
    ]
    return f"{'; '.join(named)}{_more(len(found))}."


def _findings(report: Report) -> str:
    found = report.facts.findings
    if not found:
        return "none."
    named = [
        f"{escaped(each.kind)} x{number(each.count)}"
        + (
            f" at {_customer(each.name or '', each.organization_id)}"
            if each.organization_id
            else ""
        )
        for each in _first(found)
    ]
    return f"{'; '.join(named)}{_more(len(found))}."


def _customer(name: str, organization_id: str) -> str:
    """Return the name, and the id where the name is not enough to find the customer."""
    shown = escaped(name)
    return shown if name == organization_id else f"{shown} ({escaped(organization_id, most=64)})"


def _first(values: Sequence[T]) -> Sequence[T]:
    return values[:LINES_MAX]


def _rest(count: int) -> Iterator[str]:
    yield ""
    if count > LINES_MAX:
        yield f"And {number(count - LINES_MAX)} more."
        yield ""


def _more(count: int) -> str:
    return f"; and {number(count - LINES_MAX)} more" if count > LINES_MAX else ""
