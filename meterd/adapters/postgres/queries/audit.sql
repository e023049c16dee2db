-- The invariants of the ledger, one statement each, see audit.py. All run in one snapshot.
-- $1: one organization, or null for all. Each returns what differs:
-- organization_id, subject (a period, task or row), what, expected, found.

-- name: sums
-- Rows add up to what their period says is recorded; money and minutes follow from the rows.
WITH summed AS (
    SELECT
        organization_id, billing_period,
        coalesce(sum(quantity_ms) FILTER (WHERE resource_type = 'agent_minute'), 0) AS agent_ms,
        coalesce(sum(quantity) FILTER (WHERE resource_type = 'agent_minute'), 0) AS agent_minutes,
        coalesce(sum(quantity_ms) FILTER (WHERE resource_type = 'websocket_minute'), 0) AS socket_ms,
        coalesce(sum(quantity) FILTER (WHERE resource_type = 'api_call'), 0) AS calls,
        coalesce(sum(quantity) FILTER (WHERE kind = 'overage'), 0) AS overage_minutes,
        coalesce(sum(total_cost) FILTER (WHERE kind = 'overage'), 0) AS overage,
        coalesce(sum(total_cost), 0) AS total
    FROM usage_records
    WHERE $1::text IS NULL OR organization_id = $1
    GROUP BY organization_id, billing_period
)
SELECT
    coalesce(u.organization_id, s.organization_id) AS organization_id,
    coalesce(u.billing_period, s.billing_period) AS subject, c.what, c.expected, c.found
FROM (SELECT * FROM subscription_usage WHERE $1::text IS NULL OR organization_id = $1) u
FULL JOIN summed s USING (organization_id, billing_period)
CROSS JOIN LATERAL (VALUES
    ('recorded_ms', coalesce(s.agent_ms, 0)::numeric, u.recorded_ms::numeric),
    ('whole minutes of the rows', floor(coalesce(u.recorded_ms, 0) / 60000.0), coalesce(s.agent_minutes, 0)),
    ('websocket_ms_used', coalesce(s.socket_ms, 0), u.websocket_ms_used),
    ('api_calls_used', coalesce(s.calls, 0), u.api_calls_used),
    ('overage_minutes', coalesce(s.overage_minutes, 0), u.overage_minutes),
    ('overage_cost_exact', coalesce(s.overage, 0), u.overage_cost_exact),
    ('total_cost_exact', coalesce(s.total, 0), u.total_cost_exact),
    ('total_cost_usd', round(coalesce(s.total, 0), 2), u.total_cost_usd),
    ('overage_charges_usd', round(coalesce(s.overage, 0), 2), u.overage_charges_usd),
    ('agent_minutes_used', floor(u.used_ms / 60000.0), u.agent_minutes_used)
) AS c (what, expected, found)
WHERE c.expected IS DISTINCT FROM c.found

-- name: used
-- Recorded time plus what running tasks have reported but not recorded is the time used.
SELECT
    u.organization_id, u.billing_period AS subject, 'used_ms' AS what,
    u.recorded_ms + CASE WHEN u.closed THEN 0 ELSE coalesce(t.pending_ms, 0) END AS expected,
    u.used_ms AS found
FROM subscription_usage u
LEFT JOIN (
    SELECT organization_id, sum(metered_ms - recorded_ms) AS pending_ms
    FROM tasks
    WHERE state <> 'finished' AND ($1::text IS NULL OR organization_id = $1)
    GROUP BY organization_id
) t USING (organization_id)
WHERE ($1::text IS NULL OR organization_id = $1)
    AND u.used_ms <> u.recorded_ms + CASE WHEN u.closed THEN 0 ELSE coalesce(t.pending_ms, 0) END

-- name: tasks
-- A task's rows are its recorded time; an ended task has nothing left to record, so that rows and
-- unbilled time together are the time it was accepted for. Tasks that retention has dropped are not
-- missed.
SELECT
    coalesce(t.organization_id, r.organization_id) AS organization_id,
    'task ' || coalesce(t.task_id, r.task_id) AS subject, c.what, c.expected, c.found
