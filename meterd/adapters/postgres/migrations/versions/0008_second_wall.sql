-- The second wall between organizations, behind the conditions of our own queries.
-- Who names an organization (SET app.organization) sees and writes that one and no other, whatever
-- a query asks for. Who names none sees all if it may write the ledger, as meterd may, else nothing.
CREATE FUNCTION named_organization() RETURNS text LANGUAGE sql STABLE
RETURN nullif(current_setting('app.organization', true), '');
CREATE FUNCTION sees_every_organization() RETURNS boolean LANGUAGE sql STABLE
RETURN named_organization() IS NULL AND has_table_privilege('usage_records'::regclass, 'INSERT');

-- Sub-selects, so that each is asked once a statement and not once a row. FORCE: the owner of the
-- tables stands behind the wall as everybody else; only superusers and BYPASSRLS do not.
DO $$
DECLARE
    walled text;
BEGIN
    FOREACH walled IN ARRAY ARRAY[
        'organization_positions', 'organization_terms', 'subscription_usage', 'tasks',
        'usage_records', 'api_keys', 'audit_log', 'findings', 'daily_metrics',
        'overage_charges', 'overage_periods', 'revenue_snapshots', 'usage_events',
        'usage_event_voids', 'usage_days', 'notifications', 'webhook_endpoints',
        'stripe_subscriptions', 'stripe_invoices'
    ] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', walled);
        EXECUTE format(
            'CREATE POLICY one_organization ON %I USING '
            '(organization_id = (SELECT named_organization()) OR (SELECT sees_every_organization()))',
            walled
        );
    END LOOP;
END $$;

ALTER TABLE organizations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY one_organization ON organizations USING (
    id = (SELECT named_organization()) OR (SELECT sees_every_organization())
);
ALTER TABLE webhook_deliveries ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY one_organization ON webhook_deliveries USING (
    (SELECT sees_every_organization())
    OR EXISTS (
        SELECT FROM webhook_endpoints e
        WHERE e.id = endpoint_id AND e.organization_id = (SELECT named_organization())
    )
);

-- A role that may not change the ledger may erase a person from it, by this function alone. It asks
-- who is connected, because a restored database has lost the grants of its functions.
CREATE OR REPLACE FUNCTION erase_user(of_organization text, person text, pseudonym text)
RETURNS TABLE (records bigint, ended_tasks bigint) LANGUAGE plpgsql SECURITY DEFINER AS $$
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
DO $$
BEGIN  -- temporary tables last: otherwise one named `tasks` would be erased from instead
    EXECUTE format(
        'ALTER FUNCTION erase_user(text, text, text) SET search_path = %I, pg_temp', current_schema()
    );
END $$;
REVOKE EXECUTE ON FUNCTION erase_user(text, text, text) FROM PUBLIC;

-- What each migration said when it was run, so that one that was edited afterwards is noticed.
CREATE TABLE migration_checksums (
    revision text PRIMARY KEY,
    sha256 text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);
