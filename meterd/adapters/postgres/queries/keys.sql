-- API keys, see keys.py. The key itself is nowhere, only its HMAC.

-- name: find_key
SELECT id, organization_id, scopes, name, last4, created_at, created_by, revoked_at
FROM api_keys WHERE hash = $1

-- name: add_key
-- Nothing when the organization does not exist. The same key again is the same key.
INSERT INTO api_keys
    (id, organization_id, scopes, name, last4, created_at, created_by, revoked_at, hash)
SELECT
    $1, $2, $3::text[], $4, $5, $6::timestamptz, $7, $8::timestamptz, $9::bytea
WHERE $2::text IS NULL OR EXISTS (SELECT FROM organizations WHERE id = $2)
ON CONFLICT (id) DO UPDATE SET id = excluded.id
RETURNING id

-- name: keys_of
SELECT id, organization_id, scopes, name, last4, created_at, created_by, revoked_at
FROM api_keys WHERE organization_id = $1
ORDER BY created_at DESC, id DESC

-- name: admin_keys
SELECT id, organization_id, scopes, name, last4, created_at, created_by, revoked_at
FROM api_keys WHERE organization_id IS NULL
ORDER BY created_at DESC, id DESC

-- name: revoke_key
-- The first revocation counts; a repeat returns the key as it is.
UPDATE api_keys SET revoked_at = coalesce(revoked_at, $3)
WHERE id = $1 AND organization_id IS NOT DISTINCT FROM $2
RETURNING id, organization_id, scopes, name, last4, created_at, created_by, revoked_at

-- name: revoked_since
SELECT id FROM api_keys WHERE revoked_at >= $1 ORDER BY revoked_at, id

-- name: keep_pepper
INSERT INTO meterd_secrets (name, value) VALUES ('pepper', $1) ON CONFLICT (name) DO NOTHING

-- name: pepper
SELECT value FROM meterd_secrets WHERE name = 'pepper'
