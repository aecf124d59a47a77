"""OpenTelemetry traces: a server span, a client span per attempt, and W3C context in and out."""

import sys
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from qproxy.bootstrap.app import build_server
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.emulator import FAULTS
from qproxy.telemetry import tracing
from tests.helpers import HELLO, MODEL, accounts, world

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


def record_spans(server):
    """Record the spans of a server's requests, and return their exporter."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    server.state = replace(server.state, tracer=tracing.OtelTracer(provider))
    server.middleware.listeners += (tracing.end_span,)
    return exporter


async def test_spans_of_a_request_with_two_attempts(autojump_clock):
    """The client's trace continues in a server span and one client span per attempt, whose ids the upstreams
    receive."""
    async with world(accounts=accounts("one", "two")) as it:
        exporter = record_spans(it.server)
        it.emulator.script(FAULTS["fault-500"][1])
        trace_headers = [(b"traceparent", f"00-{TRACE}-{PARENT}-01".encode()), (b"tracestate", b"vendor=1")]
        await it.post(HELLO, headers=trace_headers)
        first, second, server = exporter.get_finished_spans()
    assert server.kind is SpanKind.SERVER
    assert server.name == "POST /chat/completions"
    assert f"{server.context.trace_id:032x}" == TRACE
    assert f"{server.parent.span_id:016x}" == PARENT
    assert server.attributes["http.response.status_code"] == 200
    assert server.status.status_code is StatusCode.UNSET
    for span in (first, second):
        assert (span.kind, span.name) == (SpanKind.CLIENT, f"chat {MODEL}")
        assert span.parent.span_id == server.context.span_id
        assert span.attributes["gen_ai.operation.name"] == "chat"
        assert span.attributes["gen_ai.request.model"] == MODEL
    assert first.attributes["error.type"] == "upstream_error"
    assert second.attributes["gen_ai.usage.input_tokens"] > 0
    assert second.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    ids = [f"{span.context.span_id:016x}" for span in (first, second)]
    sent = [request.headers for request in it.emulator.requests]
    assert [head["traceparent"] for head in sent] == [f"00-{TRACE}-{id_}-01" for id_ in ids]
    assert {head["tracestate"] for head in sent} == {"vendor=1"}


async def test_spans_of_a_truncated_stream_and_an_invalid_request():
    """A stream's attempt lasts until its end; a client's mistake ends its span without an error."""
    async with world() as it:
        exporter = record_spans(it.server)
        it.emulator.script(FAULTS["fault-end"][1])
        await it.stream(HELLO)
        client, server = exporter.get_finished_spans()
        assert client.status.status_code is server.status.status_code is StatusCode.ERROR
        assert server.attributes["qproxy.outcome"] == "upstream_truncated"
        exporter.clear()
        await it.post({"model": MODEL})
        (span,) = exporter.get_finished_spans()
        assert span.attributes["http.response.status_code"] == 400
        assert span.status.status_code is StatusCode.UNSET


async def test_without_tracing_no_context_is_forwarded():
    """No traceparent, not even the client's, reaches an upstream unless tracing is enabled."""
    async with world() as it:
        await it.post(HELLO, headers=[(b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())])
        assert "traceparent" not in it.emulator.requests[0].headers


def test_without_the_library(monkeypatch):
    """Enabling tracing without OpenTelemetry raises ConfigError with the packages to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install .*opentelemetry-sdk"):
        build_server(Config(accounts=accounts("one"), tracing=True))