FROM (SELECT * FROM tasks WHERE $1::text IS NULL OR organization_id = $1) t
FULL JOIN (
    SELECT organization_id, task_id, sum(quantity_ms) AS row_ms, max("timestamp") AS last_at
    FROM usage_records
    WHERE task_id IS NOT NULL AND source = 'task' AND ($1::text IS NULL OR organization_id = $1)
    GROUP BY organization_id, task_id
) r USING (organization_id, task_id)
CROSS JOIN LATERAL (VALUES
    ('recorded_ms', coalesce(r.row_ms, 0)::numeric, t.recorded_ms::numeric),
    (
        'rows + unbilled_ms', t.elapsed_ms::numeric,
        CASE
            WHEN t.state = 'running' THEN t.elapsed_ms
            ELSE coalesce(r.row_ms, 0) + t.elapsed_ms - t.metered_ms
        END
    )
) AS c (what, expected, found)
WHERE c.expected IS DISTINCT FROM c.found
    AND (t.task_id IS NOT NULL OR r.last_at >= coalesce(
        (SELECT dropped_before FROM retention_marks WHERE name = 'tasks'), '-infinity'
    ))

-- name: chain
-- Each row starts where the one before it ended. Facts are ordered by seq; inside a fact time is
-- added first, upwards, and credited then, downwards.
SELECT organization_id, 'row ' || id AS subject, 'recorded_before_ms' AS what,
    expected, recorded_before_ms AS found
FROM (
    SELECT
        id, organization_id, recorded_before_ms,
        coalesce(lag(recorded_before_ms + quantity_ms) OVER (
            PARTITION BY organization_id, billing_period, resource_type
            ORDER BY seq, quantity_ms < 0, recorded_before_ms * sign(quantity_ms), id
        ), 0) AS expected
    FROM usage_records
    WHERE resource_type <> 'api_call' AND ($1::text IS NULL OR organization_id = $1)
) chained
WHERE expected <> recorded_before_ms

-- name: caps
-- No row takes a period's overage past the customer's cap in the row's own terms. Rows in the order
-- of the chain; a lowered cap is no difference until something is billed under it.
SELECT organization_id, 'row ' || id AS subject, 'overage cap' AS what, cap AS expected,
    spent AS found
FROM (
    SELECT
        r.id, r.organization_id, r.total_cost, (t.limits ->> 'overage_cap_usd')::numeric AS cap,
        sum(r.total_cost) OVER (
            PARTITION BY r.organization_id, r.billing_period
            ORDER BY r.seq, r.quantity_ms < 0, r.recorded_before_ms * sign(r.quantity_ms), r.id
        ) AS spent
    FROM usage_records r
    JOIN organization_terms t USING (organization_id, terms_seq)
    WHERE r.kind = 'overage' AND ($1::text IS NULL OR r.organization_id = $1)
) billed
WHERE total_cost > 0 AND spent > cap

-- name: rows
-- A row's minutes, price band, price and reach are what its terms say. Terms may be missing only
-- when the database was tampered with, and then nothing can be said about the price.
SELECT r.organization_id, 'row ' || r.id AS subject, c.what, c.expected, c.found
FROM (
    SELECT
        u.*, recorded_before_ms + quantity_ms AS after_ms,
        least(recorded_before_ms, recorded_before_ms + quantity_ms) AS low_ms,
        greatest(recorded_before_ms, recorded_before_ms + quantity_ms) AS high_ms
    FROM usage_records u
    WHERE $1::text IS NULL OR u.organization_id = $1
) r
LEFT JOIN organization_terms t USING (organization_id, terms_seq)
CROSS JOIN LATERAL (
    SELECT
        (t.limits ->> 'included_minutes')::bigint * 60000 AS line_ms,
        (t.limits ->> 'hard_limit_ms')::bigint AS hard_ms,
        CASE WHEN (t.limits ->> 'grace_billed')::bool THEN 'overage' ELSE 'free_grace' END AS past,
        r.resource_type = 'agent_minute' AS is_agent
) l
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN NOT l.is_agent THEN 'metered'
        WHEN r.high_ms <= l.line_ms THEN 'included'
        WHEN r.low_ms >= l.line_ms THEN l.past
        ELSE 'cut at the line'
    END AS kind
) k
CROSS JOIN LATERAL (VALUES
    ('terms', r.terms_seq::text, t.terms_seq::text),
    (
        'quantity', CASE
            WHEN r.resource_type = 'api_call' THEN r.quantity
            ELSE floor(r.after_ms / 60000.0) - floor(r.recorded_before_ms / 60000.0)
        END::bigint::text, r.quantity::text
    ),
    ('kind', CASE WHEN t.terms_seq IS NULL THEN r.kind ELSE k.kind END, r.kind),
    (
        'unit_cost', CASE
            WHEN t.terms_seq IS NULL THEN r.unit_cost
            WHEN r.resource_type = 'api_call' THEN (t.limits ->> 'api_call_usd')::numeric(10, 6)
            WHEN NOT l.is_agent THEN (t.limits ->> 'websocket_minute_usd')::numeric(10, 6)
            WHEN r.kind = 'overage' THEN (t.limits ->> 'overage_usd_per_minute')::numeric(10, 6)
            ELSE 0::numeric(10, 6)
        END::text, r.unit_cost::text
    ),
    ('total_cost', (r.unit_cost * r.quantity)::numeric(10, 6)::text, r.total_cost::text),
    (
        'hard limit', least(r.after_ms, l.hard_ms)::text, CASE
            WHEN l.is_agent AND r.quantity_ms > 0 AND r.after_ms > l.hard_ms THEN r.after_ms
            ELSE least(r.after_ms, l.hard_ms)
        END::text
    )
) AS c (what, expected, found)
WHERE c.expected IS DISTINCT FROM c.found

