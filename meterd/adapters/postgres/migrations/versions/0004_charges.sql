-- What closed periods owe, see core.overage: each row becomes one invoice item, exactly once.
CREATE TABLE overage_charges (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations (id),
    customer_id text,                       -- whom the attempt under way charges
    subscription_id text,                   -- what the organization followed when this was made
    resource_type text NOT NULL CHECK (resource_type IN ('agent_minute', 'api_call', 'websocket_minute')),
    billing_period text NOT NULL,
    period_start timestamptz NOT NULL,
    period_end timestamptz NOT NULL,
    quantity bigint NOT NULL,
    amount_cents bigint NOT NULL CHECK (amount_cents <> 0),
    seq integer NOT NULL CHECK (seq >= 1),
    state text NOT NULL CHECK (state IN (
        'new', 'review', 'manual', 'parked', 'pushing', 'pushed', 'invoiced', 'void'
    )),
    reason text,                            -- why it is held
    attempt integer NOT NULL DEFAULT 0,
    key_at timestamptz,                     -- when the attempt's idempotency key was made
    first_at timestamptz,                   -- when the first attempt was made
    tries integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL,
    last_error text,
    invoice_item_id text UNIQUE,
    invoice_id text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    UNIQUE (organization_id, period_start, resource_type, seq),
    FOREIGN KEY (organization_id, billing_period) REFERENCES subscription_usage (organization_id, billing_period),
    CHECK (state NOT IN ('pushing', 'pushed', 'invoiced') OR (attempt >= 1 AND customer_id IS NOT NULL)),
    CHECK (state NOT IN ('pushed', 'invoiced') OR invoice_item_id IS NOT NULL)
);
CREATE INDEX overage_charges_due ON overage_charges (next_attempt_at, id)
    WHERE state IN ('new', 'pushing', 'pushed');
CREATE INDEX overage_charges_by_state ON overage_charges (state, created_at DESC, id DESC);
CREATE INDEX overage_charges_by_time ON overage_charges (created_at DESC, id DESC);
CREATE INDEX overage_charges_by_period ON overage_charges (period_end);

-- What was charged can be held, pushed or written off; it cannot be another amount, or none.
CREATE FUNCTION keep_amount() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'UPDATE'
        OR (NEW.id, NEW.organization_id, NEW.resource_type, NEW.period_start, NEW.quantity, NEW.amount_cents, NEW.seq)
        IS DISTINCT FROM
        (OLD.id, OLD.organization_id, OLD.resource_type, OLD.period_start, OLD.quantity, OLD.amount_cents, OLD.seq)
    THEN
        RAISE EXCEPTION 'a charge keeps its amount: % refused', TG_OP USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER overage_charges_keep_amount BEFORE UPDATE OR DELETE ON overage_charges
    FOR EACH ROW EXECUTE FUNCTION keep_amount();

-- Up to which fact a closed period is charged.
CREATE TABLE overage_periods (
    organization_id text NOT NULL,
    period_start timestamptz NOT NULL,
    seq bigint NOT NULL,
    charged_at timestamptz NOT NULL,
    PRIMARY KEY (organization_id, period_start),
    FOREIGN KEY (organization_id, period_start) REFERENCES subscription_usage (organization_id, period_start)
);

-- Closed periods by their end: only what is written late changes them, so it costs updates nothing.
CREATE INDEX subscription_usage_closed ON subscription_usage (period_end) WHERE closed;
