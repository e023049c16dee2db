# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202, ARG001, PLC0415, T201
"""What a user would build instead of meterd; runs in an environment of its own.

`python server.py KIND URL`, KIND one of redis, postgres, hello; the port goes to standard output.
The quota check is one atomic step in the store, the answer a small JSON document; both peers are
kinder to themselves than meterd is: no agent slots, no plan, no headers, no audit.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys

import uvicorn


CHECK = """
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
local limit = tonumber(redis.call('GET', KEYS[2]) or '60000000')
return {used, limit, used < limit and 1 or 0}
"""
TABLES = """
DROP TABLE IF EXISTS quota, peer_tasks;
CREATE TABLE quota (
    organization_id text PRIMARY KEY, used_ms bigint, limit_ms bigint, checks bigint
);
CREATE TABLE peer_tasks (task_id text PRIMARY KEY, organization_id text, elapsed_ms bigint);
INSERT INTO quota VALUES ('org_1', 0, 60000000, 0);
INSERT INTO peer_tasks SELECT 't' || n, 'org_1', 0 FROM generate_series(0, 999) n;
"""
KEYS = {"Bearer bench": "org_1"}


def answer(used_ms: int, limit_ms: int) -> dict[str, object]:
    """Return what a quota check says."""
    return {
        "organization_id": "org_1",
        "allowed": used_ms < limit_ms,
        "used_ms": used_ms,
        "limit_ms": limit_ms,
    }


async def with_redis(app, url: str):
    """Check with one Lua script."""
    from fastapi import Header, HTTPException
    from redis.asyncio import Redis

    script = Redis.from_url(url, max_connections=256).register_script(CHECK)

    @app.get("/v1/quota/check")
    async def check(authorization: str = Header()):
        organization = KEYS.get(authorization)
        if organization is None:
            raise HTTPException(401)
        used, limit, _ = await script(keys=[f"used:{organization}", f"limit:{organization}"])
        return answer(used, limit)


async def with_postgres(app, url: str):
    """Check with one row update, heartbeat with two in one transaction."""
    import asyncpg
    from fastapi import Header, HTTPException

    pool = await asyncpg.create_pool(url, min_size=16, max_size=32)
    await pool.execute(TABLES)

    def organization_of(authorization: str) -> str:
        if authorization not in KEYS:
            raise HTTPException(401)
        return KEYS[authorization]

    @app.get("/v1/quota/check")
    async def check(authorization: str = Header()):
        row = await pool.fetchrow(
            "UPDATE quota SET checks = checks + 1 WHERE organization_id = $1"
            " RETURNING used_ms, limit_ms",
            organization_of(authorization),
        )
        return answer(*row)

    @app.post("/v1/tasks/{task_id}/heartbeat")
    async def heartbeat(task_id: str, body: dict[str, int], authorization: str = Header()):
        organization = organization_of(authorization)
        row = await pool.fetchrow(
            "WITH moved AS (UPDATE peer_tasks SET elapsed_ms = elapsed_ms + $2 WHERE task_id = $1"
            " RETURNING elapsed_ms) UPDATE quota SET used_ms = used_ms + $2"
            " WHERE organization_id = $3 RETURNING used_ms, limit_ms",
            task_id,
            body["elapsed_ms"],
            organization,
        )
        return answer(*row)


async def hello(scope, receive, send):
    """Answer every request with the same bytes: the ceiling of this server."""
    if scope["type"] != "http":
        return
    body = json.dumps(answer(0, 60_000_000)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def main(kind: str, url: str) -> None:
    """Serve one peer for ever."""
    app = hello
    if kind != "hello":
        from fastapi import FastAPI

        app = FastAPI()
        await (with_redis if kind == "redis" else with_postgres)(app, url)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", log_level="error", access_log=False, lifespan="off"
    )
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    import uvloop

    uvloop.install()
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""))
