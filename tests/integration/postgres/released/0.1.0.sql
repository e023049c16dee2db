--
-- PostgreSQL database dump
--


-- Dumped from database version 18.4
-- Dumped by pg_dump version 18.4

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: erase_user(text, text, text); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.erase_user(of_organization text, person text, pseudonym text) RETURNS TABLE(records bigint, ended_tasks bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
BEGIN
    IF NOT has_table_privilege(session_user, 'usage_records', 'INSERT') THEN
        RAISE EXCEPTION '% may not erase', session_user USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM set_config('meterd.erasing', 'on', true);
    UPDATE usage_records SET user_id = pseudonym, metadata = '{}'
    WHERE organization_id = of_organization AND user_id = person;
    GET DIAGNOSTICS records = ROW_COUNT;
    UPDATE tasks SET user_id = pseudonym, metadata = '{}'
    WHERE organization_id = of_organization AND user_id = person;
    GET DIAGNOSTICS ended_tasks = ROW_COUNT;
    PERFORM set_config('meterd.erasing', 'off', true);
    RETURN NEXT;
END $$;


--
-- Name: is_erasing(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.is_erasing() RETURNS boolean
    LANGUAGE sql STABLE
    RETURN (COALESCE(current_setting('meterd.erasing'::text, true), ''::text) = 'on'::text);


--
-- Name: keep_amount(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.keep_amount() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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


--
-- Name: named_organization(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.named_organization() RETURNS text
    LANGUAGE sql STABLE
    RETURN NULLIF(current_setting('app.organization'::text, true), ''::text);


--
-- Name: refuse_change(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;


--
-- Name: refuse_change_of_row(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.refuse_change_of_row() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF NEW.user_id LIKE 'erased\_%' AND NEW.metadata = '{}'::jsonb
        AND to_jsonb(NEW) - 'user_id' - 'metadata' = to_jsonb(OLD) - 'user_id' - 'metadata'
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: usage_records; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.usage_records (
    id text NOT NULL,
    organization_id text NOT NULL,
    user_id text,
    resource_type text NOT NULL,
    quantity integer NOT NULL,
    unit_cost numeric(10,6) NOT NULL,
    total_cost numeric(10,6) NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    "timestamp" timestamp with time zone NOT NULL,
    billing_period text NOT NULL,
    kind text NOT NULL,
    source text NOT NULL,
    quantity_ms bigint NOT NULL,
    recorded_before_ms bigint NOT NULL,
    task_id text,
    agent_id text,
    terms_seq integer NOT NULL,
    seq bigint NOT NULL,
    recorded_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT usage_records_check CHECK ((total_cost = (unit_cost * (quantity)::numeric))),
    CONSTRAINT usage_records_kind_check CHECK ((kind = ANY (ARRAY['included'::text, 'overage'::text, 'free_grace'::text, 'metered'::text]))),
    CONSTRAINT usage_records_resource_type_check CHECK ((resource_type = ANY (ARRAY['agent_minute'::text, 'api_call'::text, 'websocket_minute'::text]))),
    CONSTRAINT usage_records_source_check CHECK ((source = ANY (ARRAY['task'::text, 'adjustment'::text, 'event'::text, 'void'::text]))),
    CONSTRAINT usage_records_unit_cost_check CHECK (((unit_cost >= (0)::numeric) AND (unit_cost < (1)::numeric)))
);

ALTER TABLE ONLY public.usage_records FORCE ROW LEVEL SECURITY;


--
-- Name: sees_every_organization(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.sees_every_organization() RETURNS boolean
    LANGUAGE sql STABLE
    RETURN ((public.named_organization() IS NULL) AND has_table_privilege(('public.usage_records'::regclass)::oid, 'INSERT'::text));


--
-- Name: alembic_version; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);


--
-- Name: api_keys; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.api_keys (
    id text NOT NULL,
    organization_id text,
    hash bytea NOT NULL,
    last4 text NOT NULL,
    scopes text[] NOT NULL,
    name text DEFAULT ''::text NOT NULL,
    created_at timestamp with time zone NOT NULL,
    created_by text NOT NULL,
    revoked_at timestamp with time zone
);

ALTER TABLE ONLY public.api_keys FORCE ROW LEVEL SECURITY;


--
-- Name: audit_log; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.audit_log (
    id text NOT NULL,
    at timestamp with time zone NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    organization_id text,
    reason text DEFAULT ''::text NOT NULL,
    before jsonb DEFAULT '{}'::jsonb NOT NULL,
    after jsonb DEFAULT '{}'::jsonb NOT NULL
);

ALTER TABLE ONLY public.audit_log FORCE ROW LEVEL SECURITY;


--
-- Name: daily_metrics; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.daily_metrics (
    organization_id text NOT NULL,
    day date NOT NULL,
    resource_type text NOT NULL,
    billing_period text NOT NULL,
    quantity bigint NOT NULL,
    quantity_ms bigint NOT NULL,
    cost numeric(18,6) NOT NULL,
    overage_quantity bigint NOT NULL,
    overage_cost numeric(18,6) NOT NULL,
    ledger_rows integer NOT NULL,
    agents integer NOT NULL,
    tasks_succeeded integer DEFAULT 0 NOT NULL,
    tasks_failed integer DEFAULT 0 NOT NULL,
    tasks_cancelled integer DEFAULT 0 NOT NULL,
    tasks_lost integer DEFAULT 0 NOT NULL
);

ALTER TABLE ONLY public.daily_metrics FORCE ROW LEVEL SECURITY;


--
-- Name: daily_reports; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.daily_reports (
    day date NOT NULL,
    made_at timestamp with time zone NOT NULL,
    content jsonb NOT NULL,
    markdown text NOT NULL
);


--
-- Name: dead_letters; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.dead_letters (
    id text NOT NULL,
    at timestamp with time zone NOT NULL,
    address text NOT NULL,
    kind text NOT NULL,
    error text NOT NULL,
    detail jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT dead_letters_kind_check CHECK ((kind = ANY (ARRAY['message'::text, 'facts'::text])))
);


--
-- Name: findings; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.findings (
    id text NOT NULL,
    at timestamp with time zone NOT NULL,
    kind text NOT NULL,
    organization_id text,
    detail jsonb DEFAULT '{}'::jsonb NOT NULL
);

ALTER TABLE ONLY public.findings FORCE ROW LEVEL SECURITY;


--
-- Name: idempotency_keys; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.idempotency_keys (
    scope text NOT NULL,
    key_hash bytea NOT NULL,
    fingerprint bytea NOT NULL,
    created_at timestamp with time zone NOT NULL,
    status integer,
    sealed bytea
);


--
-- Name: job_runs; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.job_runs (
    id text NOT NULL,
    job text NOT NULL,
    subject text NOT NULL,
    trigger text NOT NULL,
    tries integer DEFAULT 0 NOT NULL,
    started_at timestamp with time zone NOT NULL,
    finished_at timestamp with time zone,
    outcome text NOT NULL,
    detail jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT job_runs_outcome_check CHECK ((outcome = ANY (ARRAY['running'::text, 'succeeded'::text, 'failed'::text, 'interrupted'::text]))),
    CONSTRAINT job_runs_trigger_check CHECK ((trigger = ANY (ARRAY['schedule'::text, 'operator'::text])))
);


--
-- Name: jobs; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.jobs (
    name text NOT NULL,
    settled_at timestamp with time zone NOT NULL,
    settled_subject text NOT NULL,
    last_run_at timestamp with time zone,
    last_finished_at timestamp with time zone,
    last_outcome text,
    last_error text,
    CONSTRAINT jobs_last_outcome_check CHECK ((last_outcome = ANY (ARRAY['running'::text, 'succeeded'::text, 'failed'::text, 'interrupted'::text])))
);


--
-- Name: meterd_owner; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.meterd_owner (
    singleton boolean DEFAULT true NOT NULL,
    epoch bigint NOT NULL,
    owner text NOT NULL,
    taken_at timestamp with time zone NOT NULL,
    CONSTRAINT meterd_owner_singleton_check CHECK (singleton)
);


--
-- Name: meterd_secrets; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.meterd_secrets (
    name text NOT NULL,
    value bytea NOT NULL
);


--
-- Name: metrics_position; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.metrics_position (
    singleton boolean DEFAULT true NOT NULL,
    aggregated_until date,
    arrived_until timestamp with time zone,
    CONSTRAINT metrics_position_singleton_check CHECK (singleton)
);


--
-- Name: migration_checksums; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.migration_checksums (
    revision text NOT NULL,
    sha256 text NOT NULL,
    recorded_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: notifications; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.notifications (
    id text NOT NULL,
    organization_id text NOT NULL,
    at timestamp with time zone NOT NULL,
    kind text NOT NULL,
    data jsonb NOT NULL,
    seq bigint NOT NULL
);

ALTER TABLE ONLY public.notifications FORCE ROW LEVEL SECURITY;


--
-- Name: organization_positions; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.organization_positions (
    organization_id text NOT NULL,
    seq bigint DEFAULT 0 NOT NULL
)
WITH (fillfactor='50');

ALTER TABLE ONLY public.organization_positions FORCE ROW LEVEL SECURITY;


--
-- Name: organization_terms; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.organization_terms (
    organization_id text NOT NULL,
    terms_seq integer NOT NULL,
    effective_at timestamp with time zone NOT NULL,
    plan_tier text NOT NULL,
    contract jsonb DEFAULT '{}'::jsonb NOT NULL,
    trialing boolean DEFAULT false NOT NULL,
    limits jsonb NOT NULL,
    reason text NOT NULL,
    CONSTRAINT organization_terms_terms_seq_check CHECK ((terms_seq >= 1))
);

ALTER TABLE ONLY public.organization_terms FORCE ROW LEVEL SECURITY;


--
-- Name: organizations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.organizations (
    id text NOT NULL,
    name text NOT NULL,
    stripe_customer_id text,
    operator_hold boolean DEFAULT false NOT NULL,
    payment_hold boolean DEFAULT false NOT NULL,
    hold_reason text,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    cycle_subscription_id text,
    cycle_start timestamp with time zone,
    cycle_end timestamp with time zone,
    cycle_anchor timestamp with time zone,
    cycle_months integer,
    past_due_since timestamp with time zone,
    billing_alerts text[] DEFAULT '{}'::text[] NOT NULL,
    threshold_percents integer[] DEFAULT '{50,75,80,90,100,110}'::integer[] NOT NULL,
    CONSTRAINT organizations_cycle_is_whole CHECK ((num_nulls(cycle_subscription_id, cycle_start, cycle_end, cycle_anchor, cycle_months) = ANY (ARRAY[0, 5]))),
    CONSTRAINT organizations_cycle_months_check CHECK ((cycle_months >= 1)),
    CONSTRAINT organizations_id_check CHECK ((id ~ '^[A-Za-z0-9_-]{1,64}$'::text)),
    CONSTRAINT organizations_name_check CHECK (((length(name) >= 1) AND (length(name) <= 200)))
);

ALTER TABLE ONLY public.organizations FORCE ROW LEVEL SECURITY;


--
-- Name: overage_charges; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.overage_charges (
    id text NOT NULL,
    organization_id text NOT NULL,
    customer_id text,
    subscription_id text,
    resource_type text NOT NULL,
    billing_period text NOT NULL,
    period_start timestamp with time zone NOT NULL,
    period_end timestamp with time zone NOT NULL,
    quantity bigint NOT NULL,
    amount_cents bigint NOT NULL,
    seq integer NOT NULL,
    state text NOT NULL,
    reason text,
    attempt integer DEFAULT 0 NOT NULL,
    key_at timestamp with time zone,
    first_at timestamp with time zone,
    tries integer DEFAULT 0 NOT NULL,
    next_attempt_at timestamp with time zone NOT NULL,
    last_error text,
    invoice_item_id text,
    invoice_id text,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    CONSTRAINT overage_charges_amount_cents_check CHECK ((amount_cents <> 0)),
    CONSTRAINT overage_charges_check CHECK (((state <> ALL (ARRAY['pushing'::text, 'pushed'::text, 'invoiced'::text])) OR ((attempt >= 1) AND (customer_id IS NOT NULL)))),
    CONSTRAINT overage_charges_check1 CHECK (((state <> ALL (ARRAY['pushed'::text, 'invoiced'::text])) OR (invoice_item_id IS NOT NULL))),
    CONSTRAINT overage_charges_resource_type_check CHECK ((resource_type = ANY (ARRAY['agent_minute'::text, 'api_call'::text, 'websocket_minute'::text]))),
    CONSTRAINT overage_charges_seq_check CHECK ((seq >= 1)),
    CONSTRAINT overage_charges_state_check CHECK ((state = ANY (ARRAY['new'::text, 'review'::text, 'manual'::text, 'parked'::text, 'pushing'::text, 'pushed'::text, 'invoiced'::text, 'void'::text])))
);

ALTER TABLE ONLY public.overage_charges FORCE ROW LEVEL SECURITY;


--
-- Name: overage_periods; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.overage_periods (
    organization_id text NOT NULL,
    period_start timestamp with time zone NOT NULL,
    seq bigint NOT NULL,
    charged_at timestamp with time zone NOT NULL
);

ALTER TABLE ONLY public.overage_periods FORCE ROW LEVEL SECURITY;


--
-- Name: retention_marks; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.retention_marks (
    name text NOT NULL,
    dropped_before timestamp with time zone NOT NULL
);


--
-- Name: revenue_snapshot_days; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.revenue_snapshot_days (
    day date NOT NULL,
    taken_at timestamp with time zone NOT NULL
);


--
-- Name: revenue_snapshots; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.revenue_snapshots (
    day date NOT NULL,
    organization_id text NOT NULL,
    plan_tier text NOT NULL,
    status text NOT NULL,
    origin text NOT NULL,
    currency text NOT NULL,
    mrr_numerator numeric NOT NULL,
    mrr_denominator numeric NOT NULL,
    has_paid boolean NOT NULL,
    is_unknown boolean DEFAULT false NOT NULL,
    operator_hold boolean NOT NULL,
    payment_hold boolean NOT NULL,
    past_due_since timestamp with time zone,
    CONSTRAINT revenue_snapshots_mrr_denominator_check CHECK ((mrr_denominator > (0)::numeric)),
    CONSTRAINT revenue_snapshots_origin_check CHECK ((origin = ANY (ARRAY['stripe'::text, 'contract'::text, 'none'::text])))
);

ALTER TABLE ONLY public.revenue_snapshots FORCE ROW LEVEL SECURITY;


--
-- Name: stripe_events; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.stripe_events (
    id text NOT NULL,
    type text NOT NULL,
    livemode boolean NOT NULL,
    created_at timestamp with time zone NOT NULL,
    subscription_id text,
    customer_id text,
    invoice_id text,
    payload json NOT NULL,
    received_at timestamp with time zone NOT NULL,
    state text DEFAULT 'pending'::text NOT NULL,
    outcome text,
    attempts integer DEFAULT 0 NOT NULL,
    next_attempt_at timestamp with time zone NOT NULL,
    last_error text,
    done_at timestamp with time zone,
    CONSTRAINT stripe_events_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'done'::text, 'dead'::text])))
);


--
-- Name: stripe_invoices; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.stripe_invoices (
    id text NOT NULL,
    organization_id text NOT NULL,
    subscription_id text NOT NULL,
    customer_id text NOT NULL,
    status text NOT NULL,
    billing_reason text NOT NULL,
    attempt_count integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    first_failed_at timestamp with time zone,
    version text NOT NULL COLLATE pg_catalog."C",
    object json NOT NULL,
    seen_at timestamp with time zone NOT NULL
);

ALTER TABLE ONLY public.stripe_invoices FORCE ROW LEVEL SECURITY;


--
-- Name: stripe_subscriptions; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.stripe_subscriptions (
    id text NOT NULL,
    organization_id text NOT NULL,
    customer_id text NOT NULL,
    status text NOT NULL,
    is_over boolean NOT NULL,
    version text NOT NULL COLLATE pg_catalog."C",
    object json NOT NULL,
    seen_at timestamp with time zone NOT NULL
);

ALTER TABLE ONLY public.stripe_subscriptions FORCE ROW LEVEL SECURITY;


--
-- Name: subscription_usage; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.subscription_usage (
    id text NOT NULL,
    organization_id text NOT NULL,
    billing_period text NOT NULL,
    period_start timestamp with time zone NOT NULL,
    period_end timestamp with time zone NOT NULL,
    closed boolean DEFAULT false NOT NULL,
    plan_tier text NOT NULL,
    terms_seq integer NOT NULL,
    agent_minutes_used integer DEFAULT 0 NOT NULL,
    agent_minutes_limit integer NOT NULL,
    used_ms bigint DEFAULT 0 NOT NULL,
    recorded_ms bigint DEFAULT 0 NOT NULL,
    overage_minutes integer DEFAULT 0 NOT NULL,
    api_calls_used bigint DEFAULT 0 NOT NULL,
    websocket_ms_used bigint DEFAULT 0 NOT NULL,
    total_cost_exact numeric(18,6) DEFAULT 0 NOT NULL,
    overage_cost_exact numeric(18,6) DEFAULT 0 NOT NULL,
    total_cost_usd numeric(10,2) DEFAULT 0 NOT NULL,
    overage_charges_usd numeric(10,2) DEFAULT 0 NOT NULL,
    notified_percents integer[] DEFAULT '{}'::integer[] NOT NULL,
    seq bigint DEFAULT 0 NOT NULL,
    last_updated timestamp with time zone NOT NULL,
    CONSTRAINT subscription_usage_check CHECK (((recorded_ms >= 0) AND (recorded_ms <= used_ms))),
    CONSTRAINT subscription_usage_check1 CHECK ((period_end > period_start)),
    CONSTRAINT subscription_usage_used_ms_check CHECK ((used_ms >= 0))
)
WITH (fillfactor='50');

ALTER TABLE ONLY public.subscription_usage FORCE ROW LEVEL SECURITY;


--
-- Name: tasks; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.tasks (
    organization_id text NOT NULL,
    task_id text NOT NULL,
    agent_id text NOT NULL,
    user_id text,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    initial_elapsed_ms bigint DEFAULT 0 NOT NULL,
    state text NOT NULL,
    outcome text,
    started_at timestamp with time zone NOT NULL,
    last_heartbeat_at timestamp with time zone NOT NULL,
    metered_until timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    elapsed_ms bigint DEFAULT 0 NOT NULL,
    metered_ms bigint DEFAULT 0 NOT NULL,
    recorded_ms bigint DEFAULT 0 NOT NULL,
    seq bigint NOT NULL,
    CONSTRAINT tasks_agent_id_check CHECK (((length(agent_id) >= 1) AND (length(agent_id) <= 128))),
    CONSTRAINT tasks_check CHECK (((0 <= recorded_ms) AND (recorded_ms <= metered_ms) AND (metered_ms <= elapsed_ms))),
    CONSTRAINT tasks_outcome_check CHECK ((outcome = ANY (ARRAY['succeeded'::text, 'failed'::text, 'cancelled'::text]))),
    CONSTRAINT tasks_state_check CHECK ((state = ANY (ARRAY['running'::text, 'finished'::text, 'lost'::text]))),
    CONSTRAINT tasks_task_id_check CHECK (((length(task_id) >= 1) AND (length(task_id) <= 128)))
)
WITH (fillfactor='50');

ALTER TABLE ONLY public.tasks FORCE ROW LEVEL SECURITY;


--
-- Name: usage_days; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.usage_days (
    organization_id text NOT NULL,
    day date NOT NULL,
    billing_period text NOT NULL,
    resource_type text NOT NULL,
    kind text NOT NULL,
    unit_cost numeric(10,6) NOT NULL,
    quantity bigint NOT NULL,
    quantity_ms bigint NOT NULL,
    cost numeric(18,6) NOT NULL
)
WITH (fillfactor='50');

ALTER TABLE ONLY public.usage_days FORCE ROW LEVEL SECURITY;


--
-- Name: usage_event_voids; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.usage_event_voids (
    organization_id text NOT NULL,
    event_id text NOT NULL,
    source text NOT NULL,
    reason text NOT NULL,
    voided_at timestamp with time zone NOT NULL,
    record_id text NOT NULL,
    seq bigint NOT NULL
);

ALTER TABLE ONLY public.usage_event_voids FORCE ROW LEVEL SECURITY;


--
-- Name: usage_events; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.usage_events (
    organization_id text NOT NULL,
    event_id text NOT NULL,
    source text NOT NULL,
    content text NOT NULL,
    amount bigint NOT NULL,
    record_id text NOT NULL,
    seq bigint NOT NULL,
    CONSTRAINT usage_events_amount_check CHECK ((amount > 0)),
    CONSTRAINT usage_events_event_id_check CHECK (((length(event_id) >= 1) AND (length(event_id) <= 256))),
    CONSTRAINT usage_events_source_check CHECK (((length(source) >= 1) AND (length(source) <= 256)))
);

ALTER TABLE ONLY public.usage_events FORCE ROW LEVEL SECURITY;


--
-- Name: webhook_deliveries; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.webhook_deliveries (
    id text NOT NULL,
    endpoint_id text NOT NULL,
    notification_id text NOT NULL,
    state text DEFAULT 'pending'::text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    created_at timestamp with time zone NOT NULL,
    next_attempt_at timestamp with time zone NOT NULL,
    attempted_at timestamp with time zone,
    status integer,
    error text,
    duration_ms integer,
    CONSTRAINT webhook_deliveries_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'delivered'::text, 'failed'::text])))
)
WITH (fillfactor='70');

