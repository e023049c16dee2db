"""The configuration of a meterd process: every setting with its unit, default and range.

Sources, weakest first: the defaults below, the TOML file of `--config`, `METERD_<NAME>` in the
environment, options of the command line. Unknown keys in the file are refused, unknown
`METERD_*` variables are reported by the caller (`LoadedConfig.unknown_variables`).
Rule 1: all that is wrong is reported at once, in sentences that say what to change.
Rule 2: settings that contradict each other refuse to start; nothing is corrected silently.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
from typed_settings import (
    EnvLoader,
    FileLoader,
    Secret,
    SettingsState,
    TomlFormat,
    default_converter,
)
from typed_settings.exceptions import TsError
from typed_settings.loaders import DictLoader, Loader
from typed_settings.types import LoadedSettings

from meterd.core.overage import review_of
from meterd.errors import ConfigError
from meterd.setting import (
    SETTING,
    Address,
    Setting,
    address,
    choice,
    clock_time,
    flag,
    integer,
    networks,
    origins,
    path,
    secret,
    secrets,
    text,
    time_zone,
    url,
)


ENVIRONMENT_PREFIX: Final = "METERD_"

OTHER_VARIABLES: Final = frozenset(
    {
        "METERD_CONFIG",  # the file to read
        "METERD_KEY",  # with METERD_URL: what clients and operators' commands read
        "METERD_URL",
        "METERD_REQUIRE_SERVICES",  # tests: missing services fail
        "METERD_TEST_DATABASE_URL",
        "METERD_TEST_KEY",
        "METERD_TEST_URL",
    }
)
"""Variables that are not settings of the service."""

DATA_DIR_DEFAULT: Final = Path("meterd-data")

HEARTBEAT_INTERVAL_MS_MAX: Final = 10_000
"""Milliseconds. Agents are asked to report this often, or three times per task time-out."""

_DAY_MS = 86_400_000
_HOUR_MS = 3_600_000


@attrs.frozen(kw_only=True)
class Config:
    """Settings of one process, checked one by one and against each other; ConfigError if not.

    Durations are integer milliseconds. Secrets are `Secret`: `get_secret_value()` reads them.
    """

    bind: Address = address("127.0.0.1:8080", doc="Address to listen on; port 0 takes a free port.")
    database_url: Secret[str] | None = url(
        "postgresql",
        "postgres",
        secret=True,
        doc="PostgreSQL to use instead of an embedded one.",
    )
    data_dir: Path | None = path(
        factory=lambda self: None if self.database_url else DATA_DIR_DEFAULT,
        doc="Directory of the embedded PostgreSQL; `meterd-data` unless `database_url` is set.",
    )
    redis_url: Secret[str] | None = url(
        "redis",
        "rediss",
        "unix",
        secret=True,
        on_command_line=False,
        doc="Redis to publish live state to; meterd works without it.",
    )
    admin_key: Secret[str] | None = secret(
        least=32,
        most=256,
        doc="Bootstrap admin key; without it the first start prints a generated one, once.",
    )
    key_pepper: Secret[str] | None = secret(
        least=32,
        most=256,
        doc="Secret under which keys are hashed; without it the database keeps a generated one. "
        "Changing it revokes every key.",
    )

    stripe_api_key: Secret[str] | None = secret(
        doc="Stripe secret key; without it webhooks are applied as they are received."
    )
    stripe_api_base: str | None = url(
        "https", "http", doc="Stripe's address, for a fake or a proxy; Stripe's own unless set."
    )
    stripe_webhook_secrets: tuple[Secret[str], ...] = secrets(
        doc="Signing secrets of the webhook endpoint; several while one is being rotated."
    )

    payment_grace_ms: int = integer(
        7 * _DAY_MS,
        unit="milliseconds",
        least=0,
        most=60 * _DAY_MS,
        doc="How long an organization works on after a renewal's first failed payment.",
    )

    plans: Path | None = path(doc="Plan catalogue; the one inside the package unless set.")
    upgrade_url: str | None = url("https", "http", doc="Sent with refusals: where to upgrade.")

    billing_return_url: str | None = url(
        "https", "http", doc="Where Stripe's pages lead back to; `upgrade_url` unless set."
    )
    overage_review: str = text(
        "none",
        accepts=lambda found: review_of(found) is not None,
        form="none, all, or first:N",
        doc="Whose charges wait until an operator releases them: nobody's, everybody's, or those "
        "of the first N organizations, each until one of its charges was released.",
    )
    overage_wait_ms: int = integer(
        600_000,
        unit="milliseconds",
        least=0,
        most=_HOUR_MS,
        doc="How long the charges of a closed period wait for tasks that have not reported past "
        "its end. Stripe keeps a renewal's invoice open for about an hour.",
    )

    plausibility: str = choice(
        "enforce",
        "report",
        "off",
        doc="What happens to reports that claim more time than has passed: not counted, counted "
        "and reported, or not looked at.",
    )
    task_timeout_ms: int = integer(
        60_000,
        unit="milliseconds",
        least=1_000,
        most=_HOUR_MS,
        doc="An agent silent for this long is lost and frees its slot.",
    )
    tasks_per_agent: int = integer(
        8, unit="tasks", least=1, most=1_000, doc="Tasks one agent may run at once."
    )
    tasks_per_organization: int = integer(
        10_000,
        unit="tasks",
        least=1,
        most=1_000_000,
        doc="Tasks one organization may run at once, on any plan: a bound for meterd's memory "
        "where the plan sets none.",
    )
    record_interval_ms: int = integer(
        600_000,
        unit="milliseconds",
        least=1_000,
        most=_DAY_MS,
        doc="A running task writes a ledger row each time it has run this long.",
    )

    passivate_after_ms: int = integer(
        600_000,
        unit="milliseconds",
        least=10,
        most=_DAY_MS,
        doc="An organization without work for this long leaves memory.",
    )
    mailbox_max: int = integer(
        1_000,
        unit="messages",
        least=1,
        most=1_000_000,
        doc="Messages that may wait for one organization; more are refused with 503.",
    )
    strikes_max: int = integer(
        3,
        unit="failures",
        least=1,
        most=1_000,
        doc="An organization that fails so often within `strikes_window_ms` is quarantined.",
    )
    strikes_window_ms: int = integer(
        60_000, unit="milliseconds", least=1, most=_DAY_MS, doc="See `strikes_max`."
    )
    quarantine_ms: int = integer(
        300_000,
        unit="milliseconds",
        least=1,
        most=_DAY_MS,
        doc="A quarantined organization is tried again after this long.",
    )

    flush_interval_ms: int = integer(
        20,
        unit="milliseconds",
        least=0,
        most=10_000,
        doc="Longest wait for more facts before a batch is committed.",
    )
    flush_rows_max: int = integer(
        500,
        unit="rows",
        least=1,
        most=10_000,
        doc="Rows of one transaction; encoding more holds up every request.",
    )
    journal_commits_max: int = integer(
        100_000,
        unit="commits",
        least=1,
        most=10_000_000,
        doc="Decisions that may wait for PostgreSQL; more are refused with 503, never dropped.",
    )
    ack_timeout_ms: int = integer(
        5_000,
        unit="milliseconds",
        least=1,
        most=300_000,
        doc="A request whose decision is not durable by then is answered 503 with Retry-After.",
    )

    owner_wait_ms: int = integer(
        10_000,
        unit="milliseconds",
        least=0,
        most=_HOUR_MS,
        doc="How long to wait for another meterd on the same database to stop (then exit 3).",
    )
    takeover: bool = flag(doc="Take the database from the meterd that owns it; it stops.")
    accept_clock: bool = flag(
        doc="Start although the clock is behind, or far ahead of, what the database has recorded."
    )
    allow_unsafe_database: bool = flag(
        doc="Start although PostgreSQL may lose what it has committed (fsync, full_page_writes or "
        "synchronous_commit is off). For tests."
    )

    connections_max: int = integer(
        20_000, unit="connections", least=1, most=1_000_000, doc="Open connections in total."
    )
    connections_per_address_max: int = integer(
        4_096,
        unit="connections",
        least=1_024,
        most=1_000_000,
        doc="Open connections from one IP address; one more is closed with 4429 or refused.",
    )
    body_bytes_max: int = integer(
        1_048_576,
        unit="bytes",
        least=1_024,
        most=67_108_864,
        doc="Largest request body; a larger one is answered 413.",
    )
    frame_bytes_max: int = integer(
        1_048_576,
        unit="bytes",
        least=1_024,
        most=67_108_864,
        doc="Largest WebSocket frame; a larger one closes the connection with 1009.",
    )
    stream_idle_ms: int = integer(
        120_000,
        unit="milliseconds",
        least=1_000,
        most=_DAY_MS,
        doc="An agent stream that sends nothing for this long is closed with 4408.",
    )
    trusted_proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = networks(
        doc="Proxies whose X-Forwarded-For and X-Forwarded-Proto are believed; none unless set."
    )

    clerk_issuer: str | None = url(
        "https", "http", doc="Issuer of Clerk's session tokens; nobody signs in unless it is set."
    )
    clerk_jwks_url: str | None = url(
        "https", "http", doc="Clerk's published keys; at the issuer's well-known place unless set."
    )
    clerk_authorized_parties: tuple[str, ...] = origins(
        doc="Web pages whose session tokens are taken (`azp`); required with `clerk_issuer`."
    )
    live_origins: tuple[str, ...] = origins(
        doc="Web pages that may read usage and open the live feed from a browser; none unless set."
    )
    webhooks_private_allowed: bool = flag(
        doc="Deliver webhooks over http and to private addresses too. For tests: it lets customers "
        "reach into your network."
    )

    jobs_time_zone: str = time_zone(
        "UTC",
        doc="Time zone of the times below; days are always counted in UTC. Hourly jobs have none.",
    )
    daily_metrics_at: str = clock_time(
        "00:15", doc="When the last UTC day of every organization is summed."
    )
    revenue_snapshot_at: str = clock_time(
        "00:20",
        doc="When it is kept what every customer is worth a month; Stripe cannot be asked later.",
    )
    ledger_reconciliation_at: str = clock_time(
        "03:00", doc="When ledger, counters, tasks and actors are compared."
    )
    stripe_reconciliation_at: str = clock_time(
        "03:30", doc="When Stripe and meterd are held against each other."
    )
    retention_at: str = clock_time("04:00", doc="When what was kept long enough is dropped.")
    daily_report_at: str = clock_time(
        "06:00", doc="When the report of the last whole UTC day is written."
    )
    reports_dir: Path = path(
        default=Path("reports"), doc="Directory of the daily reports, made when it is needed."
    )
    reports_git_commit: bool = flag(
        doc="Commit each report with git, when `reports_dir` lies in a repository."
    )
    task_retention_days: int = integer(
        400,
        unit="days",
        least=36,
        most=36_500,
        doc="How long ended tasks are kept; their ledger rows are kept for ever.",
    )
    inbox_retention_days: int = integer(
        90,
        unit="days",
        least=1,
        most=36_500,
        doc="How long the content of Stripe's events is kept; their ids are kept for ever.",
    )

    shutdown_requests_ms: int = integer(
        5_000,
        unit="milliseconds",
        least=0,
        most=_HOUR_MS,
        doc="At a stop: time for requests in flight.",
    )
    shutdown_actors_ms: int = integer(
        5_000,
        unit="milliseconds",
        least=0,
        most=_HOUR_MS,
        doc="At a stop: time for messages already accepted.",
    )
    shutdown_flush_ms: int = integer(
        15_000,
        unit="milliseconds",
        least=0,
        most=_HOUR_MS,
        doc="At a stop: time to commit what waits for PostgreSQL.",
    )

    otlp_url: str | None = url(
        "https",
        "http",
        doc="Where traces are sent, by OTLP over HTTP (`http://127.0.0.1:4318/v1/traces`); none "
        "unless set. Needs the extra `otel`.",
    )

    log_format: str = choice(
        "auto",
        "json",
        "console",
        doc="One JSON object a line, or lines for people; auto: people on a terminal, else JSON.",
    )
    log_level: str = choice("info", "debug", "warning", "error", doc="Least severe line to log.")

    def __attrs_post_init__(self) -> None:
        if contradictions := tuple(_contradictions(self)):
            raise ConfigError("\n".join(contradictions))

    @property
    def heartbeat_interval_ms(self) -> int:
        """How often agents report, in milliseconds: min(10,000, task time-out / 3)."""
        return min(HEARTBEAT_INTERVAL_MS_MAX, self.task_timeout_ms // 3)


@attrs.frozen(kw_only=True)
class LoadedConfig:
    """A Config and where each of its values came from."""

    config: Config
    sources: Mapping[str, str]
    """Setting name → "default", the file's path, "METERD_…" or "--option"."""
    unknown_variables: Sequence[str] = ()
    """METERD_* variables that name no setting, sorted; worth a warning, not a refusal."""


