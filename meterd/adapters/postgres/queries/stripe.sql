-- The inbox of Stripe's events and its objects as last seen, see stripe.py.

-- name: keep_event
INSERT INTO stripe_events (
    id, type, livemode, created_at, subscription_id, customer_id, invoice_id, payload,
    received_at, next_attempt_at
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::json, $9, $9)
ON CONFLICT (id) DO NOTHING
RETURNING id

-- name: due_events
-- $1: now. $2: subjects being worked on. $3: at most so many subjects, longest due first.
WITH due AS (
    SELECT coalesce(subscription_id, id) AS subject, min(next_attempt_at) AS since
    FROM stripe_events
    WHERE state = 'pending' AND next_attempt_at <= $1
        AND NOT coalesce(subscription_id, id) = ANY ($2::text[])
    GROUP BY 1 ORDER BY since, subject LIMIT $3
)
SELECT
    e.id, e.type, e.livemode, e.created_at, e.subscription_id, e.customer_id, e.invoice_id,
    e.payload::text AS payload, e.attempts, e.received_at
FROM due JOIN stripe_events e
    ON e.state = 'pending' AND (e.subscription_id = due.subject
        OR (e.subscription_id IS NULL AND e.id = due.subject))
ORDER BY e.created_at, e.id

-- name: owner
-- The fence: no row when another process owns the database now.
SELECT epoch FROM meterd_owner WHERE epoch = $1 FOR SHARE

-- name: put_subscriptions
INSERT INTO stripe_subscriptions AS s
    (id, organization_id, customer_id, status, is_over, version, object, seen_at)
SELECT x.* FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::bool[], $6::text[], $7::json[],
    $8::timestamptz[]
) AS x
ON CONFLICT (id) DO UPDATE SET
    organization_id = excluded.organization_id, customer_id = excluded.customer_id,
    status = excluded.status, is_over = excluded.is_over, version = excluded.version,
    object = excluded.object, seen_at = excluded.seen_at

-- name: put_invoices
INSERT INTO stripe_invoices AS i (
    id, organization_id, subscription_id, customer_id, status, billing_reason, attempt_count,
    created_at, first_failed_at, version, object, seen_at
)
SELECT x.* FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::int[],
    $8::timestamptz[], $9::timestamptz[], $10::text[], $11::json[], $12::timestamptz[]
) AS x
ON CONFLICT (id) DO UPDATE SET
    organization_id = excluded.organization_id, status = excluded.status,
    billing_reason = excluded.billing_reason, attempt_count = excluded.attempt_count,
    first_failed_at = least(i.first_failed_at, excluded.first_failed_at),
    version = excluded.version, object = excluded.object, seen_at = excluded.seen_at

-- name: done
UPDATE stripe_events e SET
    state = 'done', outcome = x.outcome, done_at = $3, last_error = NULL, attempts = e.attempts + 1
FROM unnest($1::text[], $2::text[]) AS x (id, outcome)
WHERE e.id = x.id AND e.state = 'pending'

-- name: postpone
UPDATE stripe_events SET attempts = attempts + 1, last_error = $2, next_attempt_at = $3
WHERE id = ANY ($1::text[]) AND state = 'pending'

-- name: give_up
UPDATE stripe_events SET state = 'dead', attempts = attempts + 1, last_error = $2
WHERE id = ANY ($1::text[]) AND state = 'pending'

-- name: retry
UPDATE stripe_events SET
    state = 'pending', attempts = 0, next_attempt_at = $2, outcome = NULL, done_at = NULL
WHERE id = $1
RETURNING id

-- name: retry_unknown
-- $1: customer. $2: now.
UPDATE stripe_events SET
    state = 'pending', attempts = 0, next_attempt_at = $2, outcome = NULL, done_at = NULL
WHERE customer_id = $1 AND outcome = 'unknown_customer'
RETURNING id

-- name: inbox
-- $1: state or null. $2, $3: reception and id of the last event seen.
SELECT
    id, type, state, outcome, livemode, subscription_id, customer_id, invoice_id, created_at,
    received_at, attempts, next_attempt_at, last_error
FROM stripe_events
WHERE ($1::text IS NULL OR state = $1) AND (received_at, id) < ($2, $3)
ORDER BY received_at DESC, id DESC
LIMIT $4

-- name: inbox_figures
-- Two index scans: of what is done there may be millions, and none of it is looked at.
SELECT w.waiting, w.oldest, w.retried, w.next_attempt, d.dead
FROM (
    SELECT
        count(*) AS waiting, min(received_at) AS oldest,
        count(*) FILTER (WHERE attempts > 0) AS retried, min(next_attempt_at) AS next_attempt
    FROM stripe_events WHERE state = 'pending'
) w, (SELECT count(*) AS dead FROM stripe_events WHERE state = 'dead') d

-- name: organization_of
-- The customer decides; the metadata of a subscription only where no organization has it.
SELECT id FROM organizations
WHERE stripe_customer_id = $1 OR id = $2
ORDER BY stripe_customer_id IS NOT DISTINCT FROM $1 DESC
LIMIT 1

-- name: seen_subscriptions
SELECT version, object::text AS object FROM stripe_subscriptions WHERE organization_id = $1

-- name: seen_invoices
SELECT version, object::text AS object, first_failed_at FROM stripe_invoices
WHERE (organization_id = $1 AND status IN ('draft', 'open')) OR subscription_id = $2

-- name: unsettled_invoices
SELECT id FROM stripe_invoices
WHERE subscription_id = $1 AND status IN ('draft', 'open') ORDER BY id