ALTER TABLE ONLY public.webhook_deliveries FORCE ROW LEVEL SECURITY;


--
-- Name: webhook_endpoints; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.webhook_endpoints (
    id text NOT NULL,
    organization_id text NOT NULL,
    url text NOT NULL,
    kinds text[] DEFAULT '{}'::text[] NOT NULL,
    description text DEFAULT ''::text NOT NULL,
    secret text NOT NULL,
    created_at timestamp with time zone NOT NULL,
    created_by text NOT NULL,
    disabled_at timestamp with time zone,
    disabled_reason text,
    CONSTRAINT webhook_endpoints_url_check CHECK (((length(url) >= 1) AND (length(url) <= 2048)))
);

ALTER TABLE ONLY public.webhook_endpoints FORCE ROW LEVEL SECURITY;


--
-- Data for Name: alembic_version; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.alembic_version VALUES ('0009');


--
-- Data for Name: api_keys; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.api_keys VALUES ('key_01a205a98d4d7291b2129cbcbe74ca51', 'acme', '\xbce665040e994fd6cdd77b245d88dd8ed47847483e4e3ba6d7eebb646786c393', 'mCkc', '{agent,manage,read}', '', '2026-11-22 23:48:47.565+00', 'key_bootstrap', NULL);
INSERT INTO public.api_keys VALUES ('key_01a205a98dbd77608433e471cceabfe9', 'globex', '\x047caaea3976fab03703a9536a76578c2777da24a16893d90a3ae7eb2e8981a3', 'YXeY', '{agent,manage,read}', '', '2026-11-22 23:48:47.677+00', 'key_bootstrap', NULL);