def setting_fields() -> Iterator[tuple[str, Setting, object]]:
    """Yield the name, description and default of every setting, in the order of declaration."""
    for field in attrs.fields(Config):
        yield field.name, field.metadata[SETTING], field.default


def variable_of(name: str) -> str:
    """Return the environment variable of a setting: task_timeout_ms → METERD_TASK_TIMEOUT_MS."""
    return ENVIRONMENT_PREFIX + name.upper()


def option_of(name: str) -> str:
    """Return the command-line option of a setting: task_timeout_ms → --task-timeout-ms."""
    return "--" + name.replace("_", "-")


def load_config(options: Mapping[str, object], *, file: Path | None = None) -> LoadedConfig:
    """Read the file, the environment and the options (strongest), and check it all.

    Errors: ConfigError with one sentence per line for each thing that is wrong.
    """
    if file is not None and not file.exists():  # the library says it as well, in its own words
        raise ConfigError(f"There is no file {file}: correct --config.")
    values: dict[str, object] = {}
    sources = {field.name: "default" for field in attrs.fields(Config)}
    for label, loader in _loaders(options, file):
        for name, value in _loaded(loader, file).items():
            values[name] = _based(name, value, file if label is None else None)
            sources[name] = str(file) if label is None else label(name)
    return LoadedConfig(
        config=_checked(values, sources),
        sources=sources,
        unknown_variables=unknown_variables(os.environ),
    )


