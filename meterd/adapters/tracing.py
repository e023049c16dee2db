"""Traces for OpenTelemetry, sent by OTLP over HTTP; needs the extra `otel`.

Rule 1: spans name organizations, commands and routes, never what a message says; errors pass the
mask of the log.
Rule 2: exporting is the SDK's own thread: a collector that is away costs spans, nothing else.
What the SDK itself reads from the environment (OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS,
OTEL_RESOURCE_ATTRIBUTES, ...) holds here too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import attrs
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from meterd import __version__
from meterd.observe.log import masked
from meterd.observe.spans import Attribute, Span, Spans


FLUSH_MS = 2_000
"""Milliseconds that the last spans may take to be sent at the end."""

ERROR_CHARACTERS_MAX = 200

_KINDS = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
}
_PROPAGATOR = TraceContextTextMapPropagator()


@attrs.frozen
class _OpenSpan:
    """`Span` on a span of the SDK."""

    span: trace.Span

    def tell(self, name: str, value: Attribute) -> None:
        """Keep a fact that was not known at the start."""
        self.span.set_attribute(name, value)

    def rename(self, name: str) -> None:
        """Give it the name that was not known at the start."""
        self.span.update_name(name)


@contextlib.contextmanager
def open_tracing(url: str, *, exporter: SpanExporter | None = None) -> Iterator[Spans]:
    """Give what opens spans, and send the last of them when the block is left.

    `exporter` replaces the one that sends to the URL, in tests.
    """
    provider = TracerProvider(
        resource=Resource.create({"service.name": "meterd", "service.version": __version__}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint=url)))
    try:
        yield spans_of(provider.get_tracer("meterd", __version__))
    finally:
        provider.force_flush(FLUSH_MS)
        provider.shutdown()


def spans_of(tracer: trace.Tracer) -> Spans:
    """Return `Spans` on a tracer of the SDK."""

    @contextlib.contextmanager
    def span(
        name: str,
        /,
        *,
        kind: str = "internal",
        headers: Mapping[str, str] | None = None,
        attributes: Mapping[str, Attribute] | None = None,
    ) -> Iterator[Span]:
        parent = None if headers is None else _PROPAGATOR.extract(headers)
        with tracer.start_as_current_span(
            name,
            context=parent,
            kind=_KINDS[kind],
            attributes=attributes,
            record_exception=False,  # it would quote the exception as it is
            set_status_on_exception=False,
        ) as opened:
            try:
                yield _OpenSpan(opened)
            except Exception as error:  # it goes on, and the span knows of it
                text = masked(f"{type(error).__name__}: {error}")[:ERROR_CHARACTERS_MAX]
                opened.set_status(Status(StatusCode.ERROR, text))
                raise

    return span