--
-- Data for Name: audit_log; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.audit_log VALUES ('aud_01a205a98d00772c97d28d29a99e090e', '2026-11-22 23:48:47.488+00', 'key_bootstrap', 'organization.create', 'acme', 'created', '{}', '{"name": "Acme", "plan": "starter", "contract": {}, "stripe_customer_id": null}');
INSERT INTO public.audit_log VALUES ('aud_01a205a98d4d766984b72186c4bc7e13', '2026-11-22 23:48:47.565+00', 'key_bootstrap', 'key.create', 'acme', '', '{}', '{"name": "", "last4": "mCkc", "key_id": "key_01a205a98d4d7291b2129cbcbe74ca51", "scopes": ["agent", "manage", "read"]}');
INSERT INTO public.audit_log VALUES ('aud_01a205a98d887539ba23aeaea14c7661', '2026-11-22 23:48:47.624+00', 'key_bootstrap', 'organization.create', 'globex', 'created', '{}', '{"name": "Globex", "plan": "enterprise", "contract": {"agent_minutes": 5000}, "stripe_customer_id": null}');
INSERT INTO public.audit_log VALUES ('aud_01a205a98dbd7a1ca030acaac10ea071', '2026-11-22 23:48:47.677+00', 'key_bootstrap', 'key.create', 'globex', '', '{}', '{"name": "", "last4": "YXeY", "key_id": "key_01a205a98dbd77608433e471cceabfe9", "scopes": ["agent", "manage", "read"]}');
INSERT INTO public.audit_log VALUES ('aud_01a205a98ed876b689ab7b2bfde073c4', '2026-11-22 23:48:47.96+00', 'key_bootstrap', 'organization.adjust', 'globex', 'test', '{"used_ms": 0, "billing_period": "2026-11"}', '{"rows": ["rec_01a205a98ed771a2a3e325786b0df5d6"], "used_ms": 180000, "billing_period": "2026-11"}');


