-- Checking the books and dropping what is old, see upkeep.py.

-- name: overdue
-- Organizations for which the clock alone has changed something and nobody has looked.
-- $1: now. $2: how long work goes on after a failed payment.
SELECT organization_id FROM subscription_usage WHERE NOT closed AND period_end <= $1
UNION
SELECT id FROM organizations WHERE past_due_since + $2 <= $1 AND NOT payment_hold
ORDER BY 1

-- name: task_differences
-- Tasks that ended in [$1, $2) whose rows are not their recorded time.
SELECT t.organization_id, t.task_id, t.metered_ms, t.recorded_ms, coalesce(r.row_ms, 0) AS row_ms
FROM tasks t
LEFT JOIN LATERAL (
    SELECT sum(quantity_ms)::bigint AS row_ms FROM usage_records r
    WHERE r.organization_id = t.organization_id AND r.task_id = t.task_id AND r.source = 'task'
) r ON true
WHERE t.ended_at >= $1 AND t.ended_at < $2 AND t.state <> 'running'
    AND (t.metered_ms <> coalesce(r.row_ms, 0) OR t.recorded_ms <> coalesce(r.row_ms, 0))
ORDER BY t.organization_id, t.task_id
LIMIT 1000

-- name: ended_tasks
SELECT count(*) AS n FROM tasks WHERE ended_at >= $1 AND ended_at < $2 AND state <> 'running'

-- name: metrics_differences
-- Periods that are aggregated to their end, and whose days do not add up to what they recorded.
-- Organizations with rows that arrived since are left out: their days are summed next time.
SELECT u.organization_id, u.billing_period, u.recorded_ms AS expected, coalesce(m.used, 0) AS found
FROM subscription_usage u
CROSS JOIN metrics_position p
LEFT JOIN LATERAL (
    SELECT sum(quantity_ms)::bigint AS used FROM daily_metrics m
    WHERE m.organization_id = u.organization_id AND m.billing_period = u.billing_period
        AND m.resource_type = 'agent_minute'
        AND m.day >= (u.period_start AT TIME ZONE 'UTC')::date
) m ON true
WHERE u.closed AND u.period_end > $1
    AND u.period_end <= (p.aggregated_until + 1)::timestamp AT TIME ZONE 'UTC'
    AND u.recorded_ms <> coalesce(m.used, 0)
    AND NOT EXISTS (
        SELECT FROM usage_records r
        WHERE r.organization_id = u.organization_id AND r.billing_period = u.billing_period
            AND r.recorded_at >= p.arrived_until - interval '1 hour'
    )
ORDER BY 1, 2
LIMIT 1000

-- name: stored_counters
SELECT DISTINCT ON (u.organization_id)
    u.organization_id, p.seq, u.billing_period, u.used_ms, u.recorded_ms, u.overage_minutes,
    u.overage_cost_exact, u.total_cost_exact
FROM subscription_usage u
JOIN organization_positions p USING (organization_id)
WHERE u.organization_id = ANY ($1)
ORDER BY u.organization_id, u.period_start DESC

