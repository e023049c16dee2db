"""One question to meterd, without a client to open: for scripts and guards in front of work."""

from __future__ import annotations

import httpx

from meterd.client import http_api
from meterd.client.errors import Unreachable
from meterd.client.policy import FailClosed, UnreachablePolicy
from meterd.client.quota import Check, Quota


def check(
    url: str,
    key: str,
    agent_id: str | None = None,
    *,
    unreachable: UnreachablePolicy | None = None,
) -> Check:
    """Ask whether `agent_id`, or a new agent, may start work now; nothing is reserved.

    The answer is true in a condition when it may; `check(…).require()` raises the refusal.

    Units: waits at most 5 s. Errors: Unauthorized, Forbidden, RequestRejected; Unreachable, unless
    `unreachable` is `FailOpen`. Source: GET /v1/quota/check.
    """
    try:
        answer = _get(url, key, http_api.CHECK_PATH, http_api.check_query(agent_id))
        return http_api.read_check(answer.status_code, answer.headers, answer.content)
    except Unreachable as error:
        return http_api.unreachable_check(unreachable or FailClosed(), error)


def quota(url: str, key: str) -> Quota:
    """Give the organization's quota.

    Units: waits at most 5 s. Errors: Unauthorized, Forbidden, Unreachable. Source: GET /v1/quota.
    """
    answer = _get(url, key, http_api.QUOTA_PATH, {})
    return http_api.read_quota(answer.status_code, answer.content)


def _get(url: str, key: str, path: str, query: dict[str, str]) -> httpx.Response:
    try:
        return httpx.get(
            http_api.http_url(url) + path,
            params=query,
            headers=http_api.headers(key),
            timeout=http_api.TIMEOUT_S,
        )
    except httpx.TransportError as error:
        raise Unreachable(f"meterd cannot be reached: {type(error).__name__}.") from error
