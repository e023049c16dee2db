CREATE TABLE meterd_owner (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    epoch bigint NOT NULL,
    owner text NOT NULL,
    taken_at timestamptz NOT NULL
);
INSERT INTO meterd_owner (epoch, owner, taken_at) VALUES (0, 'nobody', now());

CREATE TABLE meterd_secrets (name text PRIMARY KEY, value bytea NOT NULL);

CREATE TABLE organizations (
    id text PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9_-]{1,64}$'),
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    stripe_customer_id text UNIQUE,
    operator_hold boolean NOT NULL DEFAULT false,
    payment_hold boolean NOT NULL DEFAULT false,
    hold_reason text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

-- The last durable fact of each actor; one narrow row, so that its updates stay cheap (HOT).
CREATE TABLE organization_positions (
    organization_id text PRIMARY KEY REFERENCES organizations (id),
    seq bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

CREATE TABLE organization_terms (
    organization_id text NOT NULL REFERENCES organizations (id),
    terms_seq integer NOT NULL CHECK (terms_seq >= 1),
    effective_at timestamptz NOT NULL,
    plan_tier text NOT NULL,
    contract jsonb NOT NULL DEFAULT '{}',
    trialing boolean NOT NULL DEFAULT false,
    limits jsonb NOT NULL,          -- the resolved limits and prices in force (core.plan.Limits), so that a catalogue edit re-prices nothing
    reason text NOT NULL,
    PRIMARY KEY (organization_id, terms_seq)
);

CREATE TABLE subscription_usage (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations (id),
    billing_period text NOT NULL,
    period_start timestamptz NOT NULL,
    period_end timestamptz NOT NULL,
    closed boolean NOT NULL DEFAULT false,
    plan_tier text NOT NULL,
    terms_seq integer NOT NULL,
    agent_minutes_used integer NOT NULL DEFAULT 0,
    agent_minutes_limit integer NOT NULL,
    used_ms bigint NOT NULL DEFAULT 0 CHECK (used_ms >= 0),
    recorded_ms bigint NOT NULL DEFAULT 0 CHECK (recorded_ms >= 0 AND recorded_ms <= used_ms),
    overage_minutes integer NOT NULL DEFAULT 0,
    api_calls_used bigint NOT NULL DEFAULT 0,
    websocket_ms_used bigint NOT NULL DEFAULT 0,
    total_cost_exact numeric(18,6) NOT NULL DEFAULT 0,
    overage_cost_exact numeric(18,6) NOT NULL DEFAULT 0,
    total_cost_usd numeric(10,2) NOT NULL DEFAULT 0,
    overage_charges_usd numeric(10,2) NOT NULL DEFAULT 0,
    notified_percents integer[] NOT NULL DEFAULT '{}',
    seq bigint NOT NULL DEFAULT 0,
    last_updated timestamptz NOT NULL,
    UNIQUE (organization_id, billing_period),
    UNIQUE (organization_id, period_start),
    CHECK (period_end > period_start)
) WITH (fillfactor = 50);

CREATE TABLE tasks (
    organization_id text NOT NULL REFERENCES organizations (id),
    task_id text NOT NULL CHECK (length(task_id) BETWEEN 1 AND 128),
    agent_id text NOT NULL CHECK (length(agent_id) BETWEEN 1 AND 128),
    user_id text,
    metadata jsonb NOT NULL DEFAULT '{}',
    initial_elapsed_ms bigint NOT NULL DEFAULT 0,
    state text NOT NULL CHECK (state IN ('running', 'finished', 'lost')),
    outcome text CHECK (outcome IN ('succeeded', 'failed', 'cancelled')),
    started_at timestamptz NOT NULL,
    last_heartbeat_at timestamptz NOT NULL,
    metered_until timestamptz NOT NULL,
    ended_at timestamptz,           -- finished: when; lost: when it was declared lost
    elapsed_ms bigint NOT NULL DEFAULT 0,
    metered_ms bigint NOT NULL DEFAULT 0,
    recorded_ms bigint NOT NULL DEFAULT 0,
    seq bigint NOT NULL,
    PRIMARY KEY (organization_id, task_id),
    CHECK (0 <= recorded_ms AND recorded_ms <= metered_ms AND metered_ms <= elapsed_ms)
) WITH (fillfactor = 50);
CREATE INDEX tasks_live ON tasks (organization_id, ended_at) WHERE state <> 'finished';
CREATE INDEX tasks_by_start ON tasks (organization_id, started_at DESC, task_id);

CREATE TABLE usage_records (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations (id),
    user_id text,
    resource_type text NOT NULL CHECK (resource_type IN ('agent_minute', 'api_call', 'websocket_minute')),
    quantity integer NOT NULL,
    unit_cost numeric(10,6) NOT NULL CHECK (unit_cost >= 0 AND unit_cost < 1),
    total_cost numeric(10,6) NOT NULL CHECK (total_cost = unit_cost * quantity),
    metadata jsonb NOT NULL DEFAULT '{}',
    "timestamp" timestamptz NOT NULL,
    billing_period text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('included', 'overage', 'free_grace', 'metered')),
    source text NOT NULL CHECK (source IN ('task', 'adjustment', 'event', 'void')),
    quantity_ms bigint NOT NULL,
    recorded_before_ms bigint NOT NULL,  -- the period's running total before this row: rows form a chain
    task_id text,
    agent_id text,
    terms_seq integer NOT NULL,
    seq bigint NOT NULL,
    FOREIGN KEY (organization_id, billing_period) REFERENCES subscription_usage (organization_id, billing_period),
    FOREIGN KEY (organization_id, terms_seq) REFERENCES organization_terms (organization_id, terms_seq)
);
CREATE INDEX usage_records_by_period ON usage_records (organization_id, billing_period);
CREATE INDEX usage_records_by_time ON usage_records ("timestamp");
CREATE INDEX usage_records_by_task ON usage_records (organization_id, task_id) WHERE task_id IS NOT NULL;

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER usage_records_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON usage_records
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER organization_terms_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON organization_terms
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE api_keys (
    id text PRIMARY KEY,
    organization_id text REFERENCES organizations (id),   -- NULL: an admin key
    hash bytea NOT NULL UNIQUE,                            -- HMAC-SHA256(pepper, key)
    last4 text NOT NULL,
    scopes text[] NOT NULL,
    name text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX api_keys_by_organization ON api_keys (organization_id, created_at);
CREATE INDEX api_keys_revoked ON api_keys (revoked_at) WHERE revoked_at IS NOT NULL;

CREATE TABLE audit_log (
    id text PRIMARY KEY,
    at timestamptz NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    organization_id text,
    reason text NOT NULL DEFAULT '',
    before jsonb NOT NULL DEFAULT '{}',
    after jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_log_by_time ON audit_log (at DESC, id);
CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE dead_letters (
    id text PRIMARY KEY,
    at timestamptz NOT NULL,
    address text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('message', 'facts')),
    error text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX dead_letters_by_time ON dead_letters (at DESC, id);

CREATE TABLE findings (
    id text PRIMARY KEY,
    at timestamptz NOT NULL,
    kind text NOT NULL,
    organization_id text,
    detail jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX findings_by_time ON findings (at DESC, id);
