"""The log: structlog over the standard library, to stderr, with secrets masked.

Rule 1: JSON is one object a line; no byte of a value can end a line or move a cursor.
Rule 2: every text passes `masked` after exceptions were rendered and before anything is written,
so a secret in a message, a header, a URL or a traceback is replaced wherever it came from.
Rule 3: the standard library's log and warnings go the same way: libraries are not trusted either.
Rule 4: times are those of the log records; nothing here reads a clock.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from types import TracebackType
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict

from meterd.core.units import rfc3339


MASK: Final = "********"

SECRET_NAMES: Final = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "stripe-signature",
        "x-api-key",
        "password",
        "passwd",
        "passfile",
        "secret",
        "token",
        "ticket",
        "api_key",
        "admin_key",
        "key_pepper",
        "pepper",
        "private_key",
        "webhook_secret",
        "stripe_api_key",
        "stripe_webhook_secrets",
    }
)
"""Names of fields and headers whose values are never written, whatever they look like."""

SECRET_LENGTH_MIN: Final = 8
"""Characters. A shorter configured secret is not searched for: it would blot out ordinary words."""

CHATTY: Final = ("httpx", "stripe")
"""Libraries that log each request at `info`, one of them three times: shown at `debug` only."""

DEPTH_MAX: Final = 8
"""Nesting of a logged value that is looked into; what lies deeper is written as masked text."""

_NAMED = "|".join(
    re.escape(name).replace("_", "[-_]") for name in sorted(SECRET_NAMES, key=len, reverse=True)
)
_HEADERS = "authorization|(?:set-)?cookie|stripe-signature"


def _insensitive(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


# Repetitions that a hostile text could make the search start over and over are bounded.
_PATTERNS: Final = (
    # Whole values with a known shape: meterd's and Stripe's keys, JSON web tokens, signatures.
    (re.compile(r"\bmk_[a-z]+_[0-9A-Za-z]+"), "mk_" + MASK),
    (re.compile(r"\b(sk|rk|pk)_(live|test)_[0-9A-Za-z_]+"), rf"\1_\2_{MASK}"),
    (re.compile(r"\bwhsec_[0-9A-Za-z+/=_-]+"), "whsec_" + MASK),
    (re.compile(r"\beyJ[0-9A-Za-z_-]{4,2048}\.[0-9A-Za-z_-]+(\.[0-9A-Za-z_-]*)*"), MASK),
    (re.compile(r"\b(v[01])=[0-9a-fA-F]{16,}"), rf"\1={MASK}"),
    (_insensitive(r"\b(bearer|basic)([ =:]+)[^\s'\",;)\]}]+"), rf"\1\2{MASK}"),
    # scheme://user:password@host, greedy, because a password may hold any of : / @.
    (
        _insensitive(r"(\b[a-z][a-z0-9+.-]{0,20}://[^\s:/@'\"]{0,128}):[^\s'\"]{0,512}@"),
        rf"\1:{MASK}@",
    ),
    # name: value and name=value; in quotes up to the quote, headers to the end of the line.
    (
        _insensitive(rf"(?<![\w-])((?:{_NAMED})b?['\"]?\s*[:=,]\s*b?)(['\"])(?:(?!\2).)*\2"),
        rf"\1\2{MASK}\2",
    ),
    (_insensitive(rf"(?<![\w-])((?:{_HEADERS})\s*[:=]\s*)[^\r\n'\"]+"), rf"\1{MASK}"),
    (_insensitive(rf"(?<![\w-])((?:{_NAMED})=)[^\s&'\",;)]+"), rf"\1{MASK}"),
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROL_BUT_NEWLINE = re.compile(_CONTROL.pattern.replace(r"\x00-\x1f", r"\x00-\x09\x0b-\x1f"))

_known_secrets: list[str] = []


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger; its first argument is an event in snake_case, the facts are keywords."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def configure(
    *,
    log_format: str = "auto",
    log_level: str = "info",
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Send every log line of the process to stderr (or `stream`), replacing what was set up.

    Units:  `log_format` json, console or auto (console on a terminal); `secrets` are the literal
            values to mask besides those known by shape. They add up over calls.
    """
    target = stream if stream is not None else sys.stderr
    mask_also(secrets)
    for_people = log_format == "console" or (log_format == "auto" and target.isatty())
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder()],
            processors=[
                _record_facts,
                structlog.processors.StackInfoRenderer(),
                structlog.processors.format_exc_info,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                mask_secrets,
                _for_people if for_people else _as_json_line,
                *([structlog.dev.ConsoleRenderer(colors=target.isatty())] if for_people else []),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(log_level.upper())
    for chatty in CHATTY:
        is_wanted = log_level.upper() == "DEBUG"
        logging.getLogger(chatty).setLevel(logging.NOTSET if is_wanted else logging.WARNING)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def mask_also(secrets: Iterable[str]) -> None:
    """Mask these literal values too, from now on; for secrets that have no recognisable shape."""
    for secret in secrets:
        if len(secret) >= SECRET_LENGTH_MIN and secret not in _known_secrets:
            _known_secrets.append(secret)
    _known_secrets.sort(key=len, reverse=True)


def masked(text: str) -> str:
    """Return the text with everything that is, or looks like, a secret replaced."""
    for secret in _known_secrets:
        if secret in text:
            text = text.replace(secret, MASK)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def mask_secrets(logger: object, method: str, event: EventDict) -> EventDict:  # noqa: ARG001  # structlog's signature
    """Mask every text of a log event, however nested; what is no JSON value becomes masked text."""
    return {str(name): _masked_field(str(name), value, DEPTH_MAX) for name, value in event.items()}


def _masked_field(name: str, value: object, depth: int) -> Any:
    if name.lower().replace("_", "-") in _SECRET_NAMES_DASHED and value is not None:
        return MASK
    return _masked_value(value, depth)


def _masked_value(value: object, depth: int) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return masked(value)
    if depth == 0:
        return masked(repr(value))
    if isinstance(value, Mapping):
        return {
            masked(str(name)): _masked_field(str(name), item, depth - 1)
            for name, item in value.items()
        }
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        pair = list(value)
        if len(pair) == 2 and isinstance(pair[0], str | bytes):  # noqa: PLR2004  # a (name, value) header
            name = pair[0].decode("latin-1") if isinstance(pair[0], bytes) else pair[0]
            return [masked(name), _masked_field(name, pair[1], depth - 1)]
        return [_masked_value(item, depth - 1) for item in pair]
    return masked(value if isinstance(value, str) else repr(value))


_SECRET_NAMES_DASHED: Final = frozenset(name.replace("_", "-") for name in SECRET_NAMES)


def _record_facts(logger: object, method: str, event: EventDict) -> EventDict:  # noqa: ARG001  # structlog's signature
    record: logging.LogRecord = event["_record"]
    facts: EventDict = {
        "timestamp": rfc3339(int(record.created * 1_000)),
        "level": record.levelname.lower(),
        "logger": record.name,
    }
    facts.update({name: value for name, value in event.items() if name not in facts})
    return facts


def _as_json_line(logger: object, method: str, event: MutableMapping[str, Any]) -> str:  # noqa: ARG001  # structlog's signature
    # ASCII only: U+2028, C1 controls and lone surrogates end or spoil lines in some readers.
    return json.dumps(event, ensure_ascii=True, allow_nan=False).replace("\x7f", "\\u007f")


def _for_people(logger: object, method: str, event: EventDict) -> EventDict:  # noqa: ARG001  # structlog's signature
    """Escape control characters; only rendered tracebacks keep their line ends."""
    return {
        _escaped(name): _escaped(
            value, _CONTROL_BUT_NEWLINE if name in {"exception", "stack"} else _CONTROL
        )
        for name, value in event.items()
    }


def _escaped(value: Any, control: re.Pattern[str] = _CONTROL) -> Any:
    if isinstance(value, str):
        return control.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
    return (
        value
        if value is None or isinstance(value, bool | int)
        else _escaped(json.dumps(value), control)
    )


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    get_logger("meterd").critical("uncaught_exception", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None:
        _log_uncaught(failed.exc_type, failed.exc_value, failed.exc_traceback)
