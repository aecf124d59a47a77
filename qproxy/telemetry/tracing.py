"""OpenTelemetry traces of requests: a server span, and under it a client span for every try.

The extra `qproxy[otel]` brings the library, the setting `tracing` switches it on, and OpenTelemetry's own variables
(OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, ...) say where spans go.  Nothing of it is imported before.

The client's W3C `traceparent` is taken up, and each try carries its own on to its server.  Attributes are those of the
conventions for HTTP and for generative AI; prompts and answers are never among them.

https://www.w3.org/TR/trace-context/, https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import trio

from qproxy.telemetry.metrics import PROVIDER
from qproxy.telemetry.records import RequestRecord
from qproxy.version import VERSION
from qproxy.wire.http_request import Headers

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ImportError("traces need OpenTelemetry: pip install 'qproxy[otel]'") from error

SHUTDOWN_TIMEOUT = 3.0
PROPAGATED_HEADERS = ("traceparent", "tracestate")
_PROPAGATOR = TraceContextTextMapPropagator()


class OtelTracer:
    """Begins the traces of requests."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("qproxy", VERSION)

    def start(self, record: RequestRecord, header: Callable[[str], str | None]) -> RequestTrace:
        """The trace of a request that has just begun, under the client's own span if its header fields name one."""
        carrier = {name: value for name in PROPAGATED_HEADERS if (value := header(name))}
        span = self._tracer.start_span(
            f"{record.method} {record.path}",
            context=_PROPAGATOR.extract(carrier),
            kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": record.method, "url.path": record.path},
        )
        return RequestTrace(self._tracer, span, record)

    async def run(self) -> None:
        """Wait for the end, and then send what has not been sent."""
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(SHUTDOWN_TIMEOUT, shield=True):
                await trio.to_thread.run_sync(self._provider.shutdown, abandon_on_cancel=True)


def end_span(record: RequestRecord) -> None:
    """A listener: ends the trace of a finished request."""
    if record.relay.trace is not None:
        record.relay.trace.end(record)


class RequestTrace:
    """The spans of one request."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, record: RequestRecord) -> None:
        self._tracer = tracer
        self._span = span
        self._attempt_span: trace.Span | None = None
        self._operation = record.operation

    def start_attempt(self, account: str, model: str, url: str) -> Headers:
        """A span for a try; the header fields that carry it on to its server."""
        context, server = trace.set_span_in_context(self._span), urlsplit(url)
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": self._operation,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": model,
            "server.address": server.hostname or "",
            "qproxy.account": account,
        }
        with suppress(ValueError):
            attributes["server.port"] = server.port or (443 if server.scheme == "https" else 80)
        self._attempt_span = self._tracer.start_span(
            f"{self._operation} {model}", context=context, kind=trace.SpanKind.CLIENT, attributes=attributes
        )
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._attempt_span))
        return tuple((name.encode(), value.encode("latin-1", "replace")) for name, value in carrier.items())

    def end_attempt(self, error: str) -> None:
        """The try failed with this code."""
        if self._attempt_span is not None:
            _record_error(self._attempt_span, error)
            self._attempt_span.end()
            self._attempt_span = None

    def end(self, record: RequestRecord) -> None:
        """The request is over, and with it the try that served it."""
        error = "" if record.outcome == "ok" else record.error or record.outcome
        if self._attempt_span is not None:
            self._attempt_span.set_attributes(_usage_attributes(record))
            if error:
                _record_error(self._attempt_span, error)
            self._attempt_span.end()
        if record.endpoint:
            self._span.update_name(f"{record.method} {record.endpoint}")
            self._span.set_attribute("http.route", record.endpoint)
        self._span.set_attributes(
            {
                "http.response.status_code": record.status,
                "qproxy.request_id": record.id,
                "qproxy.outcome": record.outcome,
                "qproxy.attempts": record.relay.attempts,
            }
        )
        if error and record.status not in range(400, 500):  # a client's mistake is not a server's error
            _record_error(self._span, error)
        self._span.end()


def _record_error(span: trace.Span, error: str) -> None:
    span.set_attribute("error.type", error)
    span.set_status(trace.StatusCode.ERROR, error)


def _usage_attributes(record: RequestRecord) -> dict[str, Any]:
    """What an answer used, in the conventions' words."""
    usage, found = record.relay.usage, {}
    if usage is not None:
        found = {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
        }
    finish = {"gen_ai.response.finish_reasons": (record.finish_reason,)} if record.finish_reason else {}
    return {**found, **finish}


def exporting() -> OtelTracer:
    """A tracer whose spans go where OpenTelemetry's variables say, over OTLP.  ImportError without the extra."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "qproxy", "service.version": VERSION})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelTracer(provider)
