-- One person's data, see people.py.

-- name: records
SELECT id, resource_type, kind, quantity, quantity_ms, unit_cost::text, total_cost::text,
    billing_period, "timestamp", task_id, agent_id, metadata
FROM usage_records
WHERE organization_id = $1 AND user_id = $2
ORDER BY "timestamp", id

-- name: tasks
SELECT task_id, agent_id, state, outcome, started_at, ended_at, elapsed_ms, metered_ms, metadata
FROM tasks
WHERE organization_id = $1 AND user_id = $2
ORDER BY started_at, task_id

-- name: erase
SELECT records, ended_tasks FROM erase_user($1, $2, $3)

-- name: keys
-- $2: the person as who made it.
SELECT id, name, last4, created_at, revoked_at FROM api_keys
WHERE organization_id = $1 AND created_by = $2
ORDER BY created_at, id

-- name: endpoints
SELECT id, url, description, created_at, disabled_at FROM webhook_endpoints
WHERE organization_id = $1 AND created_by = $2
ORDER BY created_at, id

-- name: disown_keys
UPDATE api_keys SET created_by = $3 WHERE organization_id = $1 AND created_by = $2

-- name: disown_endpoints
UPDATE webhook_endpoints SET created_by = $3 WHERE organization_id = $1 AND created_by = $2
