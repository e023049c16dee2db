-- The subscription an organization follows; part of what its actor knows (core.organization.Profile).
ALTER TABLE organizations
    ADD COLUMN cycle_subscription_id text,
    ADD COLUMN cycle_start timestamptz,
    ADD COLUMN cycle_end timestamptz,
    ADD COLUMN cycle_anchor timestamptz,
    ADD COLUMN cycle_months integer CHECK (cycle_months >= 1),
    ADD COLUMN past_due_since timestamptz,   -- first failure of the oldest unpaid cycle invoice
    ADD COLUMN billing_alerts text[] NOT NULL DEFAULT '{}',
    ADD CONSTRAINT organizations_cycle_is_whole CHECK (
        num_nulls(cycle_subscription_id, cycle_start, cycle_end, cycle_anchor, cycle_months) IN (0, 5)
    );

-- The inbox: every event that was ever verified, for ever. An event is a signal; objects are read again.
CREATE TABLE stripe_events (
    id text PRIMARY KEY,
    type text NOT NULL,
    livemode boolean NOT NULL,
    created_at timestamptz NOT NULL,        -- by Stripe's clock, whole seconds
    subscription_id text,
    customer_id text,
    invoice_id text,
    payload json NOT NULL,                  -- json, not jsonb: kept as it came, \u0000 included
    received_at timestamptz NOT NULL,
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done', 'dead')),
    outcome text,                           -- of a done event: what became of it
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL,
    last_error text,
    done_at timestamptz
);
CREATE INDEX stripe_events_due ON stripe_events (next_attempt_at, id) WHERE state = 'pending';
CREATE INDEX stripe_events_pending ON stripe_events (subscription_id) WHERE state = 'pending';
CREATE INDEX stripe_events_by_state ON stripe_events (state, received_at DESC, id DESC);

-- Objects as they were last read (or, without an API key, as the newest payload said).
CREATE TABLE stripe_subscriptions (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations (id),
    customer_id text NOT NULL,
    status text NOT NULL,
    is_over boolean NOT NULL,
    version text NOT NULL COLLATE "C",      -- later news has the larger one
    object json NOT NULL,
    seen_at timestamptz NOT NULL
);
CREATE INDEX stripe_subscriptions_by_organization ON stripe_subscriptions (organization_id);
CREATE INDEX stripe_subscriptions_by_customer ON stripe_subscriptions (customer_id);

CREATE TABLE stripe_invoices (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations (id),
    subscription_id text NOT NULL,
    customer_id text NOT NULL,
    status text NOT NULL,
    billing_reason text NOT NULL,
    attempt_count integer NOT NULL,
    created_at timestamptz NOT NULL,
    first_failed_at timestamptz,            -- the earliest failure an event told of
    version text NOT NULL COLLATE "C",
    object json NOT NULL,
    seen_at timestamptz NOT NULL
);
CREATE INDEX stripe_invoices_by_subscription ON stripe_invoices (subscription_id, created_at);
CREATE INDEX stripe_invoices_unsettled ON stripe_invoices (organization_id, created_at)
    WHERE status IN ('draft', 'open');
