"""Well-formed requests and responses, and arbitrary JSON in place of any of their values."""

import copy
from contextlib import suppress

from hypothesis import strategies as st

from tests.wire.strategies import TOOLS

CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "alpha", "arguments": '{"a": "x"}'}}
DELTA = {"role": "assistant", "content": "hi", "reasoning_content": "hm", "tool_calls": [CALL]}
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "input_tokens": 3,
    "output_tokens": 2,
    "prompt_tokens_details": {"cached_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
LOGPROBS = {"content": [{"token": "hi", "logprob": -0.5, "bytes": [104, 105], "top_logprobs": []}]}
CHOICE = {"index": 0, "delta": DELTA, "message": DELTA, "finish_reason": "stop", "logprobs": LOGPROBS}
ANSWERS = {
    "compatible": {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [CHOICE],
        "usage": USAGE,
    },
    "dashscope": {
        "output": {"choices": [{"message": DELTA, "finish_reason": "stop"}]},
        "usage": USAGE,
        "request_id": "r",
    },
    "error": {
        "error": {"message": "no", "type": "t", "param": None, "code": "Throttling"},
        "request_id": "r",
        "status": 429,
    },
    "native error": {"code": "InvalidParameter", "message": "no", "request_id": "r"},
}
ASK = {
    "model": "qwen-plus",
    "messages": [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "hi"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ],
    "input": "hi",
    "prompt": "hi",
    "instructions": "be kind",
    "tools": [*TOOLS, {"type": "custom", "custom": {"name": "free", "format": {"type": "text"}}}],
    "tool_choice": {"type": "function", "function": {"name": "alpha"}},
    "functions": [{"name": "f", "parameters": {"type": "object", "properties": {}}}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 1,
    "top_p": 0.5,
    "n": 1,
    "stop": ["x"],
    "max_tokens": 10,
    "max_completion_tokens": 10,
    "logprobs": True,
    "top_logprobs": 2,
    "logit_bias": {"1": 1},
    "metadata": {"a": "b"},
    "reasoning_effort": "low",
    "seed": 1,
    "user": "u",
    "parallel_tool_calls": True,
}  # fmt: skip
ITEMS = [
    {"role": "developer", "content": "be kind"},
    {"role": "user", "content": [{"type": "input_text", "text": "hi"},
        {"type": "input_image", "image_url": "data:x", "detail": "low"}]},
    {"role": "user", "content": [{"type": "input_file", "file_data": "data:x", "filename": "f"},
        {"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}]},
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}], "content": None,
        "encrypted_content": "qproxy-1.aA=="},
    {"type": "message", "role": "assistant",
        "content": [{"type": "output_text", "text": "so"}, {"type": "refusal", "refusal": "no"}]},
    {"type": "function_call", "call_id": "c1", "name": "alpha", "arguments": '{"a": "x"}'},
    {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "sunny"}]},
    {"type": "custom_tool_call", "call_id": "c2", "name": "free", "input": "x"},
    {"type": "custom_tool_call_output", "call_id": "c2", "output": "y"},
    {"type": "mcp_call", "id": "mcp_1", "server_label": "w", "name": "get", "arguments": "{}", "output": "z",
        "error": None},
]  # fmt: skip
RESPONSES = {
    "model": "qwen-plus",
    "input": ITEMS,
    "instructions": "be kind",
    "tools": [
        {"type": "function", "name": "alpha", "parameters": {"type": "object", "properties": {}},
            "strict": True},
        {"type": "custom", "name": "free",
            "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
        {"type": "mcp", "server_label": "w", "allowed_tools": ["get"]},
        {"type": "web_search"},
        {"type": "namespace", "name": "g", "tools": [{"type": "function", "name": "beta", "parameters": {}}]},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto",
        "tools": [{"type": "function", "name": "alpha"}]},
    "text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}},
        "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
    "metadata": {"a": "b"},
    "previous_response_id": "resp_1",
    "stream": True,
    "store": True,
    "truncation": "auto",
    "max_output_tokens": 10,
    "top_logprobs": 2,
    "background": False,
}  # fmt: skip
MARKER = {"type": "ephemeral", "ttl": "1h"}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "eA=="}}
REFERENCE = {"type": "tool_reference", "name": "beta"}
MESSAGES = {
    "model": "qwen-plus",
    "max_tokens": 4096,
    "system": [{"type": "text", "text": "x-anthropic-billing-header: a"},
        {"type": "text", "text": "be kind", "cache_control": MARKER}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": MARKER}, IMAGE]},
        {"role": "system",
            "content": [{"type": "text", "text": "now"},
                {"type": "tool_addition", "tool": {"type": "tool_definition",
                    "definition": {"name": "gamma", "input_schema": {}}}}], "clear_at": "never"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "", "signature": "qproxy-thinking.aG0="},
            {"type": "thinking", "thinking": "hm", "signature": "qwen-sealed.x"},
            {"type": "text", "text": "so"},
            {"type": "tool_use", "id": "toolu_b64_Zjow", "name": "alpha", "input": {"a": "x"}},
            {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_b64_Zjow", "is_error": True,
                "content": [{"type": "text", "text": "sunny"}, IMAGE]},
            {"type": "document", "title": "t",
                "source": {"type": "content", "content": [{"type": "text", "text": "d"}]}},
            {"type": "search_result", "title": "t", "source": "https://x",
                "content": [{"type": "text", "text": "s"}]},
        ]},
        {"role": "system", "content": [{"type": "tool_removal", "tool": REFERENCE}],
            "output_config": {"effort": "low"}},
    ],
    "tools": [
        {"name": "alpha", "description": "d", "input_schema": {"type": "object"},
            "eager_input_streaming": True},
        {"type": "custom", "name": "beta", "input_schema": {}, "strict": True, "cache_control": MARKER},
        {"type": "web_search_20250305", "name": "web_search"},
        {"type": "mcp", "server_label": "w", "allowed_tools": ["get"]},
    ],
    "tool_choice": {"type": "tool", "name": "alpha", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
    "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "stop_sequences": ["x"],
    "metadata": {"user_id": "u"},
    "mcp_servers": [],
    "stream": True,
    "temperature": 1,
    "top_k": 5,
}  # fmt: skip
ASKS = {"/responses": RESPONSES, "/messages": MESSAGES}
odd_text = st.sampled_from(
    ["", "x", "\ud800", "\x00", "9" * 5000, "٣", "function", "error", "{", "[DONE]", "🌊"]
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.just(10**400), st.floats(-1, 9e300), odd_text
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(odd_text, inner, max_size=2)),
    max_leaves=4,
)


def spots(value):
    """Return every place in a value, as a path."""
    yield ()
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from ((key, *way) for way in spots(item))


def changed(value, way, new):
    """Return the value with another one at a place."""
    if not way:
        return new
    value = copy.copy(value)
    value[way[0]] = changed(value[way[0]], way[1:], new)
    return value


def mutations(value):
    return st.lists(st.tuples(st.sampled_from(list(spots(value))), values), min_size=1, max_size=3)


def mutated(value, changes):
    for way, new in changes:
        with suppress(LookupError, TypeError):  # an earlier change has removed the place
            value = changed(value, way, new)
    return value
