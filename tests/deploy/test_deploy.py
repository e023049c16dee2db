"""What `deploy/` promises: metrics exist, runbooks exist, commands exist, time-outs fit.

promtool, nginx, hadolint, kubernetes-validate and systemd-analyze check their own files where they
are installed; what matters to us is checked here without them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from meterd.cli import group
from meterd.config import Config, variable_of
from meterd.observe.metrics import HISTOGRAM, METRICS
from tests.conftest import missing_service


ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"

PROCESS = {"process_open_fds", "process_max_fds", "process_cpu_seconds_total"}
PROCESS |= {"process_resident_memory_bytes"}


def text_of(name: str) -> str:
    """Return a file of deploy/."""
    return (DEPLOY / name).read_text(encoding="utf-8")


def known_names() -> set[str]:
    """Return every name a query may use."""
    names = set(PROCESS)
    for metric in METRICS.values():
        names.add(metric.name)
        if metric.kind == HISTOGRAM:
            names |= {metric.name + end for end in ("_bucket", "_sum", "_count")}
    return names


def used_names(text: str) -> set[str]:
    """Return the metrics that queries in a text use."""
    return set(re.findall(r"\b(?:meterd|process)_[a-z_]+\b", text)) - {"meterd_connection"}


def alerts() -> list[dict[str, str]]:
    """Return every rule: its name, expression, severity and runbook."""
    rules = []
    for block in text_of("prometheus/alerts.yml").split("- alert: ")[1:]:
        found = re.search(r"runbook: (\S+)", block)
        rules.append(
            {
                "name": block.split("\n")[0],
                "expr": "".join(re.findall(r"expr: (.+)", block)),
                "severity": "".join(re.findall(r"severity: (\w+)", block)),
                "runbook": found[1] if found else "",
            }
        )
    return rules


def test_every_alert_asks_for_metrics_that_exist() -> None:
    """An alert on a name of yesterday never fires."""
    assert len(alerts()) >= 15
    for alert in alerts():
        assert used_names(alert["expr"]) <= known_names() | {"up"}, alert["name"]


def test_every_alert_has_a_runbook_and_says_how_urgent_it_is() -> None:
    """Who is woken at three must not have to think where to look."""
    for alert in alerts():
        assert (ROOT / alert["runbook"]).is_file(), alert
        assert alert["runbook"].startswith("docs/runbooks/"), alert
        assert alert["severity"] in {"page", "ticket"}, alert


def test_the_dashboard_asks_for_metrics_that_exist_and_does_not_overlap() -> None:
    """A panel without data looks like an outage."""
    dashboard = json.loads(text_of("grafana/meterd.json"))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            assert used_names(target["expr"]) <= known_names(), panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_settings_named_in_deploy_exist() -> None:
    """A misspelt variable is ignored with a warning, which nobody reads."""
    known = {variable_of(field) for field in Config.__annotations__}
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            named = set(re.findall(r"\bMETERD_[A-Z_]+\b", path.read_text(encoding="utf-8")))
            assert named <= known, path


def stop_seconds() -> float:
    """Return how long the phases of a stop take at most, PostgreSQL's own not counted."""
    config = Config()
    phases = (config.shutdown_requests_ms, config.shutdown_actors_ms, config.shutdown_flush_ms)
    return sum(phases) / 1_000


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("systemd/meterd.service", r"TimeoutStopSec=(\d+)"),
        ("kubernetes/meterd.yaml", r"terminationGracePeriodSeconds: (\d+)"),
        ("compose.yaml", r"stop_grace_period: (\d+)s"),
    ],
)
def test_whoever_stops_meterd_waits_longer_than_the_last_flush(name: str, pattern: str) -> None:
    """A kill in the middle of it loses nothing, but makes every client send again."""
    (seconds,) = re.findall(pattern, text_of(name))

    assert int(seconds) >= 2 * stop_seconds()


def test_the_commands_of_unit_and_container_are_the_ones_that_are_tested() -> None:
    """`meterd serve`, with options that exist."""
    (typed,) = re.findall(r"ExecStart=\S+/meterd (\w+) (.*)", text_of("systemd/meterd.service"))
    command = group.commands.get(typed[0]) or group.get_command(None, typed[0])  # type: ignore[arg-type]  # no context is needed
    assert command is not None
    options = {option for parameter in command.params for option in parameter.opts}

    assert set(re.findall(r"--[a-z-]+", typed[1])) <= options
    assert 'ENTRYPOINT ["meterd"]\n' in text_of("Containerfile")
    assert 'CMD ["serve"]' in text_of("Containerfile")
    assert "args: [serve]" in text_of("kubernetes/meterd.yaml")


