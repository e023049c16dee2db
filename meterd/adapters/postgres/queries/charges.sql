-- Closed periods and what they owe, see charges.py.

-- name: owner
-- The fence: no row when another process owns the database now.
SELECT epoch FROM meterd_owner WHERE epoch = $1 FOR SHARE

-- name: overdue
-- $1: now. Periods that the clock has ended and no actor has turned.
SELECT DISTINCT organization_id FROM (
    SELECT organization_id FROM subscription_usage
    WHERE NOT closed AND period_end <= $1 ORDER BY period_end LIMIT $2
) AS overdue

-- name: bills
-- $1: ended at or after. A bill is one row, so it is of one snapshot.
WITH due AS (
    SELECT u.*
    FROM subscription_usage u
    LEFT JOIN overage_periods m
        ON m.organization_id = u.organization_id AND m.period_start = u.period_start
    WHERE u.closed AND u.period_end >= $1 AND u.seq > coalesce(m.seq, -1)
        AND (u.total_cost_exact <> 0 OR m.organization_id IS NOT NULL)
    ORDER BY u.period_end, u.organization_id LIMIT $2
)
SELECT
    d.organization_id, d.billing_period, d.period_start, d.period_end, d.seq,
    o.stripe_customer_id, o.cycle_subscription_id, o.billing_alerts,
    EXISTS (
        SELECT 1 FROM usage_records r
        JOIN organization_terms t USING (organization_id, terms_seq)
        WHERE r.organization_id = d.organization_id AND r.billing_period = d.billing_period
            AND r.unit_cost <> 0 AND (t.limits ->> 'hard_limit_ms') IS NULL
    ) AS is_unlimited,
    ARRAY(
        SELECT (r.resource_type, sum(r.quantity), sum(r.total_cost)) FROM usage_records r
        WHERE r.organization_id = d.organization_id AND r.billing_period = d.billing_period
            AND r.unit_cost <> 0
        GROUP BY r.resource_type
    ) AS costs,
    ARRAY(
        SELECT c FROM overage_charges c
        WHERE c.organization_id = d.organization_id AND c.period_start = d.period_start
        ORDER BY c.resource_type, c.seq
    ) AS charges,
    ARRAY(
        SELECT coalesce((
            SELECT sum(c.amount_cents) FROM overage_charges c
            WHERE c.organization_id = e.organization_id AND c.period_start = e.period_start
        ), 0)::bigint
        FROM subscription_usage e
        WHERE e.organization_id = d.organization_id AND e.period_start < d.period_start
        ORDER BY e.period_start DESC LIMIT 3
    ) AS earlier_cents,
    (
        SELECT count(*) FROM tasks k
        WHERE k.organization_id = d.organization_id AND k.state = 'running'
            AND k.started_at < d.period_end AND k.last_heartbeat_at < d.period_end
    ) AS unreported_tasks
FROM due d
JOIN organizations o ON o.id = d.organization_id
ORDER BY d.period_end, d.organization_id

-- name: reviewed
SELECT DISTINCT organization_id FROM overage_charges
WHERE state IN ('new', 'pushing', 'pushed', 'invoiced')
ORDER BY organization_id LIMIT $1

-- name: add
INSERT INTO overage_charges (
    id, organization_id, customer_id, subscription_id, resource_type, billing_period, period_start,
    period_end, quantity, amount_cents, seq, state, reason, attempt, key_at, first_at, tries,
    next_attempt_at, last_error, invoice_item_id, invoice_id, created_at, updated_at
)
VALUES (
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,
    $22, $22
)
ON CONFLICT (id) DO NOTHING

-- name: mark
INSERT INTO overage_periods AS m (organization_id, period_start, seq, charged_at)
VALUES ($1, $2, $3, $4)
ON CONFLICT (organization_id, period_start) DO UPDATE SET
    seq = greatest(m.seq, excluded.seq), charged_at = excluded.charged_at

-- name: due
-- The cycle of another customer's subscription makes no invoice of this one: it is left out.
SELECT
    c, o.stripe_customer_id,
    CASE WHEN f.is_own THEN o.cycle_subscription_id END AS cycle_subscription_id,
    CASE WHEN f.is_own THEN o.cycle_months END AS cycle_months
FROM overage_charges c
JOIN organizations o ON o.id = c.organization_id
CROSS JOIN LATERAL (
    SELECT NOT EXISTS (
        SELECT 1 FROM unnest(o.billing_alerts) AS a WHERE a LIKE 'other\_customer:%'
    ) AS is_own
) AS f
WHERE c.state IN ('new', 'pushing', 'pushed') AND c.next_attempt_at <= $1
ORDER BY c.next_attempt_at, c.id
LIMIT $2

-- name: move
-- $1: id. $2, $3: state and attempt it must be in. $4: now.
UPDATE overage_charges SET
    updated_at = $4, state = $5, reason = $6, customer_id = $7, attempt = $8, key_at = $9,
    first_at = $10, tries = $11, next_attempt_at = $12, last_error = $13, invoice_item_id = $14,
    invoice_id = $15
WHERE id = $1 AND state = $2 AND attempt = $3
RETURNING id

-- name: charge
SELECT c FROM overage_charges c WHERE c.id = $1

-- name: charges
-- $1: state or null. $2: organization or null. $3, $4: creation and id of the last one seen.
SELECT c FROM overage_charges c
WHERE ($1::text IS NULL OR c.state = $1) AND ($2::text IS NULL OR c.organization_id = $2)
    AND (c.created_at, c.id) < ($3, $4)
ORDER BY c.created_at DESC, c.id DESC
LIMIT $5

-- name: ended_since
SELECT c FROM overage_charges c WHERE c.period_end >= $1 ORDER BY c.id

-- name: figures
-- An index scan: of what is final there may be very much, and none of it is looked at.
-- $1: states.
SELECT state, count(*) AS charges, min(created_at) AS oldest
FROM overage_charges WHERE state = ANY ($1::text[]) GROUP BY state

-- name: followed
SELECT id, cycle_subscription_id FROM organizations
WHERE cycle_subscription_id IS NOT NULL ORDER BY id

-- name: find
INSERT INTO findings (id, at, kind, organization_id, detail)
VALUES ($1, $2, $3, $4, $5::jsonb)
ON CONFLICT (id) DO NOTHING

-- name: audit
INSERT INTO audit_log (id, at, actor, action, organization_id, reason, before, after)
VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8::jsonb)
ON CONFLICT (id) DO NOTHING
