"""The configuration as a whole: sources, precedence, contradictions, secrets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meterd.config import Config, load_config, option_of, setting_fields, variable_of
from meterd.errors import ConfigError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever METERD_* variables the machine has are not part of a test."""
    for name in list(os.environ):
        if name.startswith("METERD_"):
            monkeypatch.delenv(name)


def write(directory: Path, text: str) -> Path:
    """Return a TOML file with the text."""
    file = directory / "meterd.toml"
    file.write_text(text, encoding="utf-8")
    return file


def refusal(options: dict[str, object], file: Path | None = None) -> list[str]:
    """Return the sentences with which this configuration is refused."""
    with pytest.raises(ConfigError) as refused:
        load_config(options, file=file)
    return str(refused.value).splitlines()


def test_defaults_are_those_of_the_contract() -> None:
    """An operator who sets nothing gets what the documentation says."""
    loaded = load_config({})

    config = loaded.config
    assert str(config.bind) == "127.0.0.1:8080"
    assert (config.data_dir, config.database_url) == (Path("meterd-data"), None)
    assert (config.task_timeout_ms, config.heartbeat_interval_ms) == (60_000, 10_000)
    assert (config.tasks_per_agent, config.record_interval_ms) == (8, 600_000)
    assert (config.owner_wait_ms, config.body_bytes_max) == (10_000, 1_048_576)
    assert set(loaded.sources.values()) == {"default"}


def test_options_beat_the_environment_beats_the_file_beats_the_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The nearer to the person at the keyboard, the stronger."""
    file = write(tmp_path, "mailbox_max = 1\nstrikes_max = 1\ntasks_per_agent = 1")
    monkeypatch.setenv("METERD_STRIKES_MAX", "2")
    monkeypatch.setenv("METERD_TASKS_PER_AGENT", "2")

    loaded = load_config({"tasks_per_agent": "3", "bind": None}, file=file)

    config = loaded.config
    assert (config.mailbox_max, config.strikes_max, config.tasks_per_agent) == (1, 2, 3)
    assert config.ack_timeout_ms == 5_000
    assert loaded.sources["mailbox_max"] == str(file)
    assert loaded.sources["strikes_max"] == "METERD_STRIKES_MAX"
    assert loaded.sources["tasks_per_agent"] == "--tasks-per-agent"
    assert loaded.sources["bind"] == "default"


def test_every_setting_can_be_given_in_the_environment_and_in_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The address to listen on once was taken from the command line only."""
    monkeypatch.setenv("METERD_BIND", "[::1]:9000")
    from_environment = load_config({})
    monkeypatch.delenv("METERD_BIND")
    from_file = load_config({}, file=write(tmp_path, 'bind = "0.0.0.0:9001"'))

    assert str(from_environment.config.bind) == "[::1]:9000"
    assert from_environment.sources["bind"] == "METERD_BIND"
    assert str(from_file.config.bind) == "0.0.0.0:9001"


def test_all_that_is_wrong_is_reported_at_once_and_named_where_it_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One restart per mistake is how a maintenance window is lost."""
    file = write(tmp_path, "mailbox_max = 0")
    monkeypatch.setenv("METERD_TASK_TIMEOUT_MS", "5")

    in_file, in_environment, in_options = refusal({"plausibility": "on"}, file)
    assert in_file.startswith(f"mailbox_max in {file} must be a whole number of messages from 1 ")
    assert in_environment.startswith("METERD_TASK_TIMEOUT_MS must be a whole number of milli")
    assert in_options == "--plausibility must be enforce, report or off, not 'on'."


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("task_timeout = 5", "task_timeout"),
        ("[meterd]\nmailbox_max = 5", "meterd.mailbox_max"),
        ("mailbox_max = ", "Invalid value"),
        ("\x00", "cannot be used"),
    ],
)
def test_a_file_with_unknown_keys_or_bad_toml_is_refused(
    tmp_path: Path, text: str, named: str
) -> None:
    """A misspelt limit that is ignored is a limit that is not there."""
    (line,) = refusal({}, write(tmp_path, text))

    assert named in line


def test_a_file_that_is_missing_or_unreadable_is_refused(tmp_path: Path) -> None:
    """Starting with defaults instead of the file would meter into the wrong database."""
    assert refusal({}, tmp_path / "none.toml") == [
        f"There is no file {tmp_path / 'none.toml'}: correct --config."
    ]
    assert "cannot be used" in refusal({}, tmp_path)[0]
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'upgrade_url = "\xff"')
    assert "cannot be used" in refusal({}, latin)[0]


def test_unknown_variables_are_reported_and_do_not_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orchestrators put variables of their own into the environment (METERD_PORT_8080_TCP)."""
    monkeypatch.setenv("METERD_TASK_TIMEOUT", "5")
    monkeypatch.setenv("METERD_REQUIRE_SERVICES", "1")
    monkeypatch.setenv("METERD_BIND", "127.0.0.1:0")

    assert load_config({}).unknown_variables == ("METERD_TASK_TIMEOUT",)


