"""The OpenAPI 3.1 document, made from what validates and answers, and the page that shows it.

Rule 1: paths come from the routes that are registered, words from their handlers' docstrings,
shapes from the structures of `openapi_routes`, refusals from the table of problems.
Rule 2: a route that the table does not know is in the document all the same, without its shapes.
Rule 3: the page needs nothing from elsewhere: one file, one script, both ours.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from typing import Any, Final

import msgspec
from quart import Blueprint, Quart, Response, current_app

from meterd import __version__
from meterd.web.event_schema import CLOUD_EXTENSIONS, CloudEventBody
from meterd.web.idempotency import KEY_CHARACTERS_MAX
from meterd.web.openapi_route import Answer, ListOf, PageOf, Route, Schema, Struct
from meterd.web.openapi_routes import ROUTES
from meterd.web.problems import KINDS, PROBLEM_JSON
from meterd.web.reply import JSON, Reply, json_reply
from meterd.web.requests import query, response


OPENAPI: Final = "3.1.0"
REFERENCE: Final = "#/components/schemas/{name}"

_ARGUMENT = re.compile(r"<(?:\w+:)?(\w+)>")

_ANY_KEYED: Final = ("unauthorized", "wrong_scope", "invalid_request")
_ANY_BODY: Final = (
    "bad_request",
    "bad_json",
    "request_timeout",
    "body_too_large",
    "unsupported_media_type",
    "invalid_request",
)
_ANY_TROUBLE: Final = (
    "internal_error",
    "store_unavailable",
    "overloaded",
    "shutting_down",
    "organization_quarantined",
    "actor_crashed",
)
_ANY_KEY: Final = (
    "idempotency_in_flight",
    "idempotency_key_reused",
    "idempotency_key_invalid",
)

_STATUS_TEXTS: Final = {101: "Switching to WebSocket", 200: "OK", 201: "Created", 202: "Accepted"}

openapi = Blueprint("openapi", __name__)


def documented(path: str) -> str:
    """Return a path as OpenAPI writes it: `/v1/tasks/<path:task_id>` → `/v1/tasks/{task_id}`."""
    return _ARGUMENT.sub(r"{\1}", path)


def registered(app: Quart) -> Iterator[tuple[str, str, str]]:
    """Yield (method, path, endpoint) of every operation that the application answers."""
    for rule in app.url_map.iter_rules():
        if not rule.websocket:
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                yield method, rule.rule, rule.endpoint


def route_of(method: str, path: str) -> Route | None:
    """Return what the table says of an operation."""
    found = (each for each in ROUTES if (each.method, each.path) == (method, path))
    return next(found, None)


def document(app: Quart) -> dict[str, Any]:
    """Return the OpenAPI document of an application."""
    structs = sorted({*_structs(ROUTES)}, key=lambda struct: struct.__name__)
    _, components = msgspec.json.schema_components(structs, ref_template=REFERENCE)
    components[CloudEventBody.__name__]["patternProperties"] = CLOUD_EXTENSIONS
    paths: dict[str, dict[str, Any]] = {}
    for method, path, endpoint in sorted(registered(app), key=lambda each: (each[1], each[0])):
        words = inspect.getdoc(inspect.unwrap(app.view_functions[endpoint])) or ""
        route = route_of(method, path) or Route(method=method, path=path, answers={200: None})
        paths.setdefault(documented(path), {})[method.lower()] = _operation(route, endpoint, words)
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "meterd",
            "version": __version__,
            "description": "Meters what agents use, stops them at their plan's limit at once, "
            "and bills it exactly.",
        },
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": _problem_schema()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, endpoint: str, words: str) -> dict[str, Any]:
    summary, _, rest = words.partition("\n\n")
    operation: dict[str, Any] = {
        "operationId": endpoint.replace(".", "_"),
        "tags": [_tag(route.path)],
        "summary": summary.replace("\n", " "),
    }
    if rest:
        operation["description"] = rest
    if route.scopes:
        operation["security"] = [{"key": list(route.scopes)}]
    parameters = list(_parameters(route))
    if parameters:
        operation["parameters"] = parameters
    if route.body:
        operation["requestBody"] = {
            "required": route.is_body_required,
            "content": {media: {"schema": _schema(kind)} for media, kind in route.body.items()},
        }
    operation["responses"] = _responses(route)
    return operation


def _tag(path: str) -> str:
    parts = path.split("/")
    if parts[1] == "admin":
        return "operators"
    return {"v1": parts[2] if len(parts) > 2 else "v1"}.get(parts[1], "service")  # noqa: PLR2004


def _parameters(route: Route) -> Iterator[dict[str, Any]]:
    for name in _ARGUMENT.findall(route.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    for name, schema in route.query.items():
        yield {"name": name, "in": "query", "schema": schema}
    if route.method == "POST" and route.takes_keys and route.scopes:
        yield {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "Kept for 24 hours: sent again with the same body, the request is "
            "answered again (`Idempotency-Replayed: true`) and not done again.",
            "schema": {"type": "string", "pattern": f"^[ -~]{{1,{KEY_CHARACTERS_MAX}}}$"},
        }


def _responses(route: Route) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, answer in route.answers.items():
        said: dict[str, Any] = {"description": _STATUS_TEXTS.get(status, "Done")}
        content = _content(answer, route.media.get(status, ()))
        if content:
            said["content"] = content
        responses[str(status)] = said
    by_status: dict[int, list[str]] = {}
    for code in _codes(route):
        by_status.setdefault(KINDS[code].status, []).append(code)
    for status, codes in sorted(by_status.items()):
        if str(status) in responses:
            continue
        lines = [f"`{code}`: {KINDS[code].detail}" for code in codes]
        responses[str(status)] = {
            "description": "\n\n".join(lines),
            "content": {PROBLEM_JSON: {"schema": {"$ref": REFERENCE.format(name="Problem")}}},
        }
    return responses


def _codes(route: Route) -> list[str]:
    """Return the codes of every problem an operation may answer with, in the table's order."""
    codes = {*route.problems, *_ANY_TROUBLE, "bad_request", "not_found", "invalid_request"}
    if route.scopes:
        codes |= {*_ANY_KEYED}
    if route.body:
        codes |= {*_ANY_BODY}
    if route.method == "POST" and route.takes_keys and route.scopes:
        codes |= {*_ANY_KEY, *_ANY_BODY}
    return [code for code in KINDS if code in codes]