--
-- Data for Name: daily_metrics; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: daily_reports; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: dead_letters; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: findings; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: idempotency_keys; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: job_runs; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: jobs; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.jobs VALUES ('period_rollover', '2026-11-22 23:05:00+00', '2026-11-22T23Z', NULL, NULL, NULL, NULL);
INSERT INTO public.jobs VALUES ('task_reconciliation', '2026-11-22 23:20:00+00', '2026-11-22T23Z', NULL, NULL, NULL, NULL);
INSERT INTO public.jobs VALUES ('daily_metrics', '2026-11-22 00:15:00+00', '2026-11-22', NULL, NULL, NULL, NULL);
INSERT INTO public.jobs VALUES ('revenue_snapshot', '2026-11-22 00:20:00+00', '2026-11-22', NULL, NULL, NULL, NULL);
INSERT INTO public.jobs VALUES ('ledger_reconciliation', '2026-11-22 03:00:00+00', '2026-11-22', NULL, NULL, NULL, NULL);
INSERT INTO public.jobs VALUES ('daily_report', '2026-11-22 06:00:00+00', '2026-11-22', NULL, NULL, NULL, NULL);
INSERT INTO public.jobs VALUES ('retention', '2026-11-22 04:00:00+00', '2026-11-22', NULL, NULL, NULL, NULL);


--
-- Data for Name: meterd_owner; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.meterd_owner VALUES (true, 1, 'vm process 13274', '2026-11-22 23:48:44.96777+00');


--
-- Data for Name: meterd_secrets; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.meterd_secrets VALUES ('pepper', '\xf074b6876e520384ffa1dee836e089a10eb82c913ce7e766ba04ad246a852180');


--
-- Data for Name: metrics_position; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.metrics_position VALUES (true, NULL, NULL);


--
-- Data for Name: migration_checksums; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.migration_checksums VALUES ('0001', 'adb1b033061e40070cd80e48df86a50e454f60cf41678b2345b084342a218c92', '2026-11-22 23:48:17.838636+00');
INSERT INTO public.migration_checksums VALUES ('0002', 'd2641fa2192e3c8233a38f7dd6bcf1037393a621475ada0a0b53028aa437f7a2', '2026-11-22 23:48:17.838636+00');
INSERT INTO public.migration_checksums VALUES ('0003', '5f279a5aa55fef39d173741fc73ac9ba15ee2aa9a30100f221cf688488c54914', '2026-11-22 23:48:17.838636+00');
INSERT INTO public.migration_checksums VALUES ('0004', '147314aa30d82708132663dcbc481daec2dd644eb37f399be9d006288deb35a2', '2026-11-22 23:48:17.838636+00');
INSERT INTO public.migration_checksums VALUES ('0005', '674d76c13904115e5f8e52919e79f934b2b18bb2087189da47b9bb2beeb32ba3', '2026-11-22 23:48:17.838636+00');
INSERT INTO public.migration_checksums VALUES ('0006', '834d28a6447c3ada1a49827aabdd90d7efce0e6468ec327fea2de38bb2d47e44', '2026-11-22 23:48:17.838636+00');
INSERT INTO public.migration_checksums VALUES ('0007', '9f568cdea63ec33985da615d5153cb70c01953c5d40444ff99ad53ee3fe898d2', '2026-11-22 23:48:17.838636+00');
INSERT INTO public.migration_checksums VALUES ('0008', '10e07180f15d6cf12c88ff2d51c6f84fb140d810826acbd334e6a7f4aa587a6e', '2026-11-22 23:48:17.838636+00');
INSERT INTO public.migration_checksums VALUES ('0009', 'e7ff0624436e448e741ae55c25ad389a803a634b88e8ef06aee4be84f3420541', '2026-11-22 23:48:18.105488+00');


