"""/metrics from finished records: every metric, bounded labels, sums over processes."""

import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qproxy.telemetry import ResponseTokens, ToolRunRecord
from qproxy.telemetry.metrics import (
    MAX_SERVED_MODELS,
    MAX_TOOLS,
    READ_METRICS,
    TABLE,
    Metrics,
    exposition,
    table,
)
from qproxy.wire.token_ratios import TokenEstimate
from tests.telemetry.factories import record


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def shown(metrics):
    return samples(exposition([metrics.families()]))


def value(found, name, **labels):
    return found[(name, *sorted(labels.items()))]


GENAI = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "qwen",
    "gen_ai_request_model": "qwen3.7-plus",
}


def test_a_request():
    """A finished record updates every metric that its fields concern."""
    metrics = Metrics(lambda model: True)
    metrics.record(record())
    found = shown(metrics)

    def of(name, **labels):
        return value(found, name, **labels)

    model = {"model": "qwen3.7-plus"}
    assert of("qproxy_requests_total", endpoint="/chat/completions", status="200", outcome="ok", **model) == 1
    assert of("qproxy_key_requests_total", key="bob", outcome="ok") == 1
    for kind, count in (("prompt", 100), ("completion", 21), ("cached", 40), ("reasoning", 5)):
        assert of("qproxy_tokens_total", kind=kind, **model) == count
    assert of("qproxy_key_tokens_total", key="bob", kind="prompt") == 100
    assert of("gen_ai_client_token_usage_sum", gen_ai_token_type="input", **GENAI) == 100
    assert of("gen_ai_client_token_usage_bucket", gen_ai_token_type="output", le="64.0", **GENAI) == 1
    assert of("gen_ai_server_request_duration_seconds_sum", error_type="", **GENAI) == 1.5
    assert of("gen_ai_server_time_to_first_token_seconds_sum", **GENAI) == 0.4
    assert round(of("gen_ai_server_time_per_output_token_seconds_sum", **GENAI), 6) == 0.05
    assert round(of("qproxy_overhead_seconds_sum", endpoint="/chat/completions"), 6) == 0.1
    assert of("qproxy_retries_total", endpoint="/chat/completions") == 1
    assert of("qproxy_upstream_errors_total", account="two", code="upstream_error") == 1
    assert of("qproxy_repairs_total", kind="closer_missing") == 2
    assert of("qproxy_rules_total", rule="reasoning_effort") == 1
    assert of("qproxy_tool_runs_total", tool="clock", outcome="failed") == 1


def test_labels_are_bounded():
    """A name made up by a client becomes "other", unless an upstream served it, up to a number of names."""
    metrics = Metrics(lambda model: model == "qwen3.7-plus")
    for number in range(500):
        tools = [ToolRunRecord(f"tool{number}", True, 0.1)]
        name = f"made-up-{number}"
        metrics.record(record(model=name, served_model=name, tools=tools, first_byte=None))
    models = {labels["model"] for labels in _labels(metrics, "qproxy_requests_total")}
    assert models == {"other"}
    for number in range(500):
        metrics.record(record(model=f"served-{number}", served_model=f"served-{number}"))
    models = {labels["model"] for labels in _labels(metrics, "qproxy_requests_total")}
    assert len(models) == MAX_SERVED_MODELS + 1
    assert {"served-0", "other"} < models
    names = {labels["tool"] for labels in _labels(metrics, "qproxy_tool_runs_total")}
    assert len(names) == MAX_TOOLS + 1


def _labels(metrics, name):
    return [labels for *_, found in metrics.families() for sample, labels, _ in found if sample == name]


def test_every_metric_is_exported():
    """A registry with samples of every metric exports every row of the table, and nothing else."""
    metrics = Metrics(lambda model: True)
    metrics.record(record(), 0.5, 0.75)
    spoken = record(responses=[ResponseTokens(TokenEstimate(50, 0.25))])
    spoken.relay.units["characters"] = 12
    spoken.relay.cache_moves = 1
    metrics.record(spoken)
    metrics.read({row.name: partial(list, [(row.labels, 1.0)]) for row in READ_METRICS})
    names = set()
    for sample in shown(metrics):
        name = sample[0]
        for suffix in ("_bucket", "_sum", "_count"):
            name = name.removesuffix(suffix)
        names.add(name)
    process = {name for name in names if name.startswith("process_")}
    assert {"process_resident_memory_bytes", "process_start_time_seconds"} <= process
    assert names - process == {row.name for row in TABLE}