def test_a_path_in_a_file_is_relative_to_the_file(tmp_path: Path) -> None:
    """A service manager starts meterd in a directory of its own choice."""
    file = write(tmp_path, 'data_dir = "data"\nplans = "/etc/plans.toml"')

    config = load_config({}, file=file).config

    assert (config.data_dir, config.plans) == (tmp_path / "data", Path("/etc/plans.toml"))
    assert load_config({"data_dir": "data"}).config.data_dir == Path("data")


def test_a_database_url_leaves_no_default_data_dir() -> None:
    """Exactly one database: setting one of the two is enough."""
    config = load_config({"database_url": "postgresql://h/d"}).config

    assert config.data_dir is None
    assert config.database_url is not None
    assert config.database_url.get_secret_value() == "postgresql://h/d"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data_dir": "d", "database_url": "postgresql://h/d"}, "two different databases"),
        ({"ack_timeout_ms": 20, "flush_interval_ms": 20}, "ack_timeout_ms (20) must be larger"),
        ({"stream_idle_ms": 10_000}, "every agent is disconnected"),
        ({"stripe_api_key": "sk_live_x", "stripe_api_base": "http://stripe"}, "not https"),
    ],
)
def test_settings_that_contradict_each_other_refuse_to_start(
    options: dict[str, object], said: str
) -> None:
    """Nothing is corrected silently: the operator meant one of the two."""
    (line,) = refusal(options)

    assert said in line


def test_contradictions_are_found_without_a_loader_too() -> None:
    """Tests and commands that build a Config themselves cannot build an impossible one."""
    with pytest.raises(ConfigError, match="heartbeat interval"):
        Config(stream_idle_ms=1_000)


def test_the_heartbeat_interval_is_a_third_of_a_short_time_out() -> None:
    """Two heartbeats may be lost before a task is."""
    assert Config(task_timeout_ms=1_000).heartbeat_interval_ms == 333
    assert Config(task_timeout_ms=29_999).heartbeat_interval_ms == 9_999


def test_no_secret_is_in_the_text_of_a_config_or_of_a_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Config ends up in tracebacks, and a refusal in the log of a service manager."""
    canary = "canary" * 8
    monkeypatch.setenv("METERD_ADMIN_KEY", canary)
    monkeypatch.setenv("METERD_KEY_PEPPER", canary)
    monkeypatch.setenv("METERD_STRIPE_API_KEY", canary)
    monkeypatch.setenv("METERD_STRIPE_WEBHOOK_SECRETS", f"{canary},{canary}")
    monkeypatch.setenv("METERD_DATABASE_URL", f"postgresql://u:{canary}@h/d")
    monkeypatch.setenv("METERD_REDIS_URL", f"redis://:{canary}@h")

    loaded = load_config({})
    assert "canary" not in repr(loaded) + str(loaded)

    for name, setting, _ in setting_fields():
        if setting.is_secret:
            monkeypatch.setenv(variable_of(name), canary + "\N{SNOWMAN}\x01")
    assert "canary" not in "".join(refusal({}))


def test_every_setting_is_described_and_lies_in_its_own_range() -> None:
    """A default that its own parser refuses would make an explicit default an error."""
    defaults = Config()

    for name, setting, _ in setting_fields():
        value = getattr(defaults, name)
        assert setting.parse(value) == value, name
        assert setting.doc.endswith("."), name
        assert setting.form, name


def test_names_of_variables_and_options_follow_from_the_name() -> None:
    """One rule, so that nobody has to look a name up twice."""
    assert variable_of("task_timeout_ms") == "METERD_TASK_TIMEOUT_MS"
    assert option_of("task_timeout_ms") == "--task-timeout-ms"