def _content(answer: Answer, more: Iterable[str]) -> dict[str, Any]:
    if answer is None:
        return {}
    if isinstance(answer, str):
        return {answer: {"schema": {"type": "string"}}}
    content = {JSON: {"schema": _schema(answer)}}
    return content | {media: {"schema": {"type": "string"}} for media in more}


def _schema(kind: Struct | PageOf | ListOf | Schema) -> dict[str, Any]:
    if isinstance(kind, PageOf):
        return {
            "type": "object",
            "properties": {
                "data": {"type": "array", "items": _schema(kind.item)},
                "next_cursor": {"type": ["string", "null"]},
            },
            "required": ["data", "next_cursor"],
        }
    if isinstance(kind, ListOf):
        return {"type": "array", "items": _schema(kind.item), "maxItems": 1_000}
    if isinstance(kind, Mapping):
        return {
            key: [_schema(each) for each in value] if key == "anyOf" else value
            for key, value in kind.items()
        }
    return {"$ref": REFERENCE.format(name=kind.__name__)}


def _structs(routes: Iterable[Route]) -> Iterator[Struct]:
    for route in routes:
        for kind in (*route.body.values(), *route.answers.values()):
            for part in kind["anyOf"] if isinstance(kind, Mapping) and "anyOf" in kind else (kind,):
                found = part.item if isinstance(part, PageOf | ListOf) else part
                if isinstance(found, type):
                    yield found


def _problem_schema() -> dict[str, Any]:
    text, count = {"type": "string"}, {"type": "integer"}
    figures = {
        "plan": text,
        "state": text,
        "used_minutes": count,
        "limit_minutes": count,
        "hard_limit_minutes": {"type": ["integer", "null"]},
        "active_agents": count,
        "agent_limit": {"type": ["integer", "null"]},
        "resets_at": text,
        "upgrade_url": text,
    }
    return {
        "type": "object",
        "description": "RFC 9457. Refusals by the plan carry the plan's figures as well.",
        "properties": {
            "type": text,
            "title": text,
            "status": {"type": "integer"},
            "detail": text,
            "instance": text,
            "code": {"type": "string", "enum": list(KINDS)},
            "request_id": text,
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"pointer": text, "detail": text},
                    "required": ["pointer", "detail"],
                },
            },
            **figures,
        },
        "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
    }


# --- routes ---------------------------------------------------------------------------------------

_CONTENT_POLICY: Final = (
    "default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS: Final = (
    ("content-security-policy", _CONTENT_POLICY),
    ("referrer-policy", "no-referrer"),
)


_DOCUMENT: Final = "meterd_openapi"


@openapi.get("/openapi.json")
async def show_document() -> Response:
    """Return this document."""
    query()
    # Making it takes as long as hundreds of answers, and nobody needs a key to ask for it.
    known: dict[str, Reply] = current_app.extensions
    if _DOCUMENT not in known:
        known[_DOCUMENT] = json_reply(200, document(current_app))
    return response(known[_DOCUMENT])


@openapi.get("/docs")
async def show_page() -> Response:
    """Return the page that shows this document; it loads nothing from elsewhere."""
    query()
    return _file("docs.html", "text/html; charset=utf-8")


@openapi.get("/docs/page.js")
async def show_script() -> Response:
    """Return the script of the page."""
    query()
    return _file("docs.js", "text/javascript; charset=utf-8")


def _file(name: str, media_type: str) -> Response:
    body = (resources.files(__package__) / "static" / name).read_bytes()
    return response(Reply(200, body, (("content-type", media_type), *_PAGE_HEADERS)))
