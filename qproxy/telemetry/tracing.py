"""OpenTelemetry traces of requests: a server span with a client span for each attempt.

The extra `qproxy[otel]` installs the library, the setting `tracing` enables it, and OpenTelemetry's own
variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, ...) configure the export. The library is
imported only if enabled.

The client's W3C `traceparent` is continued, and each attempt sends its own to its upstream. Attributes follow
the conventions for HTTP and for generative AI; prompts and responses are never among them.

https://www.w3.org/TR/trace-context/, https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import trio

from qproxy.system.extras import install_command
from qproxy.telemetry.metrics import PROVIDER
from qproxy.telemetry.records import RequestRecord
from qproxy.version import VERSION
from qproxy.wire.http_request import Headers

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ImportError(f"tracing requires OpenTelemetry: {install_command('otel')}") from error

SHUTDOWN_TIMEOUT = 3.0
PROPAGATED_HEADERS = ("traceparent", "tracestate")
_PROPAGATOR = TraceContextTextMapPropagator()


class OtelTracer:
    """Starts the traces of requests."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("qproxy", VERSION)

    def start(self, record: RequestRecord, header: Callable[[str], str | None]) -> RequestTrace:
        """Start a trace, under the client's span if the request's headers have one."""
        carrier = {name: value for name in PROPAGATED_HEADERS if (value := header(name))}
        span = self._tracer.start_span(
            f"{record.method} {record.path}",
            context=_PROPAGATOR.extract(carrier),
            kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": record.method, "url.path": record.path},
        )
        return RequestTrace(self._tracer, span, record)

    async def run(self) -> None:
        """Wait until cancelled, then export pending spans."""
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(SHUTDOWN_TIMEOUT, shield=True):
                await trio.to_thread.run_sync(self._provider.shutdown, abandon_on_cancel=True)


def end_span(record: RequestRecord) -> None:
    """End the trace of a finished request; a listener of `RequestCounters`."""
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
        """Start the span of an attempt; return the headers that propagate it."""
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
        """End the attempt's span with this error code."""
        if self._attempt_span is not None:
            _record_error(self._attempt_span, error)
            self._attempt_span.end()
            self._attempt_span = None

    def end(self, record: RequestRecord) -> None:
        """End the spans of the request and of its last attempt."""
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
        if error and record.status not in range(
            400, 500
        ):  # a client error is not an error of the server span
            _record_error(self._span, error)
        self._span.end()


def _record_error(span: trace.Span, error: str) -> None:
    span.set_attribute("error.type", error)
    span.set_status(trace.StatusCode.ERROR, error)


def _usage_attributes(record: RequestRecord) -> dict[str, Any]:
    """Return the usage as attributes of the conventions."""
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
    """Return a tracer that exports over OTLP as configured by environment. Raises ImportError without the
    extra."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "qproxy", "service.version": VERSION})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelTracer(provider)
