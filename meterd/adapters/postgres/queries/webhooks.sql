-- Endpoints of outgoing webhooks and what became of their deliveries, see webhooks.py.

-- name: add_endpoint
-- Nothing when the organization has as many as it may ($9). The row lock keeps two from counting
-- the same. The same endpoint again is the one that was made, audited once.
WITH one AS (SELECT id FROM organizations WHERE id = $2 FOR NO KEY UPDATE),
new AS (
    INSERT INTO webhook_endpoints
        (id, organization_id, url, kinds, description, secret, created_at, created_by)
    SELECT $1, one.id, $3, $4::text[], $5, $6, $7::timestamptz, $8
    FROM one
    WHERE (
        SELECT count(*) FROM webhook_endpoints e
        WHERE e.organization_id = one.id AND e.id <> $1
    ) < $9
    ON CONFLICT (id) DO UPDATE SET id = excluded.id
    RETURNING
        id, organization_id, url, kinds, description, secret, created_at, created_by, disabled_at,
        disabled_reason
), audit AS (
    INSERT INTO audit_log (id, at, actor, action, organization_id, reason, after)
    SELECT
        $10::text, $7, $8, 'webhook_endpoint.create', $2, '',
        jsonb_build_object('endpoint_id', id, 'url', url, 'kinds', kinds)
    FROM new
    ON CONFLICT (id) DO NOTHING
)
SELECT * FROM new

-- name: endpoints
SELECT
    id, organization_id, url, kinds, description, secret, created_at, created_by, disabled_at,
    disabled_reason
FROM webhook_endpoints WHERE organization_id = $1
ORDER BY created_at, id

-- name: change_endpoint
WITH known AS (
    SELECT id, url, kinds, disabled_at FROM webhook_endpoints
    WHERE organization_id = $1 AND id = $2 FOR UPDATE
), changed AS (
    UPDATE webhook_endpoints e SET
        url = coalesce($3, e.url), kinds = coalesce($4::text[], e.kinds),
        description = coalesce($5, e.description),
        disabled_at = CASE WHEN $6 THEN coalesce(e.disabled_at, $7::timestamptz)
            WHEN NOT $6 THEN NULL ELSE e.disabled_at END,
        disabled_reason = CASE WHEN NOT $6 THEN NULL ELSE e.disabled_reason END
    FROM known
    WHERE e.id = known.id
    RETURNING e.*
), audit AS (
    INSERT INTO audit_log (id, at, actor, action, organization_id, reason, before, after)
    SELECT
        $8::text, $7, $9, 'webhook_endpoint.change', $1, '',
        jsonb_build_object('endpoint_id', k.id, 'url', k.url, 'kinds', k.kinds,
            'disabled', k.disabled_at IS NOT NULL),
        jsonb_build_object('endpoint_id', c.id, 'url', c.url, 'kinds', c.kinds,
            'disabled', c.disabled_at IS NOT NULL)
    FROM known k JOIN changed c ON c.id = k.id
)
SELECT
    id, organization_id, url, kinds, description, secret, created_at, created_by, disabled_at,
    disabled_reason
FROM changed

-- name: remove_endpoint
WITH gone AS (
    DELETE FROM webhook_endpoints WHERE organization_id = $1 AND id = $2 RETURNING id, url, kinds
), audit AS (
    INSERT INTO audit_log (id, at, actor, action, organization_id, reason, before)
    SELECT
        $4::text, $3::timestamptz, $5, 'webhook_endpoint.delete', $1, '',
        jsonb_build_object('endpoint_id', id, 'url', url, 'kinds', kinds)
    FROM gone
)
SELECT id FROM gone

-- name: deliveries
SELECT d.*, n.kind
FROM webhook_deliveries d
JOIN notifications n ON n.id = d.notification_id
WHERE d.endpoint_id = $1 AND ($2::text IS NULL OR d.state = $2)
    AND d.created_at <= $3 AND (d.created_at < $3 OR d.id > $4)
ORDER BY d.created_at DESC, d.id
LIMIT $5

-- name: add_test
WITH told AS (
    INSERT INTO notifications (id, organization_id, at, kind, data, seq)
    VALUES ($1, $2, $3::timestamptz, $4, '{}', 0)
    RETURNING id
)
INSERT INTO webhook_deliveries (id, endpoint_id, notification_id, created_at, next_attempt_at)
SELECT 'dlv_' || md5($5::text || ' ' || id), $5, id, $3, $3 FROM told
RETURNING *, $4::text AS kind

-- name: resend
UPDATE webhook_deliveries d SET state = 'pending', attempts = 0, next_attempt_at = $3
FROM notifications n
WHERE d.endpoint_id = $1 AND d.id = $2 AND n.id = d.notification_id
RETURNING d.*, n.kind

-- name: due
-- The oldest due delivery of each endpoint that is not busy: one slow endpoint delays no other.
SELECT d.*, n.kind, n.at, n.data, e.organization_id, e.url, e.kinds, e.description, e.secret,
    e.created_at AS endpoint_created_at, e.created_by, e.disabled_at, e.disabled_reason
FROM webhook_endpoints e
CROSS JOIN LATERAL (
    SELECT * FROM webhook_deliveries d
    WHERE d.endpoint_id = e.id AND d.state = 'pending' AND d.next_attempt_at <= $1
    ORDER BY d.next_attempt_at, d.id
    LIMIT 1
) d
JOIN notifications n ON n.id = d.notification_id
WHERE e.disabled_at IS NULL AND e.id <> ALL ($2::text[])
ORDER BY d.next_attempt_at, d.id
LIMIT $3

-- name: settle
UPDATE webhook_deliveries SET
    state = $2, attempts = $3, next_attempt_at = $4, attempted_at = $5, status = $6, error = $7,
    duration_ms = $8
WHERE id = $1

-- name: disable
UPDATE webhook_endpoints SET disabled_at = $2, disabled_reason = $3
WHERE id = $1 AND disabled_at IS NULL

-- name: forget
DELETE FROM notifications n
WHERE n.at < $1 AND NOT EXISTS (
    SELECT FROM webhook_deliveries d WHERE d.notification_id = n.id AND d.state = 'pending'
)
