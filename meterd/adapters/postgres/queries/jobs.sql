-- Jobs and their runs, see jobs.py.

-- name: register
-- A job seen for the first time is settled: what was due before meterd knew it is not caught up.
INSERT INTO jobs (name, settled_at, settled_subject)
SELECT x.* FROM unnest($1::text[], $2::timestamptz[], $3::text[]) AS x
ON CONFLICT (name) DO NOTHING

-- name: records
SELECT * FROM jobs WHERE name = ANY ($1)

-- name: all_records
SELECT * FROM jobs ORDER BY name

-- name: interrupt
WITH interrupted AS (
    UPDATE job_runs SET outcome = 'interrupted', finished_at = $1
    WHERE outcome = 'running' AND EXISTS (SELECT FROM meterd_owner WHERE epoch = $2 FOR SHARE)
    RETURNING job
)
UPDATE jobs SET last_outcome = 'interrupted', last_finished_at = $1
WHERE name IN (SELECT job FROM interrupted)

-- name: begin
-- Only for the owner of the database: nobody would ever end what another process begins.
WITH begun AS (
    INSERT INTO job_runs (id, job, subject, trigger, tries, started_at, outcome)
    SELECT $1, $2, $3, $4, 0, $5::timestamptz, 'running'
    WHERE EXISTS (SELECT FROM meterd_owner WHERE epoch = $6 FOR SHARE)
    ON CONFLICT DO NOTHING
    RETURNING job
)
UPDATE jobs SET last_run_at = $5, last_outcome = 'running'
WHERE name IN (SELECT job FROM begun) RETURNING name

-- name: is_done
SELECT EXISTS (
    SELECT FROM job_runs
    WHERE job = $1 AND subject = $2 AND outcome = 'succeeded' AND trigger = 'schedule'
)

-- name: finish
-- A run that was told to be interrupted has a successor: its own process may linger, and is late.
WITH finished AS (
    UPDATE job_runs SET outcome = $2, finished_at = $3, tries = $4, detail = $5
    WHERE id = $1 AND outcome = 'running' RETURNING job
)
UPDATE jobs SET last_outcome = $2, last_finished_at = $3, last_error = $6
WHERE name IN (SELECT job FROM finished)

-- name: settle
UPDATE jobs SET settled_at = $2, settled_subject = $3 WHERE name = $1

-- name: runs
SELECT * FROM job_runs WHERE job = $1 ORDER BY started_at DESC, id DESC LIMIT $2

-- name: find
INSERT INTO findings (id, organization_id, at, kind, detail)
SELECT x.* FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[], $5::jsonb[]) AS x
ON CONFLICT (id) DO NOTHING
RETURNING id

-- name: findings
-- Newest first; $1, $2: instant and id of the last one seen. $3: kind or null.
SELECT * FROM findings
WHERE (at, id) < ($1, $2) AND ($3::text IS NULL OR kind = $3)
    AND ($4::text IS NULL OR organization_id = $4)
ORDER BY at DESC, id DESC
LIMIT $5
