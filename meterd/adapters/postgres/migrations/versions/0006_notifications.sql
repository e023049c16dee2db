-- When each organization is told how much it has used, in percent of its included minutes.
ALTER TABLE organizations
    ADD COLUMN threshold_percents integer[] NOT NULL DEFAULT '{50,75,80,90,100,110}';

-- What organizations were told: written with the facts that caused it, kept for a while.
CREATE TABLE notifications (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations (id),
    at timestamptz NOT NULL,
    kind text NOT NULL,
    data jsonb NOT NULL,
    seq bigint NOT NULL
);
CREATE INDEX notifications_by_organization ON notifications (organization_id, at DESC, id);
CREATE INDEX notifications_by_time ON notifications (at);

CREATE TABLE webhook_endpoints (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations (id),
    url text NOT NULL CHECK (length(url) BETWEEN 1 AND 2048),
    kinds text[] NOT NULL DEFAULT '{}',     -- empty: every kind
    description text NOT NULL DEFAULT '',
    secret text NOT NULL,                   -- signs what is sent, so it must be readable
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    disabled_at timestamptz,
    disabled_reason text
);
CREATE INDEX webhook_endpoints_by_organization ON webhook_endpoints (organization_id, created_at);

CREATE TABLE webhook_deliveries (
    id text PRIMARY KEY,
    endpoint_id text NOT NULL REFERENCES webhook_endpoints (id) ON DELETE CASCADE,
    notification_id text NOT NULL REFERENCES notifications (id) ON DELETE CASCADE,
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed')),
    attempts integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL,
    next_attempt_at timestamptz NOT NULL,
    attempted_at timestamptz,
    status integer,                         -- of the last answer
    error text,
    duration_ms integer,
    UNIQUE (endpoint_id, notification_id)
) WITH (fillfactor = 70);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint_id, next_attempt_at)
    WHERE state = 'pending';
CREATE INDEX webhook_deliveries_by_endpoint ON webhook_deliveries (endpoint_id, created_at DESC, id);
CREATE INDEX webhook_deliveries_by_notification ON webhook_deliveries (notification_id);
