-- What customers read of their usage, see usage.py.

-- name: rows
-- The conditions are put in by usage.py: columns of ours, values as parameters.
SELECT
    id, user_id, resource_type, quantity, unit_cost, total_cost, metadata, "timestamp",
    billing_period, kind, source, quantity_ms, recorded_before_ms, task_id, agent_id, terms_seq,
    seq
FROM usage_records
WHERE organization_id = $1/* conditions */
ORDER BY "timestamp" DESC, id DESC
LIMIT /* limit */

-- name: usage_days
SELECT * FROM usage_days WHERE organization_id = $1 AND day >= $2
ORDER BY day, billing_period, resource_type, kind, unit_cost

-- name: usage_of_period
SELECT * FROM usage_days WHERE organization_id = $1 AND billing_period = $2
ORDER BY day, billing_period, resource_type, kind, unit_cost

-- name: periods
SELECT
    (
        u.period_start, u.period_end, u.billing_period, u.terms_seq, u.closed, u.used_ms,
        u.recorded_ms, u.overage_minutes, u.overage_cost_exact, u.total_cost_exact,
        u.api_calls_used, u.websocket_ms_used, array_to_string(u.notified_percents, ',')
    ) AS period,
    (
        t.terms_seq, t.effective_at, t.plan_tier, t.contract, t.trialing, t.limits, t.reason
    ) AS terms
FROM subscription_usage u
JOIN organization_terms t USING (organization_id, terms_seq)
WHERE u.organization_id = $1 AND u.period_start < $2
ORDER BY u.period_start DESC
LIMIT $3

-- name: adjustment
-- An adjustment always has rows, so no row means no such entry.
SELECT r.*
FROM audit_log a
CROSS JOIN LATERAL jsonb_array_elements_text(a.after -> 'rows') WITH ORDINALITY AS x (id, number)
JOIN usage_records r ON r.id = x.id
WHERE a.id = $2 AND a.organization_id = $1
ORDER BY x.number