--
-- Data for Name: notifications; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: organization_positions; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.organization_positions VALUES ('globex', 1);
INSERT INTO public.organization_positions VALUES ('acme', 5);


--
-- Data for Name: organization_terms; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.organization_terms VALUES ('acme', 1, '2026-11-22 23:48:47.488+00', 'starter', '{}', false, '{"agents": 5, "api_call_usd": "0", "grace_billed": true, "hard_limit_ms": 66000000, "base_price_usd": "49.00", "overage_cap_usd": null, "included_minutes": 1000, "new_tasks_in_grace": true, "websocket_minute_usd": "0", "overage_usd_per_minute": "0.05"}', 'created');
INSERT INTO public.organization_terms VALUES ('globex', 1, '2026-11-22 23:48:47.624+00', 'enterprise', '{"agent_minutes": 5000}', false, '{"agents": null, "api_call_usd": "0", "grace_billed": true, "hard_limit_ms": null, "base_price_usd": "0", "overage_cap_usd": null, "included_minutes": 5000, "new_tasks_in_grace": true, "websocket_minute_usd": "0", "overage_usd_per_minute": "0.05"}', 'created');


--
-- Data for Name: organizations; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.organizations VALUES ('acme', 'Acme', NULL, false, false, NULL, '2026-11-22 23:48:47.488+00', '2026-11-22 23:48:47.488+00', NULL, NULL, NULL, NULL, NULL, NULL, '{}', '{50,75,80,90,100,110}');
INSERT INTO public.organizations VALUES ('globex', 'Globex', NULL, false, false, NULL, '2026-11-22 23:48:47.624+00', '2026-11-22 23:48:47.624+00', NULL, NULL, NULL, NULL, NULL, NULL, '{}', '{50,75,80,90,100,110}');


--
-- Data for Name: overage_charges; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: overage_periods; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: retention_marks; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: revenue_snapshot_days; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: revenue_snapshots; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: stripe_events; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: stripe_invoices; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: stripe_subscriptions; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: subscription_usage; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.subscription_usage VALUES ('per_01a19467e800733682b82a033a2d8140', 'globex', '2026-11', '2026-11-01 00:00:00+00', '2026-12-01 00:00:00+00', false, 'enterprise', 1, 3, 5000, 180000, 180000, 0, 0, 0, 0.000000, 0.000000, 0.00, 0.00, '{}', 1, '2026-11-22 23:48:47.986973+00');
INSERT INTO public.subscription_usage VALUES ('per_01a19467e8007edab0563a557dc8ef5d', 'acme', '2026-11', '2026-11-01 00:00:00+00', '2026-12-01 00:00:00+00', false, 'starter', 1, 0, 1000, 2200, 1500, 0, 0, 216, 0.000000, 0.000000, 0.00, 0.00, '{}', 5, '2026-11-22 23:48:48.132518+00');


--
-- Data for Name: tasks; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.tasks VALUES ('acme', 'done', 'a', 'jane', '{"note": "x"}', 0, 'finished', 'succeeded', '2026-11-22 23:48:47.766+00', '2026-11-22 23:48:47.819+00', '2026-11-22 23:48:47.819+00', '2026-11-22 23:48:47.819+00', 1500, 1500, 1500, 2);
INSERT INTO public.tasks VALUES ('acme', 'running', 'b', NULL, '{}', 0, 'running', NULL, '2026-11-22 23:48:47.882+00', '2026-11-22 23:48:47.901+00', '2026-11-22 23:48:47.901+00', NULL, 700, 700, 0, 4);


--
-- Data for Name: usage_days; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.usage_days VALUES ('acme', '2026-11-22', '2026-11', 'agent_minute', 'included', 0.000000, 0, 1500, 0.000000);
INSERT INTO public.usage_days VALUES ('globex', '2026-11-22', '2026-11', 'agent_minute', 'included', 0.000000, 3, 180000, 0.000000);
INSERT INTO public.usage_days VALUES ('acme', '2026-11-22', '2026-11', 'websocket_minute', 'metered', 0.000000, 0, 216, 0.000000);


--
-- Data for Name: usage_event_voids; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: usage_events; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.usage_events VALUES ('acme', 'conn_01a205a98f717265bdbe294c94c2ffb7', 'meterd/connections', '578f515fc09f4cd361302d00ef78d619', 216, 'rec_01a205a98f7073fd83446a5d8020814d', 5);


--
-- Data for Name: usage_records; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.usage_records VALUES ('rec_01a205a98e4a7cc9a1e91568dfcff271', 'acme', 'jane', 'agent_minute', 0, 0.000000, 0.000000, '{"note": "x"}', '2026-11-22 23:48:47.818+00', '2026-11', 'included', 'task', 1500, 0, 'done', 'a', 1, 2, '2026-11-22 23:48:47.838541+00');
INSERT INTO public.usage_records VALUES ('rec_01a205a98ed771a2a3e325786b0df5d6', 'globex', NULL, 'agent_minute', 3, 0.000000, 0.000000, '{"reason": "test"}', '2026-11-22 23:48:47.959+00', '2026-11', 'included', 'adjustment', 180000, 0, NULL, NULL, 1, 1, '2026-11-22 23:48:47.986973+00');
INSERT INTO public.usage_records VALUES ('rec_01a205a98f7073fd83446a5d8020814d', 'acme', NULL, 'websocket_minute', 0, 0.000000, 0.000000, '{}', '2026-11-22 23:48:48.112+00', '2026-11', 'metered', 'event', 216, 0, NULL, NULL, 1, 5, '2026-11-22 23:48:48.132518+00');


--
-- Data for Name: webhook_deliveries; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: webhook_endpoints; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Name: alembic_version alembic_version_pkc; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);


--
-- Name: api_keys api_keys_hash_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_hash_key UNIQUE (hash);


--
-- Name: api_keys api_keys_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (id);


--
-- Name: audit_log audit_log_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.audit_log
    ADD CONSTRAINT audit_log_pkey PRIMARY KEY (id);


--
-- Name: daily_metrics daily_metrics_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.daily_metrics
    ADD CONSTRAINT daily_metrics_pkey PRIMARY KEY (organization_id, day, resource_type, billing_period);


