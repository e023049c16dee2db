-- Creating organizations and listing what is stored, see directory.py.

-- name: create_organization
-- One statement: an organization has a position, terms, a period and an audit entry, or is not there.
WITH new AS (
    INSERT INTO organizations (
        id, name, stripe_customer_id, operator_hold, payment_hold, hold_reason, created_at,
        updated_at
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7::timestamptz, $7)
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), position AS (
    INSERT INTO organization_positions (organization_id, seq) SELECT id, 0 FROM new
), terms AS (
    INSERT INTO organization_terms
        (organization_id, terms_seq, effective_at, plan_tier, contract, trialing, limits, reason)
    SELECT
        id, $8::int, $9::timestamptz, $10::text, $11::jsonb, $12::bool, $13::jsonb, $14::text
    FROM new
), period AS (
    INSERT INTO subscription_usage (
        id, organization_id, billing_period, period_start, period_end, plan_tier, terms_seq,
        agent_minutes_limit, last_updated
    )
    SELECT
        $15::text, id, $16::text, $17::timestamptz, $18::timestamptz, $10, $8, $19::int, $7
    FROM new
), audit AS (
    INSERT INTO audit_log (id, at, actor, action, organization_id, reason, after)
    SELECT $20::text, $7, $21::text, 'organization.create', id, $22::text, $23::jsonb FROM new
)
SELECT id FROM new

-- name: claim_customer
UPDATE organizations SET stripe_customer_id = $2, updated_at = now() WHERE id = $1

-- name: organizations
SELECT
    o.id, o.name, o.stripe_customer_id, o.operator_hold, o.payment_hold, o.hold_reason,
    o.cycle_subscription_id, o.cycle_start, o.cycle_end, o.cycle_anchor, o.cycle_months,
    o.past_due_since, o.billing_alerts, o.threshold_percents,
    o.created_at,
    (
        t.terms_seq, t.effective_at, t.plan_tier, t.contract, t.trialing, t.limits, t.reason
    ) AS terms
FROM organizations o
CROSS JOIN LATERAL (
    SELECT * FROM organization_terms t
    WHERE t.organization_id = o.id ORDER BY t.terms_seq DESC LIMIT 1
) t
WHERE o.id > $1
ORDER BY o.id
LIMIT $2

-- name: tasks
-- $2: state or null. $3, $4: start and id of the last task seen.
SELECT
    t.task_id, t.agent_id, t.user_id, t.metadata, t.initial_elapsed_ms, t.started_at, t.state,
    t.outcome, t.last_heartbeat_at, t.metered_until, t.ended_at, t.elapsed_ms, t.metered_ms,
    t.recorded_ms, t.seq
FROM tasks t
WHERE t.organization_id = $1 AND ($2::text IS NULL OR t.state = $2)
    AND t.started_at <= $3 AND (t.started_at < $3 OR t.task_id > $4)
ORDER BY t.started_at DESC, t.task_id
LIMIT $5
