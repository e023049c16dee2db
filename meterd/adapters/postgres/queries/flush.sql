-- The parts of the one statement with which a flush writes everything, see ledger.py.
-- Each part counts its parameters from $1; they are renumbered when the parts are put together.
-- Foreign keys are checked at the end of the whole statement, so the order of parts hardly matters:
-- `positions` comes first because `profiles` refers to it.

-- name: owner
-- The fence: no row when the epoch has moved on, and then no part below writes anything.
SELECT epoch FROM meterd_owner WHERE epoch = $1 FOR SHARE

-- name: positions
-- Returns the organizations for which this batch is news, judged on the latest committed position.
INSERT INTO organization_positions AS p (organization_id, seq)
SELECT x.* FROM unnest($1::text[], $2::bigint[]) AS x
WHERE EXISTS (SELECT FROM owner)
ON CONFLICT (organization_id) DO UPDATE SET seq = excluded.seq WHERE p.seq < excluded.seq
RETURNING organization_id

-- name: terms
INSERT INTO organization_terms
    (organization_id, terms_seq, effective_at, plan_tier, contract, trialing, limits, reason)
SELECT x.* FROM unnest(
    $1::text[], $2::int[], $3::timestamptz[], $4::text[], $5::jsonb[], $6::bool[], $7::jsonb[],
    $8::text[]
) AS x
WHERE EXISTS (SELECT FROM owner)
ON CONFLICT (organization_id, terms_seq) DO NOTHING

-- name: profiles
-- A profile has no seq of its own: it is written with the position, or not at all.
UPDATE organizations o SET
    name = x.name, stripe_customer_id = x.stripe_customer_id, operator_hold = x.operator_hold,
    payment_hold = x.payment_hold, hold_reason = x.hold_reason,
    cycle_subscription_id = x.cycle_subscription_id, cycle_start = x.cycle_start,
    cycle_end = x.cycle_end, cycle_anchor = x.cycle_anchor, cycle_months = x.cycle_months,
    past_due_since = x.past_due_since,
    threshold_percents = string_to_array(x.threshold_percents, ',')::int[],
    billing_alerts = string_to_array(x.billing_alerts, E'\n'), updated_at = now()
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::bool[], $5::bool[], $6::text[], $7::text[],
    $8::timestamptz[], $9::timestamptz[], $10::timestamptz[], $11::int[], $12::timestamptz[],
    $13::text[], $14::text[]
) AS x (
    organization_id, name, stripe_customer_id, operator_hold, payment_hold, hold_reason,
    cycle_subscription_id, cycle_start, cycle_end, cycle_anchor, cycle_months, past_due_since,
    billing_alerts, threshold_percents
)
JOIN positions USING (organization_id)
WHERE o.id = x.organization_id

-- name: periods
-- Plan and limit come from the period's terms: from this batch ($17, $18) or as stored.
INSERT INTO subscription_usage AS u (
    id, organization_id, billing_period, period_start, period_end, closed, plan_tier, terms_seq,
    agent_minutes_used, agent_minutes_limit, used_ms, recorded_ms, overage_minutes,
    api_calls_used, websocket_ms_used, total_cost_exact, overage_cost_exact, total_cost_usd,
    overage_charges_usd, notified_percents, seq, last_updated
)
SELECT
    x.id, x.organization_id, x.label, x.start_at, x.end_at, x.closed,
    coalesce(x.plan_tier, t.plan_tier), x.terms_seq, div(x.used_ms, 60000)::int,
    coalesce(x.included, (t.limits ->> 'included_minutes')::int), x.used_ms, x.recorded_ms,
    x.overage_minutes, x.api_calls, x.websocket_ms, x.total_exact, x.overage_exact, x.total,
    x.overage, string_to_array(x.percents, ',')::int[], x.seq, now()
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::bool[], $7::int[],
    $8::bigint[], $9::bigint[], $10::int[], $11::bigint[], $12::bigint[], $13::numeric[],
    $14::numeric[], $15::numeric[], $16::numeric[], $17::text[], $18::int[], $19::text[],
    $20::bigint[]
) AS x (
    id, organization_id, label, start_at, end_at, closed, terms_seq, used_ms, recorded_ms,
    overage_minutes, api_calls, websocket_ms, total_exact, overage_exact, total, overage,
    plan_tier, included, percents, seq
)
LEFT JOIN organization_terms t
    ON t.organization_id = x.organization_id AND t.terms_seq = x.terms_seq
WHERE EXISTS (SELECT FROM owner)
ON CONFLICT (organization_id, period_start) DO UPDATE SET
    period_end = excluded.period_end, closed = excluded.closed, plan_tier = excluded.plan_tier,
    terms_seq = excluded.terms_seq, agent_minutes_used = excluded.agent_minutes_used,
    agent_minutes_limit = excluded.agent_minutes_limit, used_ms = excluded.used_ms,
    recorded_ms = excluded.recorded_ms, overage_minutes = excluded.overage_minutes,
    api_calls_used = excluded.api_calls_used, websocket_ms_used = excluded.websocket_ms_used,
    total_cost_exact = excluded.total_cost_exact, overage_cost_exact = excluded.overage_cost_exact,
    total_cost_usd = excluded.total_cost_usd, overage_charges_usd = excluded.overage_charges_usd,
    notified_percents = excluded.notified_percents, seq = excluded.seq,
    last_updated = excluded.last_updated
WHERE u.seq < excluded.seq