--
-- Name: daily_reports daily_reports_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.daily_reports
    ADD CONSTRAINT daily_reports_pkey PRIMARY KEY (day);


--
-- Name: dead_letters dead_letters_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dead_letters
    ADD CONSTRAINT dead_letters_pkey PRIMARY KEY (id);


--
-- Name: findings findings_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.findings
    ADD CONSTRAINT findings_pkey PRIMARY KEY (id);


--
-- Name: idempotency_keys idempotency_keys_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, key_hash);


--
-- Name: job_runs job_runs_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_runs
    ADD CONSTRAINT job_runs_pkey PRIMARY KEY (id);


--
-- Name: jobs jobs_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (name);


--
-- Name: meterd_owner meterd_owner_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.meterd_owner
    ADD CONSTRAINT meterd_owner_pkey PRIMARY KEY (singleton);


--
-- Name: meterd_secrets meterd_secrets_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.meterd_secrets
    ADD CONSTRAINT meterd_secrets_pkey PRIMARY KEY (name);


--
-- Name: metrics_position metrics_position_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.metrics_position
    ADD CONSTRAINT metrics_position_pkey PRIMARY KEY (singleton);


--
-- Name: migration_checksums migration_checksums_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.migration_checksums
    ADD CONSTRAINT migration_checksums_pkey PRIMARY KEY (revision);


--
-- Name: notifications notifications_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.notifications
    ADD CONSTRAINT notifications_pkey PRIMARY KEY (id);


--
-- Name: organization_positions organization_positions_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.organization_positions
    ADD CONSTRAINT organization_positions_pkey PRIMARY KEY (organization_id);


--
-- Name: organization_terms organization_terms_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.organization_terms
    ADD CONSTRAINT organization_terms_pkey PRIMARY KEY (organization_id, terms_seq);


--
-- Name: organizations organizations_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.organizations
    ADD CONSTRAINT organizations_pkey PRIMARY KEY (id);


--
-- Name: organizations organizations_stripe_customer_id_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.organizations
    ADD CONSTRAINT organizations_stripe_customer_id_key UNIQUE (stripe_customer_id);


--
-- Name: overage_charges overage_charges_invoice_item_id_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.overage_charges
    ADD CONSTRAINT overage_charges_invoice_item_id_key UNIQUE (invoice_item_id);


--
-- Name: overage_charges overage_charges_organization_id_period_start_resource_type__key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.overage_charges
    ADD CONSTRAINT overage_charges_organization_id_period_start_resource_type__key UNIQUE (organization_id, period_start, resource_type, seq);


--
-- Name: overage_charges overage_charges_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.overage_charges
    ADD CONSTRAINT overage_charges_pkey PRIMARY KEY (id);


--
-- Name: overage_periods overage_periods_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.overage_periods
    ADD CONSTRAINT overage_periods_pkey PRIMARY KEY (organization_id, period_start);


--
-- Name: retention_marks retention_marks_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.retention_marks
    ADD CONSTRAINT retention_marks_pkey PRIMARY KEY (name);


--
-- Name: revenue_snapshot_days revenue_snapshot_days_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.revenue_snapshot_days
    ADD CONSTRAINT revenue_snapshot_days_pkey PRIMARY KEY (day);


--
-- Name: revenue_snapshots revenue_snapshots_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.revenue_snapshots
    ADD CONSTRAINT revenue_snapshots_pkey PRIMARY KEY (organization_id, day);


--
-- Name: stripe_events stripe_events_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.stripe_events
    ADD CONSTRAINT stripe_events_pkey PRIMARY KEY (id);


--
-- Name: stripe_invoices stripe_invoices_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.stripe_invoices
    ADD CONSTRAINT stripe_invoices_pkey PRIMARY KEY (id);


--
-- Name: stripe_subscriptions stripe_subscriptions_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.stripe_subscriptions
    ADD CONSTRAINT stripe_subscriptions_pkey PRIMARY KEY (id);


--
-- Name: subscription_usage subscription_usage_organization_id_billing_period_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.subscription_usage
    ADD CONSTRAINT subscription_usage_organization_id_billing_period_key UNIQUE (organization_id, billing_period);


--
-- Name: subscription_usage subscription_usage_organization_id_period_start_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.subscription_usage
    ADD CONSTRAINT subscription_usage_organization_id_period_start_key UNIQUE (organization_id, period_start);


--
-- Name: subscription_usage subscription_usage_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.subscription_usage
    ADD CONSTRAINT subscription_usage_pkey PRIMARY KEY (id);


--
-- Name: tasks tasks_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.tasks
    ADD CONSTRAINT tasks_pkey PRIMARY KEY (organization_id, task_id);


--
-- Name: usage_days usage_days_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.usage_days
    ADD CONSTRAINT usage_days_pkey PRIMARY KEY (organization_id, day, billing_period, resource_type, kind, unit_cost);


--
-- Name: usage_event_voids usage_event_voids_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.usage_event_voids
    ADD CONSTRAINT usage_event_voids_pkey PRIMARY KEY (organization_id, event_id, source);


--
-- Name: usage_events usage_events_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.usage_events
    ADD CONSTRAINT usage_events_pkey PRIMARY KEY (organization_id, event_id, source);


--
-- Name: usage_records usage_records_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.usage_records
    ADD CONSTRAINT usage_records_pkey PRIMARY KEY (id);


--
-- Name: webhook_deliveries webhook_deliveries_endpoint_id_notification_id_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_endpoint_id_notification_id_key UNIQUE (endpoint_id, notification_id);


--
-- Name: webhook_deliveries webhook_deliveries_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (id);


--
-- Name: webhook_endpoints webhook_endpoints_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_endpoints
    ADD CONSTRAINT webhook_endpoints_pkey PRIMARY KEY (id);


--
-- Name: api_keys_by_organization; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX api_keys_by_organization ON public.api_keys USING btree (organization_id, created_at);


--
-- Name: api_keys_revoked; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX api_keys_revoked ON public.api_keys USING btree (revoked_at) WHERE (revoked_at IS NOT NULL);


--
-- Name: audit_log_by_time; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX audit_log_by_time ON public.audit_log USING btree (at DESC, id);


--
-- Name: daily_metrics_by_day; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX daily_metrics_by_day ON public.daily_metrics USING btree (day);


--
-- Name: dead_letters_by_time; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX dead_letters_by_time ON public.dead_letters USING btree (at DESC, id);


--
-- Name: findings_by_time; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX findings_by_time ON public.findings USING btree (at DESC, id);


--
-- Name: idempotency_keys_by_age; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idempotency_keys_by_age ON public.idempotency_keys USING btree (created_at);


--
-- Name: job_runs_by_job; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX job_runs_by_job ON public.job_runs USING btree (job, started_at DESC);


--
-- Name: job_runs_once; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX job_runs_once ON public.job_runs USING btree (job, subject) WHERE ((outcome = 'succeeded'::text) AND (trigger = 'schedule'::text));