def test_the_unit_is_notified_and_watched() -> None:
    """Type=notify, so that "started" means that requests are accepted."""
    unit = text_of("systemd/meterd.service")

    for line in ("Type=notify", "WatchdogSec=30", "Restart=always", "NoNewPrivileges=yes"):
        assert f"{line}\n" in unit
    assert "RestartPreventExitStatus=2\n" in unit


def test_containers_run_as_nobody_on_a_read_only_root() -> None:
    """What cannot be written cannot be changed by whoever breaks in."""
    container, pod = text_of("Containerfile"), text_of("kubernetes/meterd.yaml")

    assert re.search(r"^USER 10001:10001$", container, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK ", container, re.MULTILINE)
    assert container.index("USER 10001") < container.index("ENTRYPOINT")
    for line in ("runAsNonRoot: true", "readOnlyRootFilesystem: true", "drop: [ALL]"):
        assert line in pod
    assert "read_only: true" in text_of("compose.yaml")
    assert pod.count("replicas: 1\n") == 1
    for probe in ("startupProbe", "livenessProbe", "readinessProbe", "PodDisruptionBudget"):
        assert probe in pod


def test_the_proxy_passes_streams_and_keeps_operators_routes_inside() -> None:
    """A stream that the proxy cuts at a minute reconnects for ever."""
    proxy = text_of("nginx/meterd.conf")
    (timeout_s,) = re.findall(r"proxy_read_timeout (\d+)s", proxy)

    assert int(timeout_s) * 1_000 > Config().stream_idle_ms
    assert "proxy_set_header Upgrade $http_upgrade;" in proxy
    assert re.search(r"location ~ \^/\(admin\|metrics", proxy)
    assert "deny  all;" in proxy


def run_tool(name: str, *arguments: str, cwd: Path) -> str:
    """Return what a tool says about its own file, "" when it is content."""
    path = shutil.which(name)
    if path is None:
        missing_service(f"{name} is not installed")
    ran = subprocess.run(
        [path, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )
    return "" if ran.returncode == 0 else ran.stdout + ran.stderr


def test_prometheus_itself_accepts_rules_and_their_tests() -> None:
    """Promtool knows the language of rules; without it this is skipped, the other tests hold."""
    where = DEPLOY / "prometheus"
    for arguments in (
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ):
        assert run_tool("promtool", *arguments, cwd=where) == ""


def test_systemd_itself_accepts_the_unit_and_finds_it_locked_up(tmp_path: Path) -> None:
    """A misspelt directive is ignored by systemd, and with it what it should have kept away."""
    unit = tmp_path / "meterd.service"
    program = re.findall(r"ExecStart=(\S+)", text_of("systemd/meterd.service"))[0]
    unit.write_text(text_of("systemd/meterd.service").replace(program, "/bin/true"))
    exposure = ("security", "--offline=yes", "--threshold=20", str(unit))

    assert run_tool("systemd-analyze", "verify", str(unit), cwd=tmp_path) == ""
    assert run_tool("systemd-analyze", *exposure, cwd=tmp_path) == ""


@pytest.mark.parametrize(
    ("name", "argument"),
    [("hadolint", "Containerfile"), ("kubernetes-validate", "kubernetes/meterd.yaml")],
)
def test_container_and_pod_are_accepted_by_their_linters(name: str, argument: str) -> None:
    """What cannot be built here is read by programs that know it; Debian has neither of them."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    assert run_tool(name, argument, cwd=DEPLOY) == ""


def test_nginx_itself_accepts_the_proxy(tmp_path: Path) -> None:
    """With a certificate of the test's own, and nothing listening."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ("-subj", "/CN=meter.example.com", "-nodes", "-days", "1")
    run_tool(
        "openssl",
        *("req", "-x509", "-newkey", "rsa:2048", *subject),
        *("-keyout", str(key), "-out", str(certificate)),
        cwd=tmp_path,
    )
    proxy = re.sub(r"(ssl_certificate\s+)\S+;", rf"\1{certificate};", text_of("nginx/meterd.conf"))
    proxy = re.sub(r"(ssl_certificate_key\s+)\S+;", rf"\1{key};", proxy)
    (tmp_path / "meterd.conf").write_text(proxy)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {tmp_path}/{kind}; " for kind in kinds)
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{ access_log off; {places} include {tmp_path}/meterd.conf; }}\n"
    )

    assert run_tool("nginx", "-t", "-c", str(tmp_path / "nginx.conf"), cwd=tmp_path) == ""


def test_the_tests_of_rules_name_rules_and_runbooks_that_exist() -> None:
    """They run only where promtool is; their names can be checked everywhere."""
    text = text_of("prometheus/alerts_test.yml")
    names: set[Any] = {alert["name"] for alert in alerts()}

    assert set(re.findall(r"alertname: (\w+)", text)) <= names
    assert set(re.findall(r"runbook: (\S+)", text)) <= {alert["runbook"] for alert in alerts()}
