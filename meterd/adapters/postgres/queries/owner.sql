-- One owner per database, see owner.py.

-- name: lock
SELECT pg_try_advisory_lock($1)

-- name: exists
SELECT to_regclass('meterd_owner') IS NOT NULL

-- name: bump
UPDATE meterd_owner SET epoch = epoch + 1, owner = $1, taken_at = now() RETURNING epoch

-- name: owner
SELECT epoch, owner, taken_at FROM meterd_owner

-- name: terminate_holder
-- A bigint key shows in pg_locks as two halves.
SELECT pg_terminate_backend(pid) FROM pg_locks
WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND pid <> pg_backend_pid()
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint << 32) | objid::bigint = $1
