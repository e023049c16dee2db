-- What is known of events, see loading.py. Users and agents are read from the ledger row, where a
-- person who was erased stays erased.

-- name: recall_events
-- $2, $3: sources and ids.
SELECT
    e.source, e.event_id, e.content, e.amount, e.record_id, e.seq,
    r.resource_type, r."timestamp", r.billing_period, r.unit_cost, r.terms_seq, r.agent_id,
    r.user_id, v.reason, v.voided_at, v.record_id AS void_record_id, v.seq AS void_seq
FROM unnest($2::text[], $3::text[]) AS x (source, event_id)
JOIN usage_events e
    ON e.organization_id = $1 AND e.event_id = x.event_id AND e.source = x.source
JOIN usage_records r ON r.id = e.record_id
LEFT JOIN usage_event_voids v
    ON v.organization_id = $1 AND v.event_id = x.event_id AND v.source = x.source

-- name: recall_events_named
SELECT
    e.source, e.event_id, e.content, e.amount, e.record_id, e.seq,
    r.resource_type, r."timestamp", r.billing_period, r.unit_cost, r.terms_seq, r.agent_id,
    r.user_id, v.reason, v.voided_at, v.record_id AS void_record_id, v.seq AS void_seq
FROM (
    SELECT * FROM usage_events
    WHERE organization_id = $1 AND event_id = $2
    ORDER BY source
    LIMIT 2
) e
JOIN usage_records r ON r.id = e.record_id
LEFT JOIN usage_event_voids v
    ON v.organization_id = $1 AND v.event_id = e.event_id AND v.source = e.source
