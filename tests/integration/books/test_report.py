"""The daily report against a script of its own, in good and in hostile company."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import attrs
import pytest

from meterd.adapters.postgres import records
from meterd.core.plan import Tier
from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS, to_datetime
from meterd.reporting.document import values
from tests.book_world import FEBRUARY_MS, Company, Run, seeded_companies
from tests.integration.books.conftest import Office


DAY = 19
"""The report is of 20 February: 20 of 28 days have passed."""

DAY_START_MS = FEBRUARY_MS + DAY * DAY_MS
DAY_END_MS = DAY_START_MS + DAY_MS
PAID = {"active", "past_due"}


def billed_ms(company: Company, until_ms: int) -> int:
    """Return what was billed up to an instant, by plain arithmetic."""
    hard = company.terms.limits.hard_limit_ms
    ran = sum(run.ran_ms for run in company.runs if run.start_ms + run.ran_ms <= until_ms)
    return ran if hard is None else min(ran, hard)


def overage(company: Company, until_ms: int) -> Decimal:
    """Return dollars: whole minutes past the included ones, 5 cents each, never on Free."""
    if company.tier is Tier.FREE:
        return Decimal(0)
    minutes = billed_ms(company, until_ms) // MINUTE_MS
    return Decimal(max(0, minutes - company.terms.limits.included_minutes)) * Decimal("0.05")


def worth_cents(company: Company) -> int:
    """Return what a customer is worth a month."""
    if company.price_cents is not None:
        return company.price_cents if company.status in PAID else 0
    if company.tier is Tier.ENTERPRISE:
        return int(company.terms.limits.base_price_usd * 100)
    return 0


def one_decimal(value: Fraction) -> str:
    """Return a number rounded half-up to a tenth."""
    tenths: int = math.floor(value * 10 + Fraction(1, 2))
    return f"{tenths // 10}.{tenths % 10}"


def expected_usage(companies: Sequence[Company], tier: Tier) -> dict[str, Any]:
    """Return mean, median, p90 and most of a plan's customers."""
    minutes = sorted(billed_ms(c, DAY_END_MS) // MINUTE_MS for c in companies if c.tier is tier)
    n = len(minutes)
    middle = Fraction(minutes[(n - 1) // 2]) / 2 + Fraction(minutes[n // 2]) / 2
    return {
        "customers": n,
        "mean": one_decimal(Fraction(sum(minutes), n)),
        "median": one_decimal(middle),
        "p90": minutes[math.ceil(n * 0.9) - 1],
        "top": minutes[-1],
    }


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_seeded_month_is_reported_to_the_cent(office: Office, seed: int) -> None:
    """Everything in the report equals what a script of twenty lines makes of the same figures."""
    companies = seeded_companies(seed, 40)
    await office.fill(companies)
    office.clock.at_ms = FEBRUARY_MS + 13 * DAY_MS + HOUR_MS
    await office.reports.keep_revenue(FEBRUARY_MS + 12 * DAY_MS)
    before = {company.id: worth_cents(company) for company in companies}
    for number, company in enumerate(companies):
        if company.price_cents is not None and number % 3 == 0:
            company.status = "canceled" if number % 2 else "active"
            company.price_cents *= 2
            await office.subscribe(company)
    # A subscription that ended leaves an enterprise with its contract, others with nothing.
    after = {
        c.id: worth_cents(attrs.evolve(c, price_cents=None) if c.status == "canceled" else c)
        for c in companies
    }
    office.clock.at_ms = DAY_END_MS + 6 * HOUR_MS

    report = await office.reports.get(DAY_START_MS)

    assert report is not None
    said = json.loads(report.content_json)
    assert Decimal(said["revenue"]["mrr_usd"]) * 100 == sum(after.values())
    assert said["revenue"]["since"] == "2026-02-13"
    assert Decimal(said["revenue"]["before_usd"]) * 100 == sum(before.values())
    moved = {k: Decimal(m["usd"]) * 100 for k, m in said["revenue"]["movements"].items()}
    changes = {key: (before[key], after[key]) for key in before}
    assert moved == {
        "new": sum(b - a for a, b in changes.values() if a == 0),
        "reactivation": 0,
        "expansion": sum(b - a for a, b in changes.values() if 0 < a < b),
        "contraction": sum(b - a for a, b in changes.values() if 0 < b < a),
        "churn": sum(-a for a, b in changes.values() if a > 0 and b == 0),
    }
    movers = {each["organization_id"]: each for each in said["revenue"]["movers"]}
    assert {
        key: (int(Decimal(each["before_usd"]) * 100), int(Decimal(each["after_usd"]) * 100))
        for key, each in movers.items()
    } == {key: pair for key, pair in changes.items() if pair[0] != pair[1]}
    for line in said["usage"]:
        expected = expected_usage(companies, Tier(line["tier"]))
        assert {name: line[name] for name in expected} == expected
    for line in said["tiers"]:
        mine = [c for c in companies if c.tier.value == line["tier"]]
        assert line["active"] == sum(not c.held for c in mine)
        assert line["suspended"] == sum(c.held for c in mine)
        assert line["paying"] == sum(after[c.id] > 0 for c in mine)
    open_usd = sum((overage(c, DAY_END_MS) for c in companies), Decimal(0))
    assert Decimal(said["overage"]["open_usd"]) == open_usd
    low = {
        c.id
        for c in companies
        if after[c.id] > 0
        and not c.held
        and billed_ms(c, DAY_END_MS) * 10 * 28 < c.terms.limits.included_minutes * MINUTE_MS * 20
    }
    assert {each["organization_id"] for each in said["at_risk"]} == low
    grown = {each["organization_id"]: each for each in said["candidates"]}
    for company in companies:
        included_ms = company.terms.limits.included_minutes * MINUTE_MS
        used = billed_ms(company, DAY_END_MS)
        week: int = used - billed_ms(company, DAY_END_MS - 7 * DAY_MS)
        would_use: Fraction = used + Fraction(week * 8, 7)
        is_candidate = not company.held and company.tier is not Tier.ENTERPRISE
        is_candidate = is_candidate and max(Fraction(used), would_use) >= Fraction(
            included_ms * 8, 10
        )
        assert (company.id in grown) == is_candidate, company.id
        if is_candidate:
            assert grown[company.id]["percent"] == used * 100 // included_ms
    day_runs = [
        run for c in companies for run in c.runs if 0 <= run.start_ms - DAY_START_MS < DAY_MS
    ]
    activity = said["facts"]["activity"]
    for outcome in ("succeeded", "failed", "cancelled"):
        assert activity[f"tasks_{outcome}"] == sum(r.outcome.value == outcome for r in day_runs)


async def test_making_a_report_twice_gives_the_same_file(office: Office) -> None:
    """Asked for again, refreshed, or made by another process: byte for byte the same."""
    await office.fill(seeded_companies(3, 12))
    office.clock.at_ms = DAY_END_MS + 6 * HOUR_MS
    first = await office.reports.get(DAY_START_MS)

    office.clock.at_ms += 3 * HOUR_MS
    assert await office.reports.get(DAY_START_MS) == first
    assert await office.reports.make(DAY_START_MS) == first
    assert first is not None
    assert first.markdown.startswith("# Daily revenue, 2026-02-20\n")


async def test_a_late_row_amends_its_day_and_only_a_refresh_changes_the_report(
    office: Office,
) -> None:
    """A task that reports late is counted on the day it ran; a report that was sent stays."""
    [company] = seeded_companies(5, 1)
    company.tier, company.runs, company.held = Tier.STARTER, [_run("early", 2)], False
    await office.fill([company])
    office.clock.at_ms = DAY_END_MS + HOUR_MS
    await office.metrics.aggregate(DAY_START_MS)
    first = await office.reports.get(DAY_START_MS)
    company.runs.append(_run("late", 5))
    [_, late] = company.batches()
    await office.store.flush([late])

    done = await office.metrics.aggregate(DAY_START_MS)

    assert done.amended == 2, "both days of the last hour's arrivals: the overlap"
    rows = await office.query("SELECT day::text, quantity FROM daily_metrics ORDER BY day")
    assert [tuple(row) for row in rows] == [("2026-02-03", 60), ("2026-02-06", 60)]
    assert await office.reports.get(DAY_START_MS) == first
    again = await office.reports.make(DAY_START_MS)
    assert again is not None
    assert json.loads(again.content_json)["usage"][0]["top"] == 120


def _run(task_id: str, day: int) -> Run:
    return Run(
        task_id=task_id,
        agent_id="agent-1",
        start_ms=FEBRUARY_MS + day * DAY_MS + HOUR_MS,
        ran_ms=HOUR_MS,
        outcome=seeded_companies(1, 1)[0].runs[0].outcome,
    )


async def test_a_customer_that_left_and_came_back_is_reactivated_not_new(office: Office) -> None:
    """Over a month's end, a week of nothing in between: what it paid once is remembered."""
    company = Company(id="org_1", name="One", tier=Tier.STARTER, price_cents=4_900)
    await office.fill([company])
    said = []
    for week, status in enumerate(("active", "canceled", "active", "active")):
        day_ms = FEBRUARY_MS + (6 + 7 * week) * DAY_MS
        company.status = status
        await office.subscribe(company)
        office.clock.at_ms = day_ms + DAY_MS + HOUR_MS
        report = await office.reports.get(day_ms)
        assert report is not None
        said.append(json.loads(report.content_json)["revenue"])

    assert [each["mrr_usd"] for each in said] == ["49.00", "0.00", "49.00", "49.00"]
    moved = [
        {kind: found["usd"] for kind, found in each["movements"].items() if found["customers"]}
        for each in said
    ]
    assert moved == [{}, {"churn": "-49.00"}, {"reactivation": "49.00"}, {}]


async def test_what_is_kept_at_a_days_end_stays_and_live_figures_agree_with_it(
    office: Office,
) -> None:
    """A look at today is no snapshot; a job that is started again at noon must not rewrite it."""
    company = Company(id="org_1", name="One", tier=Tier.STARTER, price_cents=4_900)
    await office.fill([company])
    office.clock.at_ms = DAY_START_MS + HOUR_MS
    await office.reports.get(DAY_START_MS)
    company.price_cents = 9_900
    await office.subscribe(company)
    office.clock.at_ms = DAY_END_MS + HOUR_MS
    assert await office.reports.keep_revenue(DAY_START_MS) == 1
    live = await office.reports.revenue()
    company.price_cents = 100
    await office.subscribe(company)
    office.clock.at_ms += 12 * HOUR_MS

    assert await office.reports.keep_revenue(DAY_START_MS) is None
    report = await office.reports.get(DAY_START_MS)
    assert report is not None
    said = json.loads(report.content_json)
    assert said["revenue"]["mrr_usd"] == "99.00" == str(live.mrr_usd)
    assert said["tiers"] == values(live.tiers)


async def test_who_has_cancelled_counts_until_the_end_and_is_named(office: Office) -> None:
    """The month in which somebody can still be asked to stay."""
    company = Company(
        id="org_1", name="One", tier=Tier.STARTER, price_cents=4_900, is_cancelled=True
    )
    await office.fill([company, Company(id="org_2", name="Two", tier=Tier.PRO, price_cents=9_900)])
    office.clock.at_ms = DAY_END_MS + HOUR_MS
    report = await office.reports.get(DAY_START_MS)

    assert report is not None
    assert "* **Leaving:** One (org_1) on 2026-03-01 ($49.00 MRR).\n" in report.markdown
    assert json.loads(report.content_json)["revenue"]["mrr_usd"] == "148.00"


async def test_a_day_without_customers_reads_well(office: Office) -> None:
    """The first morning: six sections, zeros, and no division by them."""
    office.clock.at_ms = DAY_END_MS + HOUR_MS
    report = await office.reports.get(DAY_START_MS)

    assert report is not None
    assert report.markdown.count("\n## ") == 7
    assert "**MRR $0.00**" in report.markdown
    assert "No customers." in report.markdown


HOSTILE = (
    '| <script>alert(1)</script> =HYPERLINK("http://x") [a](b) `c` **d** \u202e\u200b\U0001f600'
)


async def test_a_hostile_name_stays_in_its_cell(office: Office) -> None:
    """No pipe, tag, link, formula or invisible character of a customer reaches the page."""
    companies = [
        Company(id="org_1", name=HOSTILE, tier=Tier.STARTER, price_cents=4_900),
        Company(id="org_2", name="=1+1", tier=Tier.STARTER, price_cents=4_900),
    ]
    await office.fill(companies)
    office.clock.at_ms = DAY_END_MS + HOUR_MS
    report = await office.reports.get(DAY_START_MS)

    assert report is not None
    assert "<" not in report.markdown
    assert not {"\u202e", "\u200b", "\x00"} & set(report.markdown)
    rows = [line for line in report.markdown.splitlines() if "org_1" in line or "org_2" in line]
    assert len(rows) == 2
    for row in rows:
        cells = row.replace("\\|", "").strip("|").split("|")
        assert len(cells) == 8, row
    assert any("'=1+1" in row for row in rows)
    assert json.loads(report.content_json)["at_risk"][0]["name"] == HOSTILE


@pytest.mark.slow
async def test_ten_thousand_customers_are_reported_in_ten_seconds(office: Office) -> None:
    """Pages of 500, so that nobody waits for the report; the whole takes a few seconds."""
    await office.query(
        """
        WITH o AS (
            INSERT INTO organizations (id, name, created_at, updated_at)
            SELECT 'org_' || lpad(n::text, 5, '0'), 'Customer ' || n, $1, $1
            FROM generate_series(1, 10000) n RETURNING id
        ), p AS (
            INSERT INTO organization_positions (organization_id) SELECT id FROM o
        ), t AS (
            INSERT INTO organization_terms SELECT id, 1, $1, 'starter', '{}', false, $2::jsonb, ''
            FROM o
        ), u AS (
            INSERT INTO subscription_usage (id, organization_id, billing_period, period_start,
                period_end, plan_tier, terms_seq, agent_minutes_limit, last_updated)
            SELECT 'per_' || id, id, '2026-02', $1, $1 + interval '28 days', 'starter', 1, 1000, $1
            FROM o
        )
        INSERT INTO daily_metrics (organization_id, day, resource_type, billing_period, quantity,
            quantity_ms, cost, overage_quantity, overage_cost, ledger_rows, agents)
        SELECT id, '2026-02-01'::date + d, 'agent_minute', '2026-02', 30, 1800000, 0, 0, 0, 3, 2
        FROM o, generate_series(0, 18) d
        """,
        to_datetime(FEBRUARY_MS),
        records.limits_to_json(Company(id="x", name="x", tier=Tier.STARTER).terms.limits),
    )
    office.clock.at_ms = DAY_END_MS + HOUR_MS
    began = time.monotonic()
    report = await office.reports.get(DAY_START_MS)
    took_s = time.monotonic() - began

    assert report is not None
    assert json.loads(report.content_json)["customers"] == 10_000
    assert took_s < 10, f"{took_s:.1f} s"
    assert len(report.markdown) < 20_000
