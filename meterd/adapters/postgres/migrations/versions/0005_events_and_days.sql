-- Every event that was ever booked: what makes a copy known. The rest of it is its ledger row.
CREATE TABLE usage_events (
    organization_id text NOT NULL REFERENCES organizations (id),
    event_id text NOT NULL CHECK (length(event_id) BETWEEN 1 AND 256),
    source text NOT NULL CHECK (length(source) BETWEEN 1 AND 256),
    content text NOT NULL,                  -- digest of what it said
    amount bigint NOT NULL CHECK (amount > 0),  -- calls, or milliseconds
    record_id text NOT NULL REFERENCES usage_records (id),
    seq bigint NOT NULL,
    PRIMARY KEY (organization_id, event_id, source)
);
CREATE TRIGGER usage_events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON usage_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE usage_event_voids (
    organization_id text NOT NULL,
    event_id text NOT NULL,
    source text NOT NULL,
    reason text NOT NULL,
    voided_at timestamptz NOT NULL,
    record_id text NOT NULL REFERENCES usage_records (id),
    seq bigint NOT NULL,
    PRIMARY KEY (organization_id, event_id, source),
    FOREIGN KEY (organization_id, event_id, source)
        REFERENCES usage_events (organization_id, event_id, source)
);
CREATE TRIGGER usage_event_voids_append_only BEFORE UPDATE OR DELETE OR TRUNCATE
    ON usage_event_voids FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The ledger summed by UTC day, price band and price: written by the statement that writes the
-- rows, from the rows it really inserted, so it is never behind them and counts none twice.
CREATE TABLE usage_days (
    organization_id text NOT NULL REFERENCES organizations (id),
    day date NOT NULL,
    billing_period text NOT NULL,
    resource_type text NOT NULL,
    kind text NOT NULL,
    unit_cost numeric(10,6) NOT NULL,
    quantity bigint NOT NULL,
    quantity_ms bigint NOT NULL,
    cost numeric(18,6) NOT NULL,
    PRIMARY KEY (organization_id, day, billing_period, resource_type, kind, unit_cost)
) WITH (fillfactor = 50);
INSERT INTO usage_days
SELECT
    organization_id, ("timestamp" AT TIME ZONE 'UTC')::date, billing_period, resource_type, kind,
    unit_cost, sum(quantity), sum(quantity_ms), sum(total_cost)
FROM usage_records
GROUP BY 1, 2, 3, 4, 5, 6;

-- Lists of the ledger, newest first. Ids order only what has the same instant, so they need no
-- place in the indexes, of which they would be the larger part.
CREATE INDEX usage_records_of_organization ON usage_records (organization_id, "timestamp");
CREATE INDEX usage_records_of_period ON usage_records (organization_id, billing_period, "timestamp");
CREATE INDEX usage_records_of_agent ON usage_records (organization_id, agent_id, "timestamp")
    WHERE agent_id IS NOT NULL;
CREATE INDEX usage_records_of_resource ON usage_records (organization_id, resource_type, "timestamp")
    WHERE resource_type <> 'agent_minute';

-- What was answered under an Idempotency-Key; no status: a process died before it could answer.
CREATE TABLE idempotency_keys (
    scope text NOT NULL,                    -- who asked, and which route
    key_hash bytea NOT NULL,
    fingerprint bytea NOT NULL,             -- of the request
    created_at timestamptz NOT NULL,
    status integer,
    sealed bytea,                           -- headers and body, encrypted: a key is shown once
    PRIMARY KEY (scope, key_hash)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
