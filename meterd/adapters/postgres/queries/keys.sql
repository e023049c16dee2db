-- API keys, see keys.py. The key itself is nowhere, only its HMAC.

-- name: find_key
SELECT id, organization_id, scopes, name, last4, created_at, created_by, revoked_at
FROM api_keys WHERE hash = $1

-- name: add_key
-- Nothing when the organization does not exist. The same key again is the same key, audited once.
WITH new AS (
    INSERT INTO api_keys
        (id, organization_id, scopes, name, last4, created_at, created_by, revoked_at, hash)
    SELECT
        $1, $2, $3::text[], $4, $5, $6::timestamptz, $7, $8::timestamptz, $9::bytea
    WHERE $2::text IS NULL OR EXISTS (SELECT FROM organizations WHERE id = $2)
    ON CONFLICT (id) DO UPDATE SET id = excluded.id
    RETURNING id
), audit AS (
    INSERT INTO audit_log (id, at, actor, action, organization_id, reason, after)
    SELECT
        $10::text, $6, $7, 'key.create', $2, 'made',
        jsonb_build_object('key_id', id, 'scopes', $3, 'name', $4, 'last4', $5)
    FROM new
    ON CONFLICT (id) DO NOTHING
)
SELECT id FROM new

-- name: keys_of
-- $1: organization. $2, $3: when the last key of the page before was made, and its id. $4: size.
SELECT id, organization_id, scopes, name, last4, created_at, created_by, revoked_at
FROM api_keys
WHERE organization_id = $1 AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::text))
ORDER BY created_at DESC, id DESC
LIMIT $4

-- name: admin_keys
-- As `keys_of`, of no organization.
SELECT id, organization_id, scopes, name, last4, created_at, created_by, revoked_at
FROM api_keys
WHERE organization_id IS NULL AND ($1::timestamptz IS NULL OR (created_at, id) < ($1, $2::text))
ORDER BY created_at DESC, id DESC
LIMIT $3

-- name: valid_keys
SELECT count(*) AS keys FROM api_keys
WHERE revoked_at IS NULL
    AND CASE WHEN $1::text IS NULL THEN organization_id IS NULL ELSE organization_id = $1 END

-- name: revoke_key
-- The first revocation counts and is audited; a repeat returns the key as it is. The row lock
-- makes one of two that come together the first.
WITH before AS (
    SELECT id, revoked_at FROM api_keys
    WHERE id = $1 AND organization_id IS NOT DISTINCT FROM $2::text
    FOR NO KEY UPDATE
), found AS (
    UPDATE api_keys k SET revoked_at = coalesce(before.revoked_at, $3::timestamptz)
    FROM before WHERE k.id = before.id
    RETURNING k.id, k.organization_id, k.scopes, k.name, k.last4, k.created_at, k.created_by,
        k.revoked_at
), audit AS (
    INSERT INTO audit_log (id, at, actor, action, organization_id, reason, before, after)
    SELECT
        $4::text, $3, $5::text, 'key.revoke', found.organization_id, 'revoked',
        jsonb_build_object('key_id', found.id, 'last4', last4, 'revoked', false),
        jsonb_build_object('key_id', found.id, 'last4', last4, 'revoked', true)
    FROM found JOIN before ON before.id = found.id AND before.revoked_at IS NULL
    ON CONFLICT (id) DO NOTHING
)
SELECT * FROM found

-- name: revocations
SELECT count(*) FROM api_keys WHERE revoked_at IS NOT NULL

-- name: revoked_among
SELECT id FROM api_keys WHERE id = ANY ($1::text[]) AND revoked_at IS NOT NULL

-- name: keep_pepper
INSERT INTO meterd_secrets (name, value) VALUES ('pepper', $1) ON CONFLICT (name) DO NOTHING

-- name: pepper
SELECT value FROM meterd_secrets WHERE name = 'pepper'
