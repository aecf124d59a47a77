"""A strict reader of OpenAI's chat contract: it accepts only what a client may receive, and accumulates it.

Its input is the bytes of a response. It is stricter than any SDK on purpose: openai-python concatenates a
repeated id, inserts calls by list position and takes a silent end for success, so that a fault here breaks a
program there.
"""

import json

REASONS = {"stop", "length", "tool_calls", "content_filter", "function_call"}
CONTRACT = {"role", "content", "reasoning_content", "refusal", "tool_calls", "function_call"}
ENVELOPE = ("id", "object", "created", "model")
USAGE = {
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "prompt_tokens_details",
    "completion_tokens_details",
}


def _choice():
    return {"text": "", "thought": "", "calls": [], "ids": [], "reason": None}


def frames(raw):
    """Return the data of each event; raise AssertionError for anything but `data: ` lines, comments and blank
    lines."""
    text = raw.decode()
    assert text.endswith("\n\n")
    out = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        assert len(lines) <= 1
        for line in lines:
            assert line.startswith("data: ")
            assert len(line) > 6
            out.append(line[6:])
    return out


def read_stream(raw, *, usage=False, legacy=False):
    """Return (choices, error): the accumulated choices of a streamed response by number, and the error that
    ended it."""
    items = frames(raw)
    error = None
    if items[-1] != "[DONE]":
        failure = json.loads(items.pop())
        assert failure.keys() == {"error"}
        error = failure["error"]
        assert error.keys() >= {"message", "type", "code", "param"}
        assert isinstance(error["message"], str)
        assert error["message"]
    else:
        items.pop()
    assert "[DONE]" not in items
    chunks = [json.loads(item) for item in items]
    assert all("error" not in chunk for chunk in chunks)
    assert len({tuple(chunk[key] for key in ENVELOPE) for chunk in chunks}) <= 1
    if usage and error is None:
        last = chunks.pop()
        assert last["choices"] == []
        check_usage(last["usage"])
    choices: dict[int, dict] = {}
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk.get("usage", None) is None
        assert ("usage" in chunk) == usage
        (choice,) = chunk["choices"]
        assert choice.keys() >= {"index", "delta", "finish_reason", "logprobs"}
        first = choice["index"] not in choices
        _add(choices.setdefault(choice["index"], _choice()), choice, first, legacy)
    if error is None:
        assert choices
        assert all(choice["reason"] for choice in choices.values())
    return _ended(choices), error


def _add(sofar, choice, first, legacy):
    delta, reason = choice["delta"], choice["finish_reason"]
    assert sofar["reason"] is None, "something follows the finish"
    if first:
        assert delta.keys() == {"role", "content"}
        assert delta["role"] == "assistant"
        assert delta["content"] in ("", None)
        assert reason is None
        return
    if reason is not None:
        assert reason in REASONS
        assert delta == {}
        sofar["reason"] = reason
        return
    if not delta.keys() & CONTRACT:  # unknown fields that are forwarded
        return
    assert len(delta) == 1, "one thing a delta"
    ((key, value),) = delta.items()
    assert value
    if key == "content":
        sofar["text"] += value
    elif key == "reasoning_content":
        sofar["thought"] += value
    elif key == "function_call":
        assert legacy
        if "name" in value:
            assert value["arguments"] == ""
            sofar["calls"].append([value["name"], ""])
            sofar["ids"].append(str(len(sofar["ids"])))
        else:
            sofar["calls"][-1][1] += value["arguments"]
    else:
        assert key == "tool_calls"
        for entry in value:
            _entry(sofar, entry)


def _entry(sofar, entry):
    calls = sofar["calls"]
    if "id" not in entry:
        assert entry.keys() in ({"index", "function"}, {"index", "custom"})
        inner = entry.get("function") or entry["custom"]
        ((name, piece),) = inner.items()
        assert name == ("arguments" if "function" in entry else "input")
        assert isinstance(piece, str)
        assert piece
        assert entry["index"] == len(calls) - 1, "calls are not one after the other"
        calls[entry["index"]][1] += piece
        return
    kind = entry["type"]
    assert entry.keys() == {"index", "id", "type", kind}
    assert entry["index"] == len(calls), "indices are not dense"
    assert isinstance(entry["id"], str)
    assert entry["id"]
    assert entry["id"] not in sofar["ids"], "an id is used twice"
    assert entry[kind].keys() == {"name", "arguments" if kind == "function" else "input"}
    assert entry[kind]["name"]
    assert entry[kind]["arguments" if kind == "function" else "input"] == ""
    sofar["ids"].append(entry["id"])
    calls.append([entry[kind]["name"], ""])


def _ended(choices):
    """Return the choices, with their finish reasons checked against their content."""
    for choice in choices.values():
        if choice["reason"] in ("tool_calls", "function_call"):
            assert choice["calls"]
        if choice["reason"] == "stop":
            assert not choice["calls"]
    return choices


def check_usage(usage):
    if usage is None:  # the upstream reported none
        return
    assert usage.keys() >= USAGE
    counts = [usage[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")]
    assert all(isinstance(count, int) and count >= 0 for count in counts)


def read_whole(body, *, legacy=False):
    """Return the choices of a whole response, in the form of `read_stream`."""
    assert body.keys() >= {*ENVELOPE, "choices", "usage"}
    assert body["object"] == "chat.completion"
    check_usage(body["usage"])
    choices: dict[int, dict] = {}
    for number, choice in enumerate(body["choices"]):
        assert choice.keys() >= {"index", "message", "logprobs", "finish_reason"}
        assert choice["index"] == number
        assert choice["finish_reason"] in REASONS
        found = choices[number] = _choice()
        found["reason"] = choice["finish_reason"]
        _message(found, choice["message"], legacy)
    assert choices
    return _ended(choices)


def _message(found, message, legacy):
    assert message["role"] == "assistant"
    assert message.keys() >= {"content", "refusal"}
    found["text"] = message["content"] or ""
    found["thought"] = message.get("reasoning_content", "")
    calls = message.get("tool_calls")
    assert calls is None or calls, "an empty list of calls"
    assert "function_call" not in message or legacy
    for call in calls or ():
        kind = call["type"]
        assert call.keys() == {"id", "type", kind}
        name, text = call[kind]["name"], call[kind]["arguments" if kind == "function" else "input"]
        assert isinstance(text, str)
        found["ids"].append(call["id"])
        found["calls"].append([name, text])
    if "function_call" in message:
        found["ids"].append("0")
        found["calls"].append([message["function_call"]["name"], message["function_call"]["arguments"]])
    assert len(set(found["ids"])) == len(found["ids"])
    if message["content"] is None:
        assert found["calls"], "null content without calls"
    elif found["calls"]:
        assert message["content"], "empty content beside calls"
