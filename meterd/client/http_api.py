"""Quota over plain HTTP: what to ask and what the answers mean, without doing any I/O.

Source: `GET /v1/quota/check` and `GET /v1/quota` (contract §6); refusals are RFC 9457 problems.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from meterd.client.errors import Forbidden, RequestRejected, Unauthorized, Unreachable
from meterd.client.policy import FailOpen, UnreachablePolicy
from meterd.client.quota import Check, Quota


CHECK_PATH = "/v1/quota/check"
QUOTA_PATH = "/v1/quota"
TIMEOUT_S = 5.0
"""Longest wait for an answer; a check sits in front of work that waits for it."""
OK = 200
REFUSED_STATUSES = frozenset({402, 429})


def http_url(url: str) -> str:
    """Give the http(s) base address without a trailing slash.

    Errors: ValueError unless `url` is an absolute http(s) or ws(s) address.
    """
    parts = urlsplit(url)
    schemes = {"ws": "http", "http": "http", "wss": "https", "https": "https"}
    if parts.scheme not in schemes or not parts.netloc:
        raise ValueError(f"url must be like https://meterd.example.com, not {url!r}")
    return urlunsplit((schemes[parts.scheme], parts.netloc, parts.path.rstrip("/"), "", ""))


def headers(key: str) -> dict[str, str]:
    """Give the request headers."""
    return {"Authorization": f"Bearer {key}", "Accept": "application/json"}


def check_query(agent_id: str | None) -> dict[str, str]:
    """Give the query of a check; without an agent it asks for a new one."""
    return {} if agent_id is None else {"agent_id": agent_id}


def read_check(status: int, answer_headers: Mapping[str, str], body: bytes) -> Check:
    """Give the verdict of a quota check.

    Errors: Unauthorized, Forbidden, RequestRejected, Unreachable (5xx or no meterd).
    """
    content = _object(body)
    if status == OK:
        return Check(allowed=True, quota=_quota(content))
    code = str(content.get("code", "refused"))
    if status in REFUSED_STATUSES and "code" in content:
        after = answer_headers.get("retry-after", "")
        return Check(
            allowed=False,
            code=code,
            message=str(content.get("detail") or content.get("title") or code),
            upgrade_url=_text(content, "upgrade_url"),
            resets_at=_text(content, "resets_at"),
            retry_after_s=int(after) if after.isascii() and after.isdigit() else None,
        )
    raise _failure(status, content)


def read_quota(status: int, body: bytes) -> Quota:
    """Give the quota object.

    Errors: Unauthorized, Forbidden, RequestRejected, Unreachable (5xx or no meterd).
    """
    content = _object(body)
    if status == OK:
        return _quota(content)
    raise _failure(status, content)


def unreachable_check(policy: UnreachablePolicy, error: Unreachable) -> Check:
    """Apply the policy to a check nobody answered. Errors: Unreachable under `FailClosed`."""
    if isinstance(policy, FailOpen):
        return Check(allowed=True, code="unreachable", message=error.message)
    raise error


def _failure(
    status: int, content: Mapping[str, Any]
) -> Unauthorized | Forbidden | RequestRejected | Unreachable:
    detail = str(content.get("detail") or content.get("title") or f"HTTP status {status}")
    match status:
        case 401:
            return Unauthorized(detail)
        case 403:
            return Forbidden(detail)
        case 400 | 404 | 422:
            return RequestRejected(detail, code=_text(content, "code"))
        case _:
            return Unreachable(detail, code=_text(content, "code"))


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, Mapping) else {}


def _quota(content: Mapping[str, Any]) -> Quota:
    try:
        return Quota.from_json(content)
    except ValueError as error:
        raise Unreachable(f"The answer is not a quota object: {error}") from error


def _text(content: Mapping[str, Any], name: str) -> str | None:
    value = content.get(name)
    return value if isinstance(value, str) else None