-- name: periods
-- Half-open, without gap or overlap, the last one open; plan and limit are those of their terms.
SELECT u.organization_id, u.billing_period AS subject, c.what, c.expected, c.found
FROM (
    SELECT
        p.*, lead(period_start) OVER by_start AS next_start,
        lead(billing_period) OVER by_start IS NULL AS is_last
    FROM subscription_usage p
    WHERE $1::text IS NULL OR p.organization_id = $1
    WINDOW by_start AS (PARTITION BY p.organization_id ORDER BY p.period_start)
) u
LEFT JOIN organization_terms t USING (organization_id, terms_seq)
CROSS JOIN LATERAL (VALUES
    ('period_end', coalesce(u.next_start, u.period_end)::text, u.period_end::text),
    ('closed', (NOT u.is_last)::text, u.closed::text),
    ('terms', u.terms_seq::text, t.terms_seq::text),
    ('plan_tier', coalesce(t.plan_tier, u.plan_tier), u.plan_tier),
    (
        'agent_minutes_limit',
        coalesce(t.limits ->> 'included_minutes', u.agent_minutes_limit::text),
        u.agent_minutes_limit::text
    )
) AS c (what, expected, found)
WHERE c.expected IS DISTINCT FROM c.found

-- name: positions
-- Nothing is stored that is newer than the organization's durable position.
SELECT o.id AS organization_id, 'position' AS subject, 'seq' AS what,
    latest.seq AS expected, p.seq AS found
FROM organizations o
LEFT JOIN organization_positions p ON p.organization_id = o.id
CROSS JOIN LATERAL (
    SELECT greatest(
        (SELECT max(seq) FROM usage_records r WHERE r.organization_id = o.id),
        (SELECT max(seq) FROM tasks t WHERE t.organization_id = o.id),
        (SELECT max(seq) FROM subscription_usage u WHERE u.organization_id = o.id), 0
    ) AS seq
) latest
WHERE ($1::text IS NULL OR o.id = $1) AND (p.seq IS NULL OR p.seq < latest.seq)

-- name: slots
-- Distinct agents at work never exceed the most that any terms since the oldest of their tasks
-- allowed: each was admitted, or resumed, when there was a free slot. (Ended tasks say nothing:
-- a lost task gives its slot away, and when it was lost is not kept once it is resumed.)
SELECT organization_id, 'agents' AS subject, 'at once' AS what,
    allowed AS expected, agents AS found
FROM (
    SELECT organization_id, count(DISTINCT agent_id) AS agents, min(started_at) AS since
    FROM tasks
    WHERE state = 'running' AND ($1::text IS NULL OR organization_id = $1)
    GROUP BY organization_id
) running
CROSS JOIN LATERAL (
    SELECT max((limits ->> 'agents')::bigint) AS allowed,
        bool_or(limits ->> 'agents' IS NULL) AS is_unlimited
    FROM organization_terms t
    WHERE t.organization_id = running.organization_id AND t.terms_seq >= coalesce((
        SELECT max(terms_seq) FROM organization_terms e
        WHERE e.organization_id = running.organization_id AND e.effective_at <= running.since
    ), 1)
) terms
WHERE NOT is_unlimited AND agents > allowed

