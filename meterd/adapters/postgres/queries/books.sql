-- Daily metrics, revenue snapshots and what reports are made from; see metrics.py and books.py.

-- name: position
SELECT aggregated_until, arrived_until, now() AS now,
    (SELECT min("timestamp") FROM usage_records)::timestamptz AS first_record
FROM metrics_position

-- name: arrived_late
-- Rows that arrived since the last aggregation and belong to a day before $2.
SELECT DISTINCT ("timestamp" AT TIME ZONE 'UTC')::date AS day, organization_id
FROM usage_records
WHERE recorded_at >= $1 AND "timestamp" < $2
ORDER BY 1, 2

-- name: clear_day
DELETE FROM daily_metrics WHERE day = $1 AND ($2::text[] IS NULL OR organization_id = ANY ($2))

-- name: aggregate_rows
-- $1: day. $2, $3: its first instant and that of the next. $4: organizations, or null for all.
INSERT INTO daily_metrics (
    organization_id, day, resource_type, billing_period, quantity, quantity_ms, cost,
    overage_quantity, overage_cost, ledger_rows, agents
)
SELECT
    r.organization_id, $1::date, r.resource_type, r.billing_period, sum(r.quantity),
    sum(r.quantity_ms), sum(r.total_cost),
    coalesce(sum(r.quantity) FILTER (WHERE r.kind = 'overage'), 0),
    coalesce(sum(r.total_cost) FILTER (WHERE r.kind = 'overage'), 0), count(*),
    max(a.agents)
FROM usage_records r
JOIN (
    SELECT organization_id, resource_type, count(DISTINCT agent_id) AS agents
    FROM usage_records
    WHERE "timestamp" >= $2 AND "timestamp" < $3
        AND ($4::text[] IS NULL OR organization_id = ANY ($4))
    GROUP BY organization_id, resource_type
) a USING (organization_id, resource_type)
WHERE r."timestamp" >= $2 AND r."timestamp" < $3
    AND ($4::text[] IS NULL OR r.organization_id = ANY ($4))
GROUP BY r.organization_id, r.resource_type, r.billing_period

-- name: aggregate_tasks
-- Tasks that ended on the day are counted once, with the period that was open at its end.
INSERT INTO daily_metrics AS m (
    organization_id, day, resource_type, billing_period, quantity, quantity_ms, cost,
    overage_quantity, overage_cost, ledger_rows, agents, tasks_succeeded, tasks_failed,
    tasks_cancelled, tasks_lost
)
SELECT
    t.organization_id, $1::date, 'agent_minute', u.billing_period, 0, 0, 0, 0, 0, 0,
    coalesce((
        SELECT max(d.agents) FROM daily_metrics d
        WHERE d.organization_id = t.organization_id AND d.day = $1
            AND d.resource_type = 'agent_minute'
    ), 0),
    t.succeeded, t.failed, t.cancelled, t.lost
FROM (
    SELECT
        organization_id,
        count(*) FILTER (WHERE outcome = 'succeeded') AS succeeded,
        count(*) FILTER (WHERE outcome = 'failed') AS failed,
        count(*) FILTER (WHERE outcome = 'cancelled') AS cancelled,
        count(*) FILTER (WHERE state = 'lost') AS lost
    FROM tasks
    WHERE ended_at >= $2 AND ended_at < $3 AND state <> 'running'
        AND ($4::text[] IS NULL OR organization_id = ANY ($4))
    GROUP BY organization_id
) t
CROSS JOIN LATERAL (
    SELECT billing_period FROM subscription_usage u
    WHERE u.organization_id = t.organization_id
    ORDER BY period_start < $3 DESC, period_start DESC LIMIT 1
) u
ON CONFLICT (organization_id, day, resource_type, billing_period) DO UPDATE SET
    tasks_succeeded = excluded.tasks_succeeded, tasks_failed = excluded.tasks_failed,
    tasks_cancelled = excluded.tasks_cancelled, tasks_lost = excluded.tasks_lost

-- name: move_position
UPDATE metrics_position SET
    aggregated_until = greatest(aggregated_until, $1), arrived_until = $2

-- name: priced_customers
-- $1: day. $2: its end. $3: the id before the page. $4: size of the page.
SELECT
    o.id, t.plan_tier, (t.limits ->> 'base_price_usd')::numeric AS base_price_usd,
    o.operator_hold, o.payment_hold, o.past_due_since,
    ARRAY(
        SELECT s.object::text FROM stripe_subscriptions s WHERE s.organization_id = o.id
    ) AS subscriptions,
    coalesce((
        SELECT r.has_paid FROM revenue_snapshots r
        WHERE r.organization_id = o.id AND r.day < $1 ORDER BY r.day DESC LIMIT 1
    ), false) AS has_paid
