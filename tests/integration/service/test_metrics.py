"""`/metrics` of a running service: the numbers move with what happens, and name no tenant."""

from __future__ import annotations

import re

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families as parsed

from meterd.observe.metrics import METRICS
from tests.integration.service.harness import Service, running_meterd
from tests.integration.service.stream import open_stream


pytestmark = pytest.mark.slow

NOT_HERE = {
    "meterd_stripe",
    "meterd_job",
    "meterd_charges",
    "meterd_alert",
    "meterd_mirror",
    "meterd_webhook",
}
"""Beginnings of names of parts that this service does not run."""


async def scraped(service: Service) -> dict[tuple[object, ...], float]:
    """Return every sample by name and labels."""
    answer = await service.http.get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parsed(answer.text)
        for sample in family.samples
    }


async def test_every_metric_is_there_and_moves_with_what_happens(database_url: str) -> None:
    """Heartbeats, refusals, flushes, requests and connections show up at the next scrape."""
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("acme-secret-name", "free")
        async with open_stream(service.stream_url, key) as stream:
            await stream.start("t", "a")
            for elapsed_ms in (10, 20, 30):
                await stream.beat("t", elapsed_ms)
            async with service.client(key) as client:
                body = {"task_id": "u", "agent_id": "b"}
                assert (await client.post("/v1/tasks", json=body)).status_code == 429
                assert (await client.get("/v1/quota/check")).status_code == 429
                assert (await client.get("/no/such/acme-secret-name")).status_code == 404
                await client.post("/v1/tasks/t/heartbeat", json={"elapsed_ms": 40})
            await trio.sleep(0.3)
            seen = await scraped(service)
            text = (await service.http.get("/metrics")).text

    names = {str(name) for name, *_ in seen}
    suffix = re.compile(r"_(bucket|sum|count)$")
    bases = {suffix.sub("", name) for name in names}
    missing = set(METRICS) - bases
    assert not {name for name in missing if not name.startswith(tuple(NOT_HERE))}
    assert seen[("meterd_heartbeats_total",)] == 4
    beat = (("command", "heartbeat"), ("outcome", "continue"))
    assert seen[("meterd_decisions_total", *beat)] == 4
    refused = (("command", "start_task"), ("outcome", "agent_limit_reached"))
    assert seen[("meterd_decisions_total", *refused)] == 1
    assert seen[("meterd_acknowledgement_latency_seconds_count",)] >= 5
    assert seen[("meterd_unflushed_facts",)] == 0
    assert seen[("meterd_actors", ("phase", "ready"))] == 1
    assert seen[("meterd_running_tasks",)] == 1
    assert seen[("meterd_connections", ("kind", "stream"))] == 1
    assert seen[("meterd_loop_lateness_seconds_count",)] >= 1
    assert seen[("meterd_ready",)] == 1
    for method, route, status in (
        ("GET", "/v1/quota/check", "429"),
        ("POST", "/v1/tasks/<path:task_id>/heartbeat", "200"),
        ("any", "none", "404"),
    ):
        labels = (("method", method), ("route", route), ("status", status))
        assert seen[("meterd_http_requests_total", *labels)] == 1
    assert "acme" not in text