-- name: rebuild
-- Counters from the ledger, never the ledger from counters. $1: epoch. $2: organization or null.
WITH owner AS (
    SELECT epoch FROM meterd_owner WHERE epoch = $1 FOR SHARE
), summed AS (
    SELECT
        organization_id, billing_period,
        coalesce(sum(quantity_ms) FILTER (WHERE resource_type = 'agent_minute'), 0)::bigint AS agent_ms,
        coalesce(sum(quantity_ms) FILTER (WHERE resource_type = 'websocket_minute'), 0)::bigint AS socket_ms,
        coalesce(sum(quantity) FILTER (WHERE resource_type = 'api_call'), 0)::bigint AS calls,
        coalesce(sum(quantity) FILTER (WHERE kind = 'overage'), 0)::int AS overage_minutes,
        coalesce(sum(total_cost) FILTER (WHERE kind = 'overage'), 0) AS overage,
        coalesce(sum(total_cost), 0) AS total
    FROM usage_records
    WHERE $2::text IS NULL OR organization_id = $2
    GROUP BY organization_id, billing_period
), pending AS (
    SELECT organization_id, sum(metered_ms - recorded_ms)::bigint AS pending_ms
    FROM tasks
    WHERE state <> 'finished' AND ($2::text IS NULL OR organization_id = $2)
    GROUP BY organization_id
), right_ones AS (
    SELECT
        u.organization_id, u.billing_period, coalesce(s.agent_ms, 0) AS recorded_ms,
        coalesce(s.agent_ms, 0)
            + CASE WHEN u.closed THEN 0 ELSE coalesce(p.pending_ms, 0) END AS used_ms,
        coalesce(s.socket_ms, 0) AS socket_ms, coalesce(s.calls, 0) AS calls,
        coalesce(s.overage_minutes, 0) AS overage_minutes, coalesce(s.overage, 0) AS overage,
        coalesce(s.total, 0) AS total, u.used_ms AS wrong_used_ms, u.recorded_ms AS wrong_recorded_ms
    FROM subscription_usage u
    LEFT JOIN summed s USING (organization_id, billing_period)
    LEFT JOIN pending p USING (organization_id)
    WHERE $2::text IS NULL OR u.organization_id = $2
), changed AS (
    UPDATE subscription_usage u SET
        recorded_ms = r.recorded_ms, used_ms = r.used_ms,
        agent_minutes_used = div(r.used_ms, 60000)::int, websocket_ms_used = r.socket_ms,
        api_calls_used = r.calls, overage_minutes = r.overage_minutes,
        overage_cost_exact = r.overage, total_cost_exact = r.total,
        overage_charges_usd = round(r.overage, 2), total_cost_usd = round(r.total, 2),
        last_updated = now()
    FROM right_ones r
    WHERE EXISTS (SELECT FROM owner)
        AND u.organization_id = r.organization_id AND u.billing_period = r.billing_period
        AND (
            u.recorded_ms, u.used_ms, u.agent_minutes_used, u.websocket_ms_used, u.api_calls_used,
            u.overage_minutes, u.overage_cost_exact, u.total_cost_exact, u.overage_charges_usd,
            u.total_cost_usd
        ) IS DISTINCT FROM (
            r.recorded_ms, r.used_ms, div(r.used_ms, 60000)::int, r.socket_ms, r.calls,
            r.overage_minutes, r.overage, r.total, round(r.overage, 2), round(r.total, 2)
        )
    RETURNING u.organization_id, u.billing_period, r.wrong_used_ms, r.wrong_recorded_ms, u.used_ms,
        u.recorded_ms
)
SELECT *, (SELECT count(*) FROM owner) AS owners FROM changed
ORDER BY organization_id, billing_period

-- name: owns
SELECT EXISTS (SELECT FROM meterd_owner WHERE epoch = $1)

-- name: audit_rebuild
INSERT INTO audit_log (id, at, actor, action, organization_id, reason, before, after)
SELECT x.id, $1, 'meterd reconcile', 'counters.rebuild', x.organization_id,
    'counters differed from the ledger', x.before, x.after
FROM unnest($2::text[], $3::text[], $4::jsonb[], $5::jsonb[]) AS x (id, organization_id, before, after)
ON CONFLICT (id) DO NOTHING

-- name: mark
INSERT INTO retention_marks (name, dropped_before) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET
    dropped_before = greatest(retention_marks.dropped_before, excluded.dropped_before)

-- name: drop_tasks
DELETE FROM tasks WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM tasks WHERE ended_at < $1 AND state <> 'running' LIMIT 5000
))

-- name: drop_payloads
-- The event stays for ever, so that it is never taken for new; what it said is dropped.
UPDATE stripe_events SET payload = '{}' WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM stripe_events
    WHERE state = 'done' AND received_at < $1 AND payload::text <> '{}' LIMIT 5000
))

-- name: drop_runs
DELETE FROM job_runs WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM job_runs WHERE outcome <> 'running' AND started_at < $1 LIMIT 5000
))

-- name: drop_answers
DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency_keys WHERE created_at < $1 LIMIT 5000
))
