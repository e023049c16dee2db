-- The ledger stays append-only; the one exception takes a person out of it, and nothing else.
CREATE FUNCTION is_erasing() RETURNS boolean LANGUAGE sql STABLE
RETURN coalesce(current_setting('meterd.erasing', true), '') = 'on';
CREATE FUNCTION refuse_change_of_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.user_id LIKE 'erased\_%' AND NEW.metadata = '{}'::jsonb
        AND to_jsonb(NEW) - 'user_id' - 'metadata' = to_jsonb(OLD) - 'user_id' - 'metadata'
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;
DROP TRIGGER usage_records_append_only ON usage_records;
CREATE TRIGGER usage_records_append_only BEFORE DELETE OR TRUNCATE ON usage_records
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_records_no_update BEFORE UPDATE ON usage_records
    FOR EACH STATEMENT WHEN (NOT is_erasing()) EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_records_erasure_only BEFORE UPDATE ON usage_records
    FOR EACH ROW EXECUTE FUNCTION refuse_change_of_row();

-- Replaces a person by a pseudonym in rows and ended tasks; amounts, times and ids stay.
CREATE FUNCTION erase_user(of_organization text, person text, pseudonym text)
RETURNS TABLE (records bigint, ended_tasks bigint) LANGUAGE plpgsql AS $$
BEGIN
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
