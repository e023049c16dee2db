-- Three roles for meterd, none of them a superuser. An administrator runs this once, from psql:
--   psql -f deploy/postgres/roles.sql
-- (-v owner=... -v service=... -v reporting=... -v database=... choose other names.)
-- Then give each a password (\password meterd_owner, ...), and grant as the owner, now and after
-- each upgrade:
--   METERD_DATABASE_URL=postgresql://meterd_owner:...@host/meterd \
--   meterd migrate --grant-service meterd_service --grant-reporting meterd_reporting
\set ON_ERROR_STOP on
\if :{?owner} \else \set owner meterd_owner \endif
\if :{?service} \else \set service meterd_service \endif
\if :{?reporting} \else \set reporting meterd_reporting \endif
\if :{?database} \else \set database meterd \endif

-- Owns the tables and migrates them. Nothing runs as it between upgrades.
CREATE ROLE :"owner" LOGIN;
-- What METERD_DATABASE_URL of `meterd serve` names: no DDL, no change of what is billed or audited.
CREATE ROLE :"service" LOGIN;
-- For people and dashboards: reads one organization at a time, the one in app.organization.
CREATE ROLE :"reporting" LOGIN;
ALTER ROLE :"reporting" SET default_transaction_read_only = on;
ALTER ROLE :"reporting" SET statement_timeout = '30s';

CREATE DATABASE :"database" OWNER :"owner" ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"database" TO :"service", :"reporting";