--
-- Name: job_runs_one_at_a_time; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX job_runs_one_at_a_time ON public.job_runs USING btree (job) WHERE (outcome = 'running'::text);


--
-- Name: notifications_by_organization; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX notifications_by_organization ON public.notifications USING btree (organization_id, at DESC, id);


--
-- Name: notifications_by_time; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX notifications_by_time ON public.notifications USING btree (at);


--
-- Name: overage_charges_by_period; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX overage_charges_by_period ON public.overage_charges USING btree (period_end);


--
-- Name: overage_charges_by_state; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX overage_charges_by_state ON public.overage_charges USING btree (state, created_at DESC, id DESC);


--
-- Name: overage_charges_by_time; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX overage_charges_by_time ON public.overage_charges USING btree (created_at DESC, id DESC);


--
-- Name: overage_charges_due; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX overage_charges_due ON public.overage_charges USING btree (next_attempt_at, id) WHERE (state = ANY (ARRAY['new'::text, 'pushing'::text, 'pushed'::text]));


--
-- Name: revenue_snapshots_by_day; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX revenue_snapshots_by_day ON public.revenue_snapshots USING btree (day);


--
-- Name: stripe_events_by_state; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX stripe_events_by_state ON public.stripe_events USING btree (state, received_at DESC, id DESC);


--
-- Name: stripe_events_due; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX stripe_events_due ON public.stripe_events USING btree (next_attempt_at, id) WHERE (state = 'pending'::text);


--
-- Name: stripe_events_pending; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX stripe_events_pending ON public.stripe_events USING btree (subscription_id) WHERE (state = 'pending'::text);


--
-- Name: stripe_events_strangers; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX stripe_events_strangers ON public.stripe_events USING btree (customer_id) WHERE (outcome = 'unknown_customer'::text);


--
-- Name: stripe_invoices_by_subscription; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX stripe_invoices_by_subscription ON public.stripe_invoices USING btree (subscription_id, created_at);


--
-- Name: stripe_invoices_unsettled; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX stripe_invoices_unsettled ON public.stripe_invoices USING btree (organization_id, created_at) WHERE (status = ANY (ARRAY['draft'::text, 'open'::text]));


--
-- Name: stripe_subscriptions_by_customer; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX stripe_subscriptions_by_customer ON public.stripe_subscriptions USING btree (customer_id);


--
-- Name: stripe_subscriptions_by_organization; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX stripe_subscriptions_by_organization ON public.stripe_subscriptions USING btree (organization_id);


--
-- Name: subscription_usage_closed; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX subscription_usage_closed ON public.subscription_usage USING btree (period_end) WHERE closed;


--
-- Name: subscription_usage_open; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX subscription_usage_open ON public.subscription_usage USING btree (period_end) WHERE (NOT closed);


--
-- Name: tasks_by_end; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX tasks_by_end ON public.tasks USING btree (ended_at) WHERE (ended_at IS NOT NULL);


--
-- Name: tasks_by_start; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX tasks_by_start ON public.tasks USING btree (organization_id, started_at DESC, task_id);


--
-- Name: tasks_live; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX tasks_live ON public.tasks USING btree (organization_id, ended_at) WHERE (state <> 'finished'::text);


--
-- Name: usage_records_by_arrival; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX usage_records_by_arrival ON public.usage_records USING brin (recorded_at) WITH (pages_per_range='32', autosummarize='on');


--
-- Name: usage_records_by_period; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX usage_records_by_period ON public.usage_records USING btree (organization_id, billing_period);


--
-- Name: usage_records_by_task; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX usage_records_by_task ON public.usage_records USING btree (organization_id, task_id) WHERE (task_id IS NOT NULL);


--
-- Name: usage_records_by_time; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX usage_records_by_time ON public.usage_records USING btree ("timestamp");


--
-- Name: usage_records_of_agent; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX usage_records_of_agent ON public.usage_records USING btree (organization_id, agent_id, "timestamp") WHERE (agent_id IS NOT NULL);


--
-- Name: usage_records_of_organization; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX usage_records_of_organization ON public.usage_records USING btree (organization_id, "timestamp");


--
-- Name: usage_records_of_period; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX usage_records_of_period ON public.usage_records USING btree (organization_id, billing_period, "timestamp");


--
-- Name: usage_records_of_resource; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX usage_records_of_resource ON public.usage_records USING btree (organization_id, resource_type, "timestamp") WHERE (resource_type <> 'agent_minute'::text);


--
-- Name: webhook_deliveries_by_endpoint; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX webhook_deliveries_by_endpoint ON public.webhook_deliveries USING btree (endpoint_id, created_at DESC, id);


--
-- Name: webhook_deliveries_by_notification; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX webhook_deliveries_by_notification ON public.webhook_deliveries USING btree (notification_id);


--
-- Name: webhook_deliveries_due; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX webhook_deliveries_due ON public.webhook_deliveries USING btree (endpoint_id, next_attempt_at) WHERE (state = 'pending'::text);


--
-- Name: webhook_endpoints_by_organization; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX webhook_endpoints_by_organization ON public.webhook_endpoints USING btree (organization_id, created_at);


--
-- Name: audit_log audit_log_append_only; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER audit_log_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.audit_log FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();


--
-- Name: organization_terms organization_terms_append_only; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER organization_terms_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.organization_terms FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();


--
-- Name: overage_charges overage_charges_keep_amount; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER overage_charges_keep_amount BEFORE DELETE OR UPDATE ON public.overage_charges FOR EACH ROW EXECUTE FUNCTION public.keep_amount();


--
-- Name: usage_event_voids usage_event_voids_append_only; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER usage_event_voids_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.usage_event_voids FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();


--
-- Name: usage_events usage_events_append_only; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER usage_events_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.usage_events FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();


--
-- Name: usage_records usage_records_append_only; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER usage_records_append_only BEFORE DELETE OR TRUNCATE ON public.usage_records FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();


--
-- Name: usage_records usage_records_erasure_only; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER usage_records_erasure_only BEFORE UPDATE ON public.usage_records FOR EACH ROW EXECUTE FUNCTION public.refuse_change_of_row();


--
-- Name: usage_records usage_records_no_update; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER usage_records_no_update BEFORE UPDATE ON public.usage_records FOR EACH STATEMENT WHEN ((NOT public.is_erasing())) EXECUTE FUNCTION public.refuse_change();


--
-- Name: api_keys api_keys_organization_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);


--
-- Name: daily_metrics daily_metrics_organization_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.daily_metrics
    ADD CONSTRAINT daily_metrics_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);


--
-- Name: job_runs job_runs_job_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_runs
    ADD CONSTRAINT job_runs_job_fkey FOREIGN KEY (job) REFERENCES public.jobs(name);


--
-- Name: notifications notifications_organization_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.notifications
    ADD CONSTRAINT notifications_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);


--
-- Name: organization_positions organization_positions_organization_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.organization_positions
    ADD CONSTRAINT organization_positions_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);


--
-- Name: organization_terms organization_terms_organization_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.organization_terms
    ADD CONSTRAINT organization_terms_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);


