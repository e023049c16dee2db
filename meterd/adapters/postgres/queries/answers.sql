-- Requests under idempotency keys and what was answered, see answers.py.

-- name: forget
-- A few at a time: who comes next takes more.
DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency_keys WHERE created_at < $1 ORDER BY created_at LIMIT 1000
))

-- name: begin
INSERT INTO idempotency_keys (scope, key_hash, fingerprint, created_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (scope, key_hash) DO NOTHING
RETURNING true AS is_new, fingerprint, created_at, status, sealed

-- name: find
SELECT false AS is_new, fingerprint, created_at, status, sealed
FROM idempotency_keys WHERE scope = $1 AND key_hash = $2

-- name: keep
UPDATE idempotency_keys SET status = $3, sealed = $4 WHERE scope = $1 AND key_hash = $2

-- name: drop
DELETE FROM idempotency_keys WHERE scope = $1 AND key_hash = $2