-- name: events
-- Events that were not taken back are what the ledger says of events, period by period.
SELECT
    coalesce(e.organization_id, r.organization_id) AS organization_id,
    coalesce(e.billing_period, r.billing_period) AS subject,
    coalesce(e.resource_type, r.resource_type) || ' of events' AS what,
    coalesce(e.amount, 0) AS expected, coalesce(r.amount, 0) AS found
FROM (
    SELECT
        u.organization_id, u.billing_period, u.resource_type,
        sum(CASE WHEN v.seq IS NULL THEN e.amount ELSE 0 END) AS amount
    FROM usage_events e
    JOIN usage_records u ON u.id = e.record_id
    LEFT JOIN usage_event_voids v
        ON v.organization_id = e.organization_id AND v.event_id = e.event_id
        AND v.source = e.source
    WHERE $1::text IS NULL OR e.organization_id = $1
    GROUP BY 1, 2, 3
) e
FULL JOIN (
    SELECT
        organization_id, billing_period, resource_type,
        sum(CASE WHEN resource_type = 'api_call' THEN quantity ELSE quantity_ms END) AS amount
    FROM usage_records
    WHERE source IN ('event', 'void') AND ($1::text IS NULL OR organization_id = $1)
    GROUP BY 1, 2, 3
) r USING (organization_id, billing_period, resource_type)
WHERE coalesce(e.amount, 0) <> coalesce(r.amount, 0)

-- name: days
-- The sums per day are those of the rows.
SELECT
    coalesce(d.organization_id, r.organization_id) AS organization_id,
    coalesce(d.day, r.day)::text AS subject, c.what, c.expected, c.found
FROM (SELECT * FROM usage_days WHERE $1::text IS NULL OR organization_id = $1) d
FULL JOIN (
    SELECT
        organization_id, ("timestamp" AT TIME ZONE 'UTC')::date AS day, billing_period,
        resource_type, kind, unit_cost, sum(quantity) AS quantity, sum(quantity_ms) AS quantity_ms,
        sum(total_cost) AS cost
    FROM usage_records
    WHERE $1::text IS NULL OR organization_id = $1
    GROUP BY 1, 2, 3, 4, 5, 6
) r USING (organization_id, day, billing_period, resource_type, kind, unit_cost)
CROSS JOIN LATERAL (VALUES
    ('quantity', coalesce(r.quantity, 0)::numeric, coalesce(d.quantity, 0)::numeric),
    ('quantity_ms', coalesce(r.quantity_ms, 0), coalesce(d.quantity_ms, 0)),
    ('cost', coalesce(r.cost, 0), coalesce(d.cost, 0))
) AS c (what, expected, found)
WHERE c.expected <> c.found

-- name: charges
-- What a closed period was charged, void and parked included, is its cost rounded half-up, once.
-- A period that changed since it was charged is not looked at: its next charge is under way.
SELECT
    m.organization_id, u.billing_period AS subject, 'charged cents' AS what,
    round(coalesce(r.cost, 0) * 100) AS expected, coalesce(c.cents, 0) AS found
FROM overage_periods m
JOIN subscription_usage u
    ON u.organization_id = m.organization_id AND u.period_start = m.period_start
LEFT JOIN LATERAL (
    SELECT sum(r.total_cost) AS cost FROM usage_records r
    WHERE r.organization_id = u.organization_id AND r.billing_period = u.billing_period
) r ON true
LEFT JOIN LATERAL (
    SELECT sum(c.amount_cents) AS cents FROM overage_charges c
    WHERE c.organization_id = m.organization_id AND c.period_start = m.period_start
) c ON true
WHERE ($1::text IS NULL OR m.organization_id = $1) AND m.seq >= u.seq
    AND round(coalesce(r.cost, 0) * 100) <> coalesce(c.cents, 0)

-- name: organizations
SELECT count(*) AS n FROM organizations WHERE $1::text IS NULL OR id = $1

-- name: task_positions
SELECT t.* FROM tasks t
WHERE t.task_id = $2 AND ($1::text IS NULL OR t.organization_id = $1)
ORDER BY t.organization_id

-- name: task_rows
SELECT r.* FROM usage_records r
WHERE r.task_id = $2 AND ($1::text IS NULL OR r.organization_id = $1)
ORDER BY r.organization_id, r.seq, r.recorded_before_ms