FROM organizations o
CROSS JOIN LATERAL (
    SELECT * FROM organization_terms t
    WHERE t.organization_id = o.id AND t.effective_at < $2 ORDER BY t.terms_seq DESC LIMIT 1
) t
WHERE o.created_at < $2 AND o.id > $3
ORDER BY o.id
LIMIT $4

-- name: clear_snapshot
DELETE FROM revenue_snapshots WHERE day = $1

-- name: snapshot_taken
SELECT taken_at FROM revenue_snapshot_days WHERE day = $1

-- name: keep_snapshot
INSERT INTO revenue_snapshots (
    day, organization_id, plan_tier, status, origin, currency, mrr_numerator, mrr_denominator,
    has_paid, is_unknown, operator_hold, payment_hold, past_due_since
)
SELECT $1::date, x.* FROM unnest(
    $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::numeric[], $8::numeric[],
    $9::bool[], $10::bool[], $11::bool[], $12::bool[], $13::timestamptz[]
) AS x

-- name: mark_snapshot
INSERT INTO revenue_snapshot_days (day, taken_at) VALUES ($1, $2)
ON CONFLICT (day) DO UPDATE SET taken_at = excluded.taken_at

-- name: snapshot_before
-- The snapshot of a week before, or the nearest one before that, or the oldest after it.
SELECT day FROM revenue_snapshot_days WHERE day < $1
ORDER BY day <= $1::date - 7 DESC, abs(day - ($1::date - 7)) LIMIT 1

-- name: snapshot
SELECT * FROM revenue_snapshots
WHERE day = $1 AND (mrr_numerator > 0 OR has_paid) AND organization_id > $2
ORDER BY organization_id LIMIT $3

-- name: daily_mrr
-- Exact sums of fractions with few denominators: dollars only.
SELECT day, mrr_denominator, sum(mrr_numerator) AS mrr_numerator
FROM revenue_snapshots
WHERE day > $1::date - $2::int AND day <= $1 AND currency = 'usd'
GROUP BY day, mrr_denominator
ORDER BY day

-- name: customers
-- Parameters as for priced_customers. What an organization looked like at the end of the day.
SELECT
    o.id, o.name,
    (t.terms_seq, t.effective_at, t.plan_tier, t.contract, t.trialing, t.limits, t.reason) AS terms,
    earlier.plan_tier AS tier_before,
    u.billing_period, u.period_start, u.period_end,
    used.quantity_ms AS used_ms, used.overage_cost,
    b.used_ms AS before_used_ms, b.agent_minutes_limit AS before_minutes,
    b.period_start AS before_start, b.period_end AS before_end,
    daily.ages, daily.used AS daily_ms,
    coalesce(r.operator_hold, o.operator_hold) AS operator_hold,
    coalesce(r.payment_hold, o.payment_hold) AS payment_hold,
    CASE WHEN r.day IS NULL THEN o.past_due_since ELSE r.past_due_since END AS past_due_since,
    r.plan_tier, r.status, r.origin, r.currency, r.mrr_numerator, r.mrr_denominator, r.has_paid,
    r.is_unknown
FROM organizations o
CROSS JOIN LATERAL (
    SELECT * FROM organization_terms t
    WHERE t.organization_id = o.id AND t.effective_at < $2 ORDER BY t.terms_seq DESC LIMIT 1
) t
LEFT JOIN LATERAL (
    SELECT e.plan_tier FROM organization_terms e
    WHERE e.organization_id = o.id AND e.terms_seq < t.terms_seq
        AND e.effective_at < ($1::date::timestamp AT TIME ZONE 'UTC')
    ORDER BY e.terms_seq DESC LIMIT 1
) earlier ON true
CROSS JOIN LATERAL (
    SELECT * FROM subscription_usage u
    WHERE u.organization_id = o.id
    ORDER BY u.period_start < $2 DESC, u.period_start DESC LIMIT 1
) u
LEFT JOIN LATERAL (
    SELECT * FROM subscription_usage b
    WHERE b.organization_id = o.id AND b.period_start < u.period_start
    ORDER BY b.period_start DESC LIMIT 1
) b ON true
CROSS JOIN LATERAL (
    SELECT coalesce(sum(m.quantity_ms), 0)::bigint AS quantity_ms,
        coalesce(sum(m.overage_cost), 0) AS overage_cost
    FROM daily_metrics m
    WHERE m.organization_id = o.id AND m.day <= $1
        AND m.day >= (u.period_start AT TIME ZONE 'UTC')::date
        AND m.resource_type = 'agent_minute' AND m.billing_period = u.billing_period
) used
CROSS JOIN LATERAL (
    SELECT array_agg($1::date - m.day) AS ages, array_agg(m.used) AS used
    FROM (
        SELECT day, sum(quantity_ms)::bigint AS used FROM daily_metrics
        WHERE organization_id = o.id AND resource_type = 'agent_minute'
            AND day <= $1 AND day > $1::date - 28
        GROUP BY day
    ) m
) daily
LEFT JOIN revenue_snapshots r ON r.organization_id = o.id AND r.day = $1
WHERE o.created_at < $2 AND o.id > $3
ORDER BY o.id
LIMIT $4

