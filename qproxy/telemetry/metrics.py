"""Metrics: `/metrics` in Prometheus's text format.

`TABLE` has every metric; docs/operations.md has the same table, and a test compares them. Counters and
histograms are updated from finished records; gauges are read on each scrape and cost nothing otherwise.

Every label is bounded: endpoints are routes, models are those that are configured, listed by an upstream or
served by one (another is "other"), keys and accounts are the operator's, codes come from tables in the code.
OpenTelemetry's names for generative AI are used where they exist, in Prometheus's spelling.

The registry is separate from the default one, so an embedding program's metrics are not exposed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from qproxy.telemetry.records import RequestRecord, ToolRunRecord

OTHER = "other"
MAX_SERVED_MODELS = 200
"""Maximum number of models that become labels because a response came: some servers take any name."""
MAX_TOOLS = 200
"""Maximum number of tool names used as labels: an MCP server may have any number of tools."""
PROVIDER = "qwen"
_GENAI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_BYTE = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_OVERHEAD = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024)
_TOKENS = tuple(4**power for power in range(14))

Values: TypeAlias = Iterable[tuple[tuple[str, ...], float]]
"""(label values, value) of each sample of a gauge."""
Families: TypeAlias = list[tuple[str, str, str, list[tuple[str, dict[str, str], float]]]]
"""(name, help, kind, samples) of each metric, and (name, labels, value) of each sample: plain enough for
JSON."""
Merge: TypeAlias = Callable[[float, float], float]
KnownLabels: TypeAlias = Callable[[str], bool]


class MetricSpec(NamedTuple):
    """The declaration of one metric."""

    name: str
    kind: str
    """counter, gauge or histogram."""
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()
    merge: Merge = operator.add
    """Combines the values of two workers."""


# fmt: off
COUNTED_METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("qproxy_requests_total", "counter", ("endpoint", "model", "status", "outcome"),
        "Finished requests; outcome client_disconnected counts cancellations"),
    MetricSpec("qproxy_key_requests_total", "counter", ("key", "outcome"), "Requests by client key"),
    MetricSpec("qproxy_key_tokens_total", "counter", ("key", "kind"),
        "Tokens by client key, estimated ones included; kind is prompt or completion"),
    MetricSpec("qproxy_tokens_total", "counter", ("model", "kind"),
        "Tokens, estimated ones included; kind is prompt, completion, cached (part of prompt) or reasoning "
        "(part of completion)"),
    MetricSpec("qproxy_units_total", "counter", ("model", "unit"),
        "What is not measured in tokens; unit is characters, seconds, images, documents or searches"),
    MetricSpec("qproxy_estimated_requests_total", "counter", ("model",),
        "Requests whose tokens are estimated, because the upstream did not report them"),
    MetricSpec("qproxy_cost_dollars_total", "counter", ("model",),
        "Estimated cost in US dollars of requests whose price is known"),
    MetricSpec("qproxy_saved_dollars_total", "counter", ("model",),
        "Dollars that reads of the cache and the flex tier have saved, of requests that cost less by them"),
    MetricSpec("qproxy_key_cost_dollars_total", "counter", ("key",), "The same by client key"),
    MetricSpec("qproxy_unpriced_requests_total", "counter", ("model",),
        "Requests to accounts without a known price, whose cost is missing"),
    MetricSpec("gen_ai_client_token_usage", "histogram", (*_GENAI, "gen_ai_token_type"),
        "Tokens of a request, as reported; type is input or output", _TOKENS),
    MetricSpec("gen_ai_server_request_duration_seconds", "histogram", (*_GENAI, "error_type"),
        "From a request's first byte to the last byte of its response", _DURATION),
    MetricSpec("gen_ai_server_time_to_first_token_seconds", "histogram", _GENAI,
        "From a request's first byte to the model's first event", _FIRST_BYTE),
    MetricSpec("gen_ai_server_time_per_output_token_seconds", "histogram", _GENAI,
        "Per output token after the first", _PER_TOKEN),
    MetricSpec("qproxy_overhead_seconds", "histogram", ("endpoint",),
        "Time spent in qproxy or by the client, not waiting for an upstream", _OVERHEAD),
    MetricSpec("qproxy_retries_total", "counter", ("endpoint",), "Attempts after a failed one"),
    MetricSpec("qproxy_upstream_errors_total", "counter", ("account", "code"), "Failed attempts"),
    MetricSpec("qproxy_repairs_total", "counter", ("kind",), "Repairs of tool calls and streams"),
    MetricSpec("qproxy_tool_runs_total", "counter", ("tool", "outcome"),
        "Tool runs by the server; outcome is ok or failed"),
    MetricSpec("qproxy_tool_run_seconds", "histogram", ("tool",), "Duration of tool runs", _DURATION),
    MetricSpec("qproxy_rules_total", "counter", ("rule",), "Requests changed by a Qwen rule"),
    MetricSpec("qproxy_prompt_cache_moves_total", "counter", ("account",),
        "Requests that left the account whose prompt cache had their beginning, by the account that served "
        "them"),
)
"""Updated from finished records."""
READ_METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("qproxy_requests_in_flight", "gauge", (), "Requests in flight"),
    MetricSpec("qproxy_requests_admitted", "gauge", (), "Requests that hold one of the max_requests slots"),
    MetricSpec("qproxy_requests_waiting", "gauge", ("queue",),
        "Requests in a queue: for a request slot, or for an account"),
    MetricSpec("qproxy_requests_rejected_total", "counter", (),
        "Requests rejected because the queue was full, or after queue_timeout"),
    MetricSpec("qproxy_health", "gauge", ("state",),
        "1 for the state of /readyz: ready, unusable or draining; with several workers, the number in it"),
    MetricSpec("qproxy_account_state", "gauge", ("account", "state"),
        "1 for the account's state; with several workers, the number that report it"),
    MetricSpec("qproxy_account_last_success_timestamp_seconds", "gauge", ("account",),
        "Unix time of the account's last successful request; absent before the first", merge=max),
    MetricSpec("qproxy_account_requests_in_flight", "gauge", ("account",), "Requests in flight by account"),
    MetricSpec("qproxy_token_refreshes_total", "counter", ("account",),
        "Token refreshes of a logged-in account"),
    MetricSpec("qproxy_token_refresh_failures", "gauge", ("account",), "Consecutive failed refreshes"),
    MetricSpec("qproxy_token_expiry_timestamp_seconds", "gauge", ("account",),
        "Unix time at which the account's token expires; absent without one", merge=max),
    MetricSpec("qproxy_upstream_connections", "gauge", ("state",),
        "Open sockets to upstreams, busy or idle; busy ones beyond the requests in flight are leaks"),
    MetricSpec("qproxy_upstream_connections_made_total", "counter", (), "Connections made to upstreams"),
    MetricSpec("qproxy_key_budget_remaining", "gauge", ("key", "window", "unit"),
        "Requests, tokens or US dollars (usd) that a key's budget has left; absent while the ledger cannot "
        "be read", merge=min),
    MetricSpec("qproxy_build_info", "gauge", ("version", "python"),
        "1, with the versions of qproxy and Python", merge=max),
    MetricSpec("qproxy_stored_responses_total", "counter", ("what",),
        "Responses stored and discarded (too old or too many), and failed operations of the store"),
    MetricSpec("qproxy_shared_state_up", "gauge", (),
        "1 while the server of shared_state can be used; with several workers, the number that can use it"),
    MetricSpec("qproxy_shared_state_outbox", "gauge", (),
        "Keys and addresses with limits whose changes the server of shared_state does not have yet"),
    MetricSpec("qproxy_shared_state_commands_total", "counter", ("outcome",),
        "Commands for shared_state; outcome is ok, error (its reply), unknown (no reply) or unavailable (not "
        "sent)"),
    MetricSpec("qproxy_shared_state_seconds_total", "counter", (),
        "Seconds between commands for shared_state and their replies"),
)
# fmt: on
"""Read on each scrape."""
TABLE = (*COUNTED_METRICS, *READ_METRICS)
PROCESS_MERGES: dict[str, Merge] = {"process_start_time_seconds": min, "process_max_fds": min}
_MERGES: dict[str, Merge] = {
    **{row.name: row.merge for row in TABLE},
    **PROCESS_MERGES,
}
"""Other metrics of the process (`prometheus_client.ProcessCollector`) are sums."""
_KINDS: dict[str, Any] = {"counter": Counter, "histogram": Histogram}


class Metrics:
    """The metrics of this process."""

    def __init__(self, known: KnownLabels = lambda model: False) -> None:
        self.known = known
        """Returns whether a model's name may be a label."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._metrics: dict[str, Any] = {}
        self._children: dict[tuple[str, ...], Any] = {}
        self._readers: dict[str, Callable[[], Values]] = {}
        self._tools: set[str] = set()
        self._served_models: set[str] = set()
        ProcessCollector(registry=self._registry)  # of /proc: nothing elsewhere
        for row in COUNTED_METRICS:
            extra = {"buckets": row.buckets} if row.buckets else {}
            self._metrics[row.name] = _KINDS[row.kind](
                row.name, row.help, row.labels, registry=self._registry, **extra
            )

    def __repr__(self) -> str:
        return f"<Metrics with {len(self._children)} series>"

    def child(self, *mark: str) -> Any:
        """Return a metric with label values, cached because `labels()` is slow."""
        child = self._children.get(mark)
        if child is None:
            name, *labels = mark
            child = self._children[mark] = (
                self._metrics[name].labels(*labels) if labels else self._metrics[name]
            )
        return child

    def read(self, readings: Mapping[str, Callable[[], Values]]) -> None:
        """Set the functions that read the gauges' values."""
        self._readers.update(readings)

    def families(self) -> Families:
        """Return all metrics with their current values."""
        found: Families = []
        for family in self._registry.collect():
            samples = [(s.name, s.labels, s.value) for s in family.samples if not s.name.endswith("_created")]
            found.append((family.name, family.documentation, family.type, samples))
        for row in READ_METRICS:
            values = self._readers.get(row.name, tuple)()
            samples = [
                (row.name, dict(zip(row.labels, labels, strict=True)), value) for labels, value in values
            ]
            found.append((row.name.removesuffix("_total"), row.help, row.kind, samples))
        return found

    def record(
        self, record: RequestRecord, cost: float | None = None, full_cost: float | None = None
    ) -> None:
        """Count a finished request with its cost in US dollars, and the cost without cache and flex; None if
        they are not known."""
        story, child, key = record.relay, self.child, record.key or ""
        model = self._model_label(record)
        child("qproxy_requests_total", record.endpoint, model, str(record.status), record.outcome).inc()
        child("qproxy_key_requests_total", key, record.outcome).inc()
        self._record_tools(record.tools)
        counts = record.tokens()
        if any(counts):
            self._record_tokens(record, counts, model, key)
        for unit, amount in story.units.items():
            child("qproxy_units_total", model, unit).inc(amount)
        if cost is not None:
            child("qproxy_cost_dollars_total", model).inc(cost)
            child("qproxy_key_cost_dollars_total", key).inc(cost)
            if full_cost is not None and full_cost > cost:
                child("qproxy_saved_dollars_total", model).inc(full_cost - cost)
        elif story.account is not None and (any(counts) or story.units):
            child("qproxy_unpriced_requests_total", model).inc()
        if story.attempts:
            self._record_attempts(record, model)
        if record.first_byte is not None:
            genai = (record.operation, PROVIDER, model)
            child("gen_ai_server_time_to_first_token_seconds", *genai).observe(record.first_byte)
            each = record.seconds_per_token()
            if each is not None:
                child("gen_ai_server_time_per_output_token_seconds", *genai).observe(each)
            if story.usage is not None:
                reported = story.usage.prompt_tokens, story.usage.completion_tokens
                for kind, count in zip(("input", "output"), reported, strict=True):
                    child("gen_ai_client_token_usage", *genai, kind).observe(count)

    def _model_label(self, record: RequestRecord) -> str:
        """Return the requested name if it is known, else the served one, if known or served; else `OTHER`.

        A client can invent a name that an alias's pattern covers, but not the name of the model behind it.
        """
        model = record.relay.model
        if not model or self.known(model):
            return model
        name, served = record.relay.served_model or model, self._served_models
        if name in served or self.known(name):
            return name
        if record.first_byte is None or len(served) >= MAX_SERVED_MODELS:
            return OTHER
        served.add(name)
        return name

    def _record_attempts(self, record: RequestRecord, model: str) -> None:
        story, child = record.relay, self.child
        operation = record.operation
        error = "" if record.outcome == "ok" else record.error or record.outcome
        duration = child("gen_ai_server_request_duration_seconds", operation, PROVIDER, model, error)
        duration.observe(record.seconds)
        child("qproxy_overhead_seconds", record.endpoint).observe(record.overhead_seconds)
        if story.retries:
            child("qproxy_retries_total", record.endpoint).inc(story.retries)
        for failed in story.failures:
            child("qproxy_upstream_errors_total", failed.account, failed.code).inc()
        if story.cache_moves:
            child("qproxy_prompt_cache_moves_total", story.account or "").inc(story.cache_moves)
        for rule in story.rules:
            child("qproxy_rules_total", rule).inc()
        for kind, count in story.repairs.items():
            child("qproxy_repairs_total", kind).inc(count)

    def _record_tools(self, tools: Iterable[ToolRunRecord]) -> None:
        for tool in tools:
            if len(self._tools) < MAX_TOOLS:
                self._tools.add(tool.name)
            name = tool.name if tool.name in self._tools else OTHER
            self.child("qproxy_tool_runs_total", name, "ok" if tool.ok else "failed").inc()
            self.child("qproxy_tool_run_seconds", name).observe(tool.seconds)

    def _record_tokens(self, record: RequestRecord, counts: tuple[int, int], model: str, key: str) -> None:
        """Count the tokens in and out as the ledger does, so that both have the same sums."""
        child, usage = self.child, record.relay.usage
        for kind, count in zip(("prompt", "completion"), counts, strict=True):
            child("qproxy_tokens_total", model, kind).inc(count)
            child("qproxy_key_tokens_total", key, kind).inc(count)
        if record.is_estimated:
            child("qproxy_estimated_requests_total", model).inc()
        if usage is not None:
            for kind, count in (("cached", usage.cached_tokens), ("reasoning", usage.reasoning_tokens)):
                if count:
                    child("qproxy_tokens_total", model, kind).inc(count)


def exposition(processes: Iterable[Families]) -> bytes:
    """Return the sum of several processes' metrics in the text format."""
    heads: dict[str, tuple[str, str]] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for families in processes:
        for name, help_, kind, samples in families:
            heads.setdefault(name, (help_, kind))
            total = sums.setdefault(name, {})
            for sample, labels, value in samples:
                mark = (sample, tuple(labels.items()))
                merge: Merge = _MERGES.get(sample, operator.add)
                total[mark] = merge(total[mark], value) if mark in total else value
    merged = []
    for name, (help_, kind) in heads.items():
        family = Metric(name, help_, kind)
        for (sample, pairs), value in sums[name].items():
            family.add_sample(sample, dict(pairs), value)
        merged.append(family)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(merged))
    return generate_latest(registry)


class _Merged(Collector):
    """A collector for `generate_latest`."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def table() -> str:
    """Return the metrics as a Markdown table, for docs/operations.md."""
    rows = ["| metric | kind | labels | description |", "| --- | --- | --- | --- |"]
    for row in TABLE:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        rows.append(f"| `{row.name}` | {row.kind} | {labels} | {row.help} |")
    return "\n".join(rows) + "\n"