--
-- Name: overage_charges overage_charges_organization_id_billing_period_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.overage_charges
    ADD CONSTRAINT overage_charges_organization_id_billing_period_fkey FOREIGN KEY (organization_id, billing_period) REFERENCES public.subscription_usage(organization_id, billing_period);


--
-- Name: overage_charges overage_charges_organization_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.overage_charges
    ADD CONSTRAINT overage_charges_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);


--
-- Name: overage_periods overage_periods_organization_id_period_start_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.overage_periods
    ADD CONSTRAINT overage_periods_organization_id_period_start_fkey FOREIGN KEY (organization_id, period_start) REFERENCES public.subscription_usage(organization_id, period_start);


--
-- Name: revenue_snapshots revenue_snapshots_organization_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.revenue_snapshots
    ADD CONSTRAINT revenue_snapshots_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);


--
-- Name: stripe_invoices stripe_invoices_organization_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.stripe_invoices
    ADD CONSTRAINT stripe_invoices_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);


--
-- Name: stripe_subscriptions stripe_subscriptions_organization_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.stripe_subscriptions
    ADD CONSTRAINT stripe_subscriptions_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);


--
-- Name: subscription_usage subscription_usage_organization_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.subscription_usage
    ADD CONSTRAINT subscription_usage_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);


--
-- Name: tasks tasks_organization_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.tasks
    ADD CONSTRAINT tasks_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);


--
-- Name: usage_days usage_days_organization_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.usage_days
    ADD CONSTRAINT usage_days_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);


--
-- Name: usage_event_voids usage_event_voids_organization_id_event_id_source_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.usage_event_voids
    ADD CONSTRAINT usage_event_voids_organization_id_event_id_source_fkey FOREIGN KEY (organization_id, event_id, source) REFERENCES public.usage_events(organization_id, event_id, source);


--
-- Name: usage_event_voids usage_event_voids_record_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.usage_event_voids
    ADD CONSTRAINT usage_event_voids_record_id_fkey FOREIGN KEY (record_id) REFERENCES public.usage_records(id);


--
-- Name: usage_events usage_events_organization_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.usage_events
    ADD CONSTRAINT usage_events_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);


--
-- Name: usage_events usage_events_record_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.usage_events
    ADD CONSTRAINT usage_events_record_id_fkey FOREIGN KEY (record_id) REFERENCES public.usage_records(id);


--
-- Name: usage_records usage_records_organization_id_billing_period_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.usage_records
    ADD CONSTRAINT usage_records_organization_id_billing_period_fkey FOREIGN KEY (organization_id, billing_period) REFERENCES public.subscription_usage(organization_id, billing_period);


--
-- Name: usage_records usage_records_organization_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.usage_records
    ADD CONSTRAINT usage_records_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);


--
-- Name: usage_records usage_records_organization_id_terms_seq_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.usage_records
    ADD CONSTRAINT usage_records_organization_id_terms_seq_fkey FOREIGN KEY (organization_id, terms_seq) REFERENCES public.organization_terms(organization_id, terms_seq);


--
-- Name: webhook_deliveries webhook_deliveries_endpoint_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_endpoint_id_fkey FOREIGN KEY (endpoint_id) REFERENCES public.webhook_endpoints(id) ON DELETE CASCADE;


--
-- Name: webhook_deliveries webhook_deliveries_notification_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_notification_id_fkey FOREIGN KEY (notification_id) REFERENCES public.notifications(id) ON DELETE CASCADE;


--
-- Name: webhook_endpoints webhook_endpoints_organization_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_endpoints
    ADD CONSTRAINT webhook_endpoints_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);


--
-- Name: api_keys; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.api_keys ENABLE ROW LEVEL SECURITY;

--
-- Name: audit_log; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.audit_log ENABLE ROW LEVEL SECURITY;

--
-- Name: daily_metrics; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.daily_metrics ENABLE ROW LEVEL SECURITY;

--
-- Name: findings; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.findings ENABLE ROW LEVEL SECURITY;

--
-- Name: notifications; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.notifications ENABLE ROW LEVEL SECURITY;

--
-- Name: api_keys one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.api_keys USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: audit_log one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.audit_log USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: daily_metrics one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.daily_metrics USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: findings one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.findings USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: notifications one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.notifications USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: organization_positions one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.organization_positions USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: organization_terms one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.organization_terms USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: organizations one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.organizations USING (((id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: overage_charges one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.overage_charges USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: overage_periods one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.overage_periods USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: revenue_snapshots one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.revenue_snapshots USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: stripe_invoices one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.stripe_invoices USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: stripe_subscriptions one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.stripe_subscriptions USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: subscription_usage one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.subscription_usage USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: tasks one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.tasks USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: usage_days one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.usage_days USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: usage_event_voids one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.usage_event_voids USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: usage_events one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.usage_events USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: usage_records one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.usage_records USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: webhook_deliveries one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.webhook_deliveries USING ((( SELECT public.sees_every_organization() AS sees_every_organization) OR (EXISTS ( SELECT
   FROM public.webhook_endpoints e
  WHERE ((e.id = webhook_deliveries.endpoint_id) AND (e.organization_id = ( SELECT public.named_organization() AS named_organization)))))));


--
-- Name: webhook_endpoints one_organization; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY one_organization ON public.webhook_endpoints USING (((organization_id = ( SELECT public.named_organization() AS named_organization)) OR ( SELECT public.sees_every_organization() AS sees_every_organization)));


--
-- Name: organization_positions; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.organization_positions ENABLE ROW LEVEL SECURITY;

--
-- Name: organization_terms; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.organization_terms ENABLE ROW LEVEL SECURITY;

--
-- Name: organizations; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.organizations ENABLE ROW LEVEL SECURITY;

--
-- Name: overage_charges; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.overage_charges ENABLE ROW LEVEL SECURITY;

--
-- Name: overage_periods; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.overage_periods ENABLE ROW LEVEL SECURITY;

--
-- Name: revenue_snapshots; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.revenue_snapshots ENABLE ROW LEVEL SECURITY;

--
-- Name: stripe_invoices; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.stripe_invoices ENABLE ROW LEVEL SECURITY;

--
-- Name: stripe_subscriptions; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.stripe_subscriptions ENABLE ROW LEVEL SECURITY;

--
-- Name: subscription_usage; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.subscription_usage ENABLE ROW LEVEL SECURITY;

--
-- Name: tasks; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.tasks ENABLE ROW LEVEL SECURITY;

--
-- Name: usage_days; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.usage_days ENABLE ROW LEVEL SECURITY;

--
-- Name: usage_event_voids; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.usage_event_voids ENABLE ROW LEVEL SECURITY;

--
-- Name: usage_events; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.usage_events ENABLE ROW LEVEL SECURITY;

--
-- Name: usage_records; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.usage_records ENABLE ROW LEVEL SECURITY;

--
-- Name: webhook_deliveries; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.webhook_deliveries ENABLE ROW LEVEL SECURITY;

--
-- Name: webhook_endpoints; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.webhook_endpoints ENABLE ROW LEVEL SECURITY;

--
-- PostgreSQL database dump complete
--