-- name: activity
SELECT
    coalesce(sum(quantity) FILTER (WHERE resource_type = 'agent_minute'), 0)::bigint AS minutes,
    coalesce(sum(quantity) FILTER (WHERE resource_type = 'api_call'), 0)::bigint AS api_calls,
    coalesce(sum(tasks_succeeded), 0)::bigint AS succeeded,
    coalesce(sum(tasks_failed), 0)::bigint AS failed,
    coalesce(sum(tasks_cancelled), 0)::bigint AS cancelled,
    coalesce(sum(tasks_lost), 0)::bigint AS lost,
    coalesce(sum(overage_cost), 0) AS overage,
    (
        SELECT coalesce(sum(agents), 0)::bigint FROM (
            SELECT max(agents) AS agents FROM daily_metrics
            WHERE day = $1 AND resource_type = 'agent_minute' GROUP BY organization_id
        ) a
    ) AS agents
FROM daily_metrics WHERE day = $1

-- name: daily_minutes
SELECT $1::date - day AS age, (sum(quantity_ms) / 60000)::bigint AS minutes
FROM daily_metrics
WHERE day <= $1 AND day > $1::date - 28 AND resource_type = 'agent_minute'
GROUP BY day

-- name: billed
-- Overage of periods that ended in the month of the day, up to its end: rounded for each period.
SELECT coalesce(sum(overage_charges_usd), 0) AS usd,
    count(*) FILTER (WHERE overage_cost_exact <> 0) AS periods
FROM subscription_usage
WHERE closed AND period_end > date_trunc('month', $1::date::timestamp) AT TIME ZONE 'UTC'
    AND period_end <= $2

-- name: charges
-- What became of the overage of these periods, as it is now.
SELECT state, sum(amount_cents)::bigint AS cents FROM overage_charges
WHERE period_end > date_trunc('month', $1::date::timestamp) AT TIME ZONE 'UTC'
    AND period_end <= $2
GROUP BY state ORDER BY state

-- name: findings_of_day
SELECT f.kind, f.organization_id, o.name, count(*) AS found
FROM findings f LEFT JOIN organizations o ON o.id = f.organization_id
WHERE f.at >= $1 AND f.at < $2
GROUP BY f.kind, f.organization_id, o.name
ORDER BY found DESC, f.kind, f.organization_id NULLS FIRST
LIMIT 1000

-- name: reconciled
-- The first reconciliation after the day, else the latest one.
SELECT finished_at, outcome, detail FROM job_runs
WHERE job = 'ledger_reconciliation' AND finished_at IS NOT NULL
ORDER BY started_at >= $1 DESC,
    CASE WHEN started_at >= $1 THEN started_at END,
    started_at DESC
LIMIT 1

-- name: set_aside
SELECT
    (SELECT count(*) FROM dead_letters WHERE at >= $1 AND at < $2) AS "dead letters of the day",
    (SELECT count(*) FROM stripe_events WHERE state = 'dead') AS "dead Stripe events",
    (SELECT count(*) FROM overage_charges WHERE state = 'parked') AS "parked charges",
    (SELECT count(*) FROM overage_charges WHERE state = 'review') AS "charges to review"

-- name: leaving
-- Subscriptions that somebody has cancelled and that still go on, as they are now.
SELECT o.id, o.name, s.object::text AS object
FROM stripe_subscriptions s JOIN organizations o ON o.id = s.organization_id
WHERE NOT s.is_over AND (
    s.object ->> 'cancel_at_period_end' = 'true' OR s.object ->> 'cancel_at' IS NOT NULL
)
ORDER BY o.id, s.id
LIMIT 1000

-- name: stored_report
SELECT day, content, markdown FROM daily_reports WHERE day = $1

-- name: latest_report
SELECT max(day) AS day FROM daily_reports

-- name: keep_report
INSERT INTO daily_reports (day, made_at, content, markdown) VALUES ($1, $2, $3, $4)
ON CONFLICT (day) DO UPDATE SET
    made_at = excluded.made_at, content = excluded.content, markdown = excluded.markdown

-- name: open_overage
SELECT coalesce(sum(round(overage_cost_exact, 2)), 0) AS usd FROM subscription_usage WHERE NOT closed
