"""Traces: what is in a span, who is its parent, and that none is made unless asked for."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from typed_settings import Secret

from meterd.adapters.stripe.client import open_stripe
from meterd.adapters.tracing import open_tracing
from meterd.config import Config
from meterd.errors import PaymentsError
from meterd.observe.spans import Spans
from meterd.setting import Address
from meterd.system import Meterd, run_meterd
from meterd.testing.fake_stripe import open_fake_stripe
from tests.integration.service.harness import ADMIN_KEY, environment, running_meterd


pytestmark = pytest.mark.slow

SECRET = "sk_test_PlantedInTraces123456"
PARENT = "4bf92f3577b34da6a3ce929d0e0e4736"


@asynccontextmanager
async def traced_meterd(database_url: str, spans: Spans) -> AsyncIterator[httpx.AsyncClient]:
    """Run meterd in this process, its spans kept in memory by whoever opened them."""
    config = Config(
        database_url=Secret(database_url),
        bind=Address("127.0.0.1", 0),
        admin_key=Secret(ADMIN_KEY),
    )
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[Meterd]) -> None:
            await run_meterd(config, say=lambda _: None, spans=spans, task_status=task_status)

        running = await nursery.start(run)
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        async with httpx.AsyncClient(base_url=running.url, headers=headers, timeout=30) as http:
            yield http
        running.stop()


def facts(span: ReadableSpan) -> dict[str, Any]:
    """Return the attributes of a span."""
    return dict(span.attributes or {})


def named(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    """Return the last span of a name."""
    found = [span for span in exporter.get_finished_spans() if span.name == name]
    assert found, sorted({span.name for span in exporter.get_finished_spans()})
    return found[-1]


async def test_a_request_its_decision_and_the_flush_are_spans(database_url: str) -> None:
    """One trace from the caller through the request to the decision; what is said is not in it."""
    exporter = InMemorySpanExporter()
    with open_tracing("http://127.0.0.1:1", exporter=exporter) as spans:
        async with traced_meterd(database_url, spans) as http:
            body = {"id": "acme", "name": "Acme", "plan": "enterprise"}
            await http.post("/admin/v1/organizations", json=body)
            made = await http.post(
                "/admin/v1/organizations/acme/keys", json={"scopes": ["agent", "read"]}
            )
            key = {"authorization": f"Bearer {made.json()['key']}"}
            start = {"task_id": "t", "agent_id": "a", "metadata": {"note": "canary words"}}
            sent = {**key, "traceparent": f"00-{PARENT}-00f067aa0ba902b7-01"}
            assert (await http.post("/v1/tasks", json=start, headers=sent)).status_code == 201
            await http.post("/v1/tasks/t/heartbeat", json={"elapsed_ms": 5}, headers=key)
            await http.get("/v1/quota/check", headers=key)
            missing = await http.get("/v1/tasks/none", headers=key)
    request, decision = named(exporter, "POST /v1/tasks"), named(exporter, "decide StartTask")
    everything = "".join(span.to_json() for span in exporter.get_finished_spans())

    assert missing.status_code == 404
    assert request.context is not None
    assert facts(request)["http.response.status_code"] == 201
    assert format(request.context.trace_id, "032x") == PARENT
    assert decision.parent is not None
    assert decision.parent.span_id == request.context.span_id
    assert facts(decision)["meterd.organization"] == "acme"
    assert facts(decision)["meterd.outcome"] == "Started"
    assert facts(named(exporter, "flush"))["meterd.organizations"] >= 1
    assert named(exporter, "POST /v1/tasks/<path:task_id>/heartbeat").kind.name == "SERVER"
    assert named(exporter, "GET /v1/quota/check").kind.name == "SERVER"
    for secret in ("canary words", ADMIN_KEY, made.json()["key"]):
        assert secret not in everything


async def test_a_call_of_stripe_that_fails_is_a_span_without_its_key() -> None:
    """The error is in the trace, the secret is not."""
    exporter = InMemorySpanExporter()
    with open_tracing("http://127.0.0.1:1", exporter=exporter) as spans:
        async with open_fake_stripe(seed=1) as fake:
            fake.faults.away = True
            async with open_stripe(
                SECRET, jitter=iter([0.5] * 99), api_base=fake.url, spans=spans
            ) as payments:
                with pytest.raises(PaymentsError):
                    await payments.subscription("sub_1")
    span = named(exporter, "Stripe: read a subscription")

    assert span.kind.name == "CLIENT"
    assert span.status.status_code is StatusCode.ERROR
    assert span.events == ()
    assert SECRET not in span.to_json()


async def test_without_the_setting_nothing_of_it_is_loaded() -> None:
    """Off costs nothing: what makes spans is not even imported."""
    probe = "import sys, meterd.system; print('meterd.adapters.tracing' in sys.modules)"
    ran = await trio.run_process([sys.executable, "-c", probe], capture_stdout=True)

    assert ran.stdout == b"False\n"


async def test_the_setting_without_the_extra_says_what_to_install(database_url: str) -> None:
    """An operator who sets it sees a sentence, not an ImportError."""
    probe = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from meterd.cli import main; main(['serve', '--otlp-url', 'http://127.0.0.1:1'])"
    )
    ran = await trio.run_process(
        [sys.executable, "-c", probe],
        env=environment({"METERD_DATABASE_URL": database_url}),
        capture_stderr=True,
        check=False,
    )

    assert ran.returncode == 2, ran.stderr
    assert b"pip install 'meterd[otel]'" in ran.stderr


async def test_a_collector_that_is_away_costs_spans_and_nothing_else(database_url: str) -> None:
    """The service answers, and its stop does not wait for the collector."""
    settings = {"METERD_OTLP_URL": "http://127.0.0.1:1/v1/traces"}
    async with running_meterd("--database-url", database_url, settings=settings) as service:
        key = await service.organization("acme", "starter")
        async with service.client(key) as http:
            assert (await http.get("/v1/quota/check")).status_code == 200
        assert await service.stop() == 0
