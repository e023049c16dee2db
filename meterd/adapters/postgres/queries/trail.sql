-- The audit log and the dead letters as operators read them, see trail.py.

-- name: note
INSERT INTO audit_log (id, at, actor, action, organization_id, reason, before, after)
VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8::jsonb)
ON CONFLICT (id) DO NOTHING

-- name: audit
-- $1, $2: organization and action, or null. $3, $4: instant and id of the last one seen.
SELECT id, at, actor, action, organization_id, reason, before, after FROM audit_log
WHERE ($1::text IS NULL OR organization_id = $1)
    AND ($2::text IS NULL OR action = $2)
    AND (at, id) < ($3, $4)
ORDER BY at DESC, id DESC
LIMIT $5

-- name: dead_letters
-- $1: address or null. $2, $3: instant and id of the last one seen.
SELECT id, at, address, kind, error, detail FROM dead_letters
WHERE ($1::text IS NULL OR address = $1) AND (at, id) < ($2, $3)
ORDER BY at DESC, id DESC
LIMIT $4
