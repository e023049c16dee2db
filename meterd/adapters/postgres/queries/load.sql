-- Reading organizations, periods and tasks back, see loading.py.
-- Arrays of rows keep an organization in one record, so one snapshot and one round trip suffice.

-- name: load
-- $1: ids. $2: lost tasks that were declared lost after this instant are still listened to.
-- $3: how many of them come along, the latest; the others are recalled when they report.
-- Correlated on purpose: every part is an index look-up, however large the tables are.
SELECT
    o.id, o.name, o.stripe_customer_id, o.operator_hold, o.payment_hold, o.hold_reason,
    o.cycle_subscription_id, o.cycle_start, o.cycle_end, o.cycle_anchor, o.cycle_months,
    o.past_due_since, o.billing_alerts, o.threshold_percents,
    o.created_at, p.seq,
    ARRAY(
        SELECT (
            u.period_start, u.period_end, u.billing_period, u.terms_seq, u.closed, u.used_ms,
            u.recorded_ms, u.overage_minutes, u.overage_cost_exact, u.total_cost_exact,
            u.api_calls_used, u.websocket_ms_used, array_to_string(u.notified_percents, ',')
        )
        FROM subscription_usage u
        WHERE u.organization_id = o.id AND u.period_start >= first.kept_from
        ORDER BY u.period_start DESC
    ) AS periods,
    ARRAY(
        SELECT (
            t.terms_seq, t.effective_at, t.plan_tier, t.contract, t.trialing, t.limits, t.reason
        )
        FROM organization_terms t
        WHERE t.organization_id = o.id AND (
            t.terms_seq = latest.terms_seq OR t.terms_seq IN (
                SELECT u.terms_seq FROM subscription_usage u
                WHERE u.organization_id = o.id AND u.period_start >= first.kept_from
            )
        )
        ORDER BY t.terms_seq DESC
    ) AS terms,
    ARRAY(
        SELECT (
            t.task_id, t.agent_id, t.user_id, t.metadata, t.initial_elapsed_ms, t.started_at,
            t.state, t.outcome, t.last_heartbeat_at, t.metered_until, t.ended_at, t.elapsed_ms,
            t.metered_ms, t.recorded_ms, t.seq
        )
        FROM tasks t
        WHERE t.organization_id = o.id AND t.state <> 'finished'
            AND (t.ended_at IS NULL OR t.ended_at > greatest($2, (
                SELECT l.ended_at FROM tasks l
                WHERE l.organization_id = o.id AND l.state <> 'finished' AND l.ended_at > $2
                ORDER BY l.ended_at DESC OFFSET $3 LIMIT 1
            )))
        ORDER BY t.last_heartbeat_at, t.task_id
    ) AS tasks
FROM organizations o
JOIN organization_positions p ON p.organization_id = o.id
CROSS JOIN LATERAL (
    SELECT t.terms_seq FROM organization_terms t
    WHERE t.organization_id = o.id ORDER BY t.terms_seq DESC LIMIT 1
) latest
CROSS JOIN LATERAL (
    SELECT min(u.period_start) AS kept_from
    FROM subscription_usage u
    WHERE u.organization_id = o.id AND u.period_end >= (
        SELECT max(current.period_start) FROM subscription_usage current
        WHERE current.organization_id = o.id
    ) - interval '36 days'
) first
WHERE o.id = ANY ($1)

-- name: recall_task
SELECT
    t.task_id, t.agent_id, t.user_id, t.metadata, t.initial_elapsed_ms, t.started_at, t.state,
    t.outcome, t.last_heartbeat_at, t.metered_until, t.ended_at, t.elapsed_ms, t.metered_ms,
    t.recorded_ms, t.seq
FROM tasks t
WHERE t.organization_id = $1 AND t.task_id = $2

-- name: recall_period
-- A closed period with the terms at its end.
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
WHERE u.organization_id = $1 AND u.billing_period = $2 AND u.closed

-- name: at_work
SELECT DISTINCT organization_id FROM tasks
WHERE state <> 'finished' AND ended_at IS NULL
ORDER BY organization_id