def unknown_variables(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the METERD_* variables that name no setting, sorted."""
    known = OTHER_VARIABLES | {variable_of(field.name) for field in attrs.fields(Config)}
    return tuple(
        sorted(n for n in environment if n.startswith(ENVIRONMENT_PREFIX) and n not in known)
    )


def _loaders(
    options: Mapping[str, object], file: Path | None
) -> Iterator[tuple[Callable[[str], str] | None, Loader]]:
    if file is not None:
        yield None, FileLoader({"*": TomlFormat(None)}, [f"!{file}"])
    yield variable_of, EnvLoader(ENVIRONMENT_PREFIX)
    yield (
        option_of,
        DictLoader({name: value for name, value in options.items() if value is not None}),
    )


def _loaded(loader: Loader, file: Path | None) -> Mapping[str, object]:
    state = SettingsState(Config, [loader], [], default_converter(), Path())
    try:
        loaded = loader(Config, state.options)
    except (TsError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be used: {error}.") from error
    parts = [loaded] if isinstance(loaded, LoadedSettings) else loaded
    return {name: value for part in parts for name, value in part.settings.items()}


def _based(name: str, value: object, file: Path | None) -> object:
    """Return a path from a file relative to that file, anything else as it is."""
    setting: Setting = getattr(attrs.fields(Config), name).metadata[SETTING]
    if file is None or not setting.is_path or not isinstance(value, str) or not value.strip():
        return value
    return str(file.parent / Path(value).expanduser())


def _checked(values: Mapping[str, object], sources: Mapping[str, str]) -> Config:
    problems = []
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        setting: Setting = getattr(attrs.fields(Config), name).metadata[SETTING]
        try:
            parsed[name] = setting.parse(value)
        except ValueError as error:
            where = sources[name]
            place = where if where in {variable_of(name), option_of(name)} else f"{name} in {where}"
            problems.append(f"{place} {error}.")
    if problems:
        raise ConfigError("\n".join(problems))
    return Config(**parsed)


def _contradictions(config: Config) -> Iterator[str]:
    """Yield a sentence for each pair of settings that cannot both be meant."""
    if config.database_url is not None and config.data_dir is not None:
        yield "data_dir and database_url are both set: keep one, they are two different databases."
    if config.ack_timeout_ms <= config.flush_interval_ms:
        yield (
            f"ack_timeout_ms ({config.ack_timeout_ms}) must be larger than flush_interval_ms "
            f"({config.flush_interval_ms}), or every request times out: raise it."
        )
    if config.stream_idle_ms <= config.heartbeat_interval_ms:
        yield (
            f"stream_idle_ms ({config.stream_idle_ms}) must be larger than the heartbeat interval "
            f"({config.heartbeat_interval_ms}), or every agent is disconnected: raise it."
        )
    if config.clerk_issuer is not None and not config.clerk_authorized_parties:
        yield (
            "clerk_issuer is set and clerk_authorized_parties is empty: name the web pages whose "
            "session tokens are taken."
        )
    if (
        config.stripe_api_base is not None
        and config.stripe_api_key is not None
        and "_live_" in config.stripe_api_key.get_secret_value()
        and urlsplit(config.stripe_api_base).scheme != "https"
    ):
        yield (
            "stripe_api_key is a live key and stripe_api_base is not https: the key would travel "
            "in clear text. Use https, or a test key."
        )