def test_costs_are_counted_if_a_price_is_known():
    """A known cost is summed by model and key; a request without one is counted as unpriced, never as 0."""
    metrics = Metrics(lambda model: True)
    for cost in (0.5, 0.25, None):
        metrics.record(record(), cost)
    found = shown(metrics)
    assert value(found, "qproxy_cost_dollars_total", model="qwen3.7-plus") == 0.75
    assert value(found, "qproxy_key_cost_dollars_total", key="bob") == 0.75
    assert value(found, "qproxy_unpriced_requests_total", model="qwen3.7-plus") == 1


def test_estimated_tokens_are_counted():
    """Tokens that no upstream reported count as in the ledger, even if the client disconnected early."""
    metrics = Metrics(lambda model: True)
    response = ResponseTokens(TokenEstimate(50, 0.25), text_bytes=400)
    metrics.record(record(usage=None, responses=[response], first_byte=None))
    found = shown(metrics)
    for kind, count in (("prompt", 50), ("completion", 100)):
        assert value(found, "qproxy_tokens_total", model="qwen3.7-plus", kind=kind) == count
        assert value(found, "qproxy_key_tokens_total", key="bob", kind=kind) == count
    assert value(found, "qproxy_estimated_requests_total", model="qwen3.7-plus") == 1


MERGED = {
    "qproxy_account_last_success_timestamp_seconds": (("one",), (7.0, 9.0), 9.0),
    "qproxy_token_expiry_timestamp_seconds": (("one",), (7.0, 9.0), 9.0),
    "qproxy_key_budget_remaining": (("bob", "day", "tokens"), (7.0, 9.0), 7.0),
    "qproxy_build_info": (("1", "3"), (1.0, 1.0), 1.0),
    "qproxy_requests_in_flight": ((), (7.0, 9.0), 16.0),
}


@pytest.mark.parametrize("name", MERGED)
def test_workers_are_merged_by_the_kind_of_a_metric(name):
    """Counts of several workers are added; times, versions and remainders are not."""
    labels, values, merged = MERGED[name]
    parts = []
    for one in values:
        metrics = Metrics()
        metrics.read({name: partial(list, [(labels, one)])})
        parts.append(metrics.families())
    found = samples(exposition(parts))
    assert [sample for mark, sample in found.items() if mark[0] == name] == [merged]
    starts = [sample for mark, sample in found.items() if mark[0] == "process_start_time_seconds"]
    assert 1e9 < starts[0] < 3e9, "a sum of two would be in the next century"


def test_the_table_in_the_docs():
    """docs/operations.md shows the table of metrics as the code has it."""
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert table() in text


def test_sums_over_processes():
    """Counts of several workers are summed, even after a round trip through JSON."""
    parts = []
    for outcome in ("ok", "ok", "client_disconnected"):
        metrics = Metrics(lambda model: True)
        metrics.record(record(outcome=outcome))
        metrics.read({"qproxy_requests_in_flight": lambda: [((), 2.0)]})
        parts.append(json.loads(json.dumps(metrics.families())))
    found = samples(exposition(parts))
    labels = {"endpoint": "/chat/completions", "model": "qwen3.7-plus", "status": "200"}
    assert value(found, "qproxy_requests_total", outcome="ok", **labels) == 2
    assert value(found, "qproxy_requests_total", outcome="client_disconnected", **labels) == 1
    assert value(found, "qproxy_requests_in_flight") == 6
    assert value(found, "gen_ai_server_request_duration_seconds_count", error_type="", **GENAI) == 2


def test_the_cost_of_counting():
    """A request of a known kind creates no series, and takes a few dozen calls."""
    metrics, again = Metrics(lambda model: True), record(failures=[], repairs=Counter(), tools=[], attempts=1)
    metrics.record(again)
    before, calls = repr(metrics), 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        metrics.record(again)
    finally:
        sys.setprofile(None)
    assert repr(metrics) == before
    assert 20 < calls < 120
