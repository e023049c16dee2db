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
