-- When a row arrived: rows are appended, so a BRIN index of a few kilobytes finds the new ones.
ALTER TABLE usage_records ADD COLUMN recorded_at timestamptz NOT NULL DEFAULT now();
CREATE INDEX usage_records_by_arrival ON usage_records
    USING brin (recorded_at) WITH (pages_per_range = 32, autosummarize = on);

-- Ended tasks by their end, whatever their organization: the day's tasks, and what retention drops.
CREATE INDEX tasks_by_end ON tasks (ended_at) WHERE ended_at IS NOT NULL;

-- Periods that the clock has ended and nobody has turned.
CREATE INDEX subscription_usage_open ON subscription_usage (period_end) WHERE NOT closed;

CREATE TABLE jobs (
    name text PRIMARY KEY,
    settled_at timestamptz NOT NULL,        -- the latest occurrence that needs no more work
    settled_subject text NOT NULL,
    last_run_at timestamptz,
    last_finished_at timestamptz,
    last_outcome text CHECK (last_outcome IN ('running', 'succeeded', 'failed', 'interrupted')),
    last_error text
);

CREATE TABLE job_runs (
    id text PRIMARY KEY,
    job text NOT NULL REFERENCES jobs (name),
    subject text NOT NULL,
    trigger text NOT NULL CHECK (trigger IN ('schedule', 'operator')),
    tries integer NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    outcome text NOT NULL CHECK (outcome IN ('running', 'succeeded', 'failed', 'interrupted')),
    detail jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX job_runs_by_job ON job_runs (job, started_at DESC);
-- A job runs once at a time and, by its schedule, once for an hour or a day.
CREATE UNIQUE INDEX job_runs_one_at_a_time ON job_runs (job) WHERE outcome = 'running';
CREATE UNIQUE INDEX job_runs_once ON job_runs (job, subject)
    WHERE outcome = 'succeeded' AND trigger = 'schedule';

-- What each organization used on each UTC day. A day in which a period ends has a row for each.
CREATE TABLE daily_metrics (
    organization_id text NOT NULL REFERENCES organizations (id),
    day date NOT NULL,
    resource_type text NOT NULL,
    billing_period text NOT NULL,
    quantity bigint NOT NULL,               -- whole minutes, or calls
    quantity_ms bigint NOT NULL,
    cost numeric(18,6) NOT NULL,
    overage_quantity bigint NOT NULL,
    overage_cost numeric(18,6) NOT NULL,
    ledger_rows integer NOT NULL,
    agents integer NOT NULL,                -- distinct in the whole day: the same on each row of it
    tasks_succeeded integer NOT NULL DEFAULT 0,
    tasks_failed integer NOT NULL DEFAULT 0,
    tasks_cancelled integer NOT NULL DEFAULT 0,
    tasks_lost integer NOT NULL DEFAULT 0,
    PRIMARY KEY (organization_id, day, resource_type, billing_period)
);
CREATE INDEX daily_metrics_by_day ON daily_metrics (day);

-- How far the aggregation has come.
CREATE TABLE metrics_position (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    aggregated_until date,                  -- the last UTC day that is aggregated
    arrived_until timestamptz               -- rows that arrived before this are in
);
INSERT INTO metrics_position DEFAULT VALUES;

-- What each organization was worth a month at the end of each UTC day: an exact fraction of cents.
CREATE TABLE revenue_snapshots (
    day date NOT NULL,
    organization_id text NOT NULL REFERENCES organizations (id),
    plan_tier text NOT NULL,
    status text NOT NULL,
    origin text NOT NULL CHECK (origin IN ('stripe', 'contract', 'none')),
    currency text NOT NULL,
    mrr_numerator numeric NOT NULL,
    mrr_denominator numeric NOT NULL CHECK (mrr_denominator > 0),
    has_paid boolean NOT NULL,
    is_unknown boolean NOT NULL DEFAULT false,  -- a price whose value cannot be told
    operator_hold boolean NOT NULL,
    payment_hold boolean NOT NULL,
    past_due_since timestamptz,
    PRIMARY KEY (organization_id, day)
);
CREATE INDEX revenue_snapshots_by_day ON revenue_snapshots (day);
CREATE TABLE revenue_snapshot_days (day date PRIMARY KEY, taken_at timestamptz NOT NULL);

CREATE TABLE daily_reports (
    day date PRIMARY KEY,
    made_at timestamptz NOT NULL,
    content jsonb NOT NULL,
    markdown text NOT NULL
);

-- Up to where retention has dropped what it names; the audit asks for nothing older.
CREATE TABLE retention_marks (name text PRIMARY KEY, dropped_before timestamptz NOT NULL);