-- name: started
INSERT INTO tasks AS t (
    organization_id, task_id, agent_id, user_id, metadata, initial_elapsed_ms, started_at,
    state, outcome, last_heartbeat_at, metered_until, ended_at, elapsed_ms, metered_ms,
    recorded_ms, seq
)
SELECT x.* FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::bigint[], $7::timestamptz[],
    $8::text[], $9::text[], $10::timestamptz[], $11::timestamptz[], $12::timestamptz[],
    $13::bigint[], $14::bigint[], $15::bigint[], $16::bigint[]
) AS x
WHERE EXISTS (SELECT FROM owner)
ON CONFLICT (organization_id, task_id) DO UPDATE SET
    state = excluded.state, outcome = excluded.outcome,
    last_heartbeat_at = excluded.last_heartbeat_at, metered_until = excluded.metered_until,
    ended_at = excluded.ended_at, elapsed_ms = excluded.elapsed_ms,
    metered_ms = excluded.metered_ms, recorded_ms = excluded.recorded_ms, seq = excluded.seq
WHERE t.seq < excluded.seq

-- name: moved
-- No indexed column changes while a task runs, so these updates are heap-only.
UPDATE tasks t SET
    state = x.state, outcome = x.outcome, last_heartbeat_at = x.last_heartbeat_at,
    metered_until = x.metered_until, ended_at = x.ended_at, elapsed_ms = x.elapsed_ms,
    metered_ms = x.metered_ms, recorded_ms = x.recorded_ms, seq = x.seq
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[],
    $7::timestamptz[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[]
) AS x (
    organization_id, task_id, state, outcome, last_heartbeat_at, metered_until, ended_at,
    elapsed_ms, metered_ms, recorded_ms, seq
)
WHERE EXISTS (SELECT FROM owner)
    AND t.organization_id = x.organization_id AND t.task_id = x.task_id AND t.seq < x.seq

-- name: rows
INSERT INTO usage_records (
    id, organization_id, user_id, resource_type, quantity, unit_cost, total_cost, metadata,
    "timestamp", billing_period, kind, source, quantity_ms, recorded_before_ms, task_id, agent_id,
    terms_seq, seq
)
SELECT x.* FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::int[], $6::numeric[], $7::numeric[],
    $8::jsonb[], $9::timestamptz[], $10::text[], $11::text[], $12::text[], $13::bigint[],
    $14::bigint[], $15::text[], $16::text[], $17::int[], $18::bigint[]
) AS x
WHERE EXISTS (SELECT FROM owner)
ON CONFLICT (id) DO NOTHING
RETURNING
    organization_id, "timestamp", billing_period, resource_type, kind, unit_cost, quantity,
    quantity_ms, total_cost

-- name: days
-- The sums per day of the rows that `rows` inserted: of those it found there, nothing.
INSERT INTO usage_days AS d (
    organization_id, day, billing_period, resource_type, kind, unit_cost, quantity, quantity_ms,
    cost
)
SELECT
    organization_id, ("timestamp" AT TIME ZONE 'UTC')::date, billing_period, resource_type, kind,
    unit_cost, sum(quantity), sum(quantity_ms), sum(total_cost)
FROM rows
GROUP BY 1, 2, 3, 4, 5, 6
ON CONFLICT (organization_id, day, billing_period, resource_type, kind, unit_cost) DO UPDATE SET
    quantity = d.quantity + excluded.quantity, quantity_ms = d.quantity_ms + excluded.quantity_ms,
    cost = d.cost + excluded.cost

-- name: events
INSERT INTO usage_events (organization_id, event_id, source, content, amount, record_id, seq)
SELECT x.* FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::bigint[]
) AS x
WHERE EXISTS (SELECT FROM owner)
ON CONFLICT (organization_id, event_id, source) DO NOTHING

-- name: voids
INSERT INTO usage_event_voids
    (organization_id, event_id, source, reason, voided_at, record_id, seq)
SELECT x.* FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::bigint[]
) AS x
WHERE EXISTS (SELECT FROM owner)
ON CONFLICT (organization_id, event_id, source) DO NOTHING

-- name: audits
INSERT INTO audit_log (id, organization_id, at, actor, action, reason, before, after)
SELECT x.* FROM unnest(
    $1::text[], $2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::jsonb[],
    $8::jsonb[]
) AS x
WHERE EXISTS (SELECT FROM owner)
ON CONFLICT (id) DO NOTHING

-- name: findings
INSERT INTO findings (id, organization_id, at, kind, detail)
SELECT x.* FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[], $5::jsonb[]) AS x
WHERE EXISTS (SELECT FROM owner)
ON CONFLICT (id) DO NOTHING

-- name: notifications
INSERT INTO notifications (id, organization_id, at, kind, data, seq)
SELECT x.* FROM unnest(
    $1::text[], $2::text[], $3::timestamptz[], $4::text[], $5::jsonb[], $6::bigint[]
) AS x
WHERE EXISTS (SELECT FROM owner)
ON CONFLICT (id) DO NOTHING
RETURNING id, organization_id, at, kind

-- name: deliveries
-- Who is to hear of the notifications that `notifications` inserted.
INSERT INTO webhook_deliveries (id, endpoint_id, notification_id, created_at, next_attempt_at)
SELECT 'dlv_' || md5(e.id || ' ' || n.id), e.id, n.id, n.at, n.at
FROM notifications n
JOIN webhook_endpoints e USING (organization_id)
WHERE e.disabled_at IS NULL AND (e.kinds = '{}' OR n.kind = ANY (e.kinds))
ON CONFLICT (endpoint_id, notification_id) DO NOTHING

-- name: bury
-- Dead letters are written whoever owns the database: they only say what was set aside.
INSERT INTO dead_letters (id, at, address, kind, error, detail)
SELECT x.* FROM unnest(
    $1::text[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::jsonb[]
) AS x
ON CONFLICT (id) DO NOTHING
