"""Adapt a client's tools to what Qwen accepts, and undo the changes in the response.

    names      letters, digits, _ and -, at most 64 characters, and not `search`: others get an alias
    custom     a tool with free-form input (a patch, a program) becomes a function with one string parameter
               `input`; the client gets the bare input out of the model's JSON, as it comes

`adapt_tools` returns the changed turn and the `ToolNameRestorer` stage for the response's events, or None if
nothing had to change. It changes tools, the tool choice, and the calls in the history alike, so that they
stay consistent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from qproxy.wire import json_codec
from qproxy.wire.events import (
    JSON,
    ChoiceFinished,
    Event,
    StreamFailed,
    ToolCallArgumentsDelta,
    ToolCallStart,
    Turn,
)
from qproxy.wire.pipeline import Stage
from qproxy.wire.tool_calls.json_strings import StringDecoder, string_end, value_end
from qproxy.wire.tool_calls.text_buffer import ParseSteps, TextBuffer

INPUT = "input"
MAX_NAME = 64
_VALID_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_INVALID_CHARACTERS = re.compile(r"[^A-Za-z0-9_-]")
UNSUPPORTED_TOOLS = frozenset({"search"})


def adapt_tools(turn: Turn, *, names: bool) -> tuple[Turn, Stage[Event, Event] | None]:
    """Return the turn for Qwen and the stage that undoes the change; `names`: whether the server restricts
    names.
    """
    customs = {_name(tool) for tool in turn.tools if tool.get("type") == "custom"}
    calls = [call for message in turn.messages if "tool_calls" in message for call in _calls(message)]
    stand_ins = _aliases({_name(one) for one in (*turn.tools, *calls)}) if names else {}
    if not customs and not stand_ins and not any(call.get("type") == "custom" for call in calls):
        return turn, None
    changed = replace(
        turn,
        tools=[_tool(tool, stand_ins) for tool in turn.tools],
        tool_choice=_choice(turn.tool_choice, stand_ins),
        messages=[_message(message, stand_ins) for message in turn.messages],
    )
    back = {stand_in: name for name, stand_in in stand_ins.items()}
    return changed, ToolNameRestorer(back, frozenset(customs))


def _name(tool: Mapping[str, Any]) -> str:
    inner = tool.get(tool.get("type") or "function")
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else ""


def _calls(message: JSON) -> list[JSON]:
    calls = message.get("tool_calls") if message.get("role") == "assistant" else None
    return calls if isinstance(calls, list) else []


def _aliases(used: set[str]) -> dict[str, str]:
    """Return an alias for each name that Qwen rejects; the same one in every turn of a conversation."""
    return {
        name: alias_name(name, used)
        for name in used
        if not (_VALID_NAME.match(name) and name not in UNSUPPORTED_TOOLS)
    }


def alias_name(name: str, used: set[str]) -> str:
    """Return a name that Qwen accepts: the valid part, and a digest where that is ambiguous."""
    clean = _INVALID_CHARACTERS.sub("_", name)[:MAX_NAME]
    if clean not in used and clean not in UNSUPPORTED_TOOLS and len(name) <= MAX_NAME:
        peers = [
            other
            for other in used
            if other != name and _INVALID_CHARACTERS.sub("_", other)[:MAX_NAME] == clean
        ]
        if clean and not peers:
            return clean
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{clean[: MAX_NAME - 9]}_{digest}"


def _tool(tool: JSON, stand_ins: Mapping[str, str]) -> JSON:
    name = _name(tool)
    new = stand_ins.get(name, name)
    if tool.get("type") == "custom":
        return {"type": "function", "function": _wrapped(tool["custom"], new)}
    return tool if new == name else {**tool, "function": {**tool["function"], "name": new}}


def _wrapped(custom: Mapping[str, JSON], name: str) -> JSON:
    """Return a custom tool as a function with one string parameter."""
    described = custom.get("description") or ""
    form: JSON = custom.get("format")
    grammar: JSON = form.get("grammar") or form if isinstance(form, dict) else None
    about = "The tool's whole input, as plain text."
    if isinstance(grammar, dict) and isinstance(grammar.get("definition"), str):
        syntax = grammar.get("syntax") or "lark"
        about += f" It must follow this {syntax} grammar:\n{grammar['definition']}"
    schema = {
        "type": "object",
        "properties": {INPUT: {"type": "string", "description": about}},
        "required": [INPUT],
        "additionalProperties": False,
    }
    return {"name": name, "description": described, "parameters": schema}


def _choice(choice: JSON, stand_ins: Mapping[str, str]) -> JSON:
    if not isinstance(choice, dict):
        return choice
    name = _name(choice)
    return {"type": "function", "function": {"name": stand_ins.get(name, name)}}


def _message(message: JSON, stand_ins: Mapping[str, str]) -> JSON:
    calls = _calls(message)
    if message.get("role") == "tool" and message.get("name") in stand_ins:
        return {**message, "name": stand_ins[message["name"]]}
    changed = [_call(call, stand_ins) for call in calls]
    if all(new is old for new, old in zip(changed, calls, strict=True)):
        return message
    return {**message, "tool_calls": changed}


def _call(call: JSON, stand_ins: Mapping[str, str]) -> JSON:
    name = _name(call)
    new = stand_ins.get(name, name)
    if call.get("type") == "custom":
        arguments = json_codec.dumps({INPUT: call["custom"].get("input") or ""}).decode()
        return {"id": call.get("id"), "type": "function", "function": {"name": new, "arguments": arguments}}
    return call if new == name else {**call, "function": {**call["function"], "name": new}}


class ToolNameRestorer:
    """A stage that restores the client's own names, and the bare input of its custom tools."""

    def __init__(self, names: Mapping[str, str], customs: frozenset[str]) -> None:
        self._names = names
        self._customs = customs
        self._inputs: dict[tuple[int, int], _CustomInput] = {}

    def feed(self, item: Event) -> Iterator[Event]:
        if isinstance(item, ToolCallStart):
            name = self._names.get(item.name, item.name)
            custom = name in self._customs
            if custom:
                self._inputs[item.choice, item.index] = _CustomInput()
            yield replace(item, name=name, custom=custom)
        elif isinstance(item, ToolCallArgumentsDelta) and (item.choice, item.index) in self._inputs:
            yield from self._restored(item.choice, item.index, item.text)
        else:
            if isinstance(item, ChoiceFinished | StreamFailed):
                for choice, index in list(self._inputs):
                    if isinstance(item, StreamFailed) or item.choice == choice:
                        yield from self._restored(choice, index, "", last=True)
                        del self._inputs[choice, index]
            yield item

    def _restored(self, choice: int, index: int, text: str, *, last: bool = False) -> Iterator[Event]:
        out = self._inputs[choice, index].feed(text, last=last)
        if out:
            yield ToolCallArgumentsDelta(index, out, choice)

    def close(self) -> Iterator[Event]:
        return iter(())


class _CustomInput:
    """The value of `input` in the arguments' JSON text; arguments of any other form are the input
    themselves.
    """

    def __init__(self) -> None:
        self._source = TextBuffer()
        self._out: list[str] = []
        self._reading: ParseSteps[None] | None = self._read()

    def feed(self, text: str, *, last: bool = False) -> str:
        self._source.push(text)
        self._source.is_ended = self._source.is_ended or last
        if self._reading is not None:
            try:
                next(self._reading)
            except StopIteration:
                self._reading = None
        out, self._out = "".join(self._out), []
        return out

    def _read(self) -> ParseSteps[None]:
        source = self._source
        offset = yield from self._start()
        if offset < 0:
            while True:
                self._out.append(source.consume(len(source)))
                if not (yield from source.has_more()):
                    return
        source.consume(offset)
        if not source.may_start_with('"'):
            end = yield from value_end(source, 0)
            self._out.append(source.consume(len(source) if end < 0 else end))
            return
        source.consume(1)
        decoding = StringDecoder()
        while not decoding.finished:
            self._out.append(decoding.read(source))
            if not decoding.finished and not (yield from source.has_more()):
                return

    def _start(self) -> ParseSteps[int]:
        """Return the offset of the value of `input`; -1 if this is not the expected JSON."""
        source = self._source
        offset = yield from source.visible()
        if not (yield from source.starts_with(offset + 1)) or not source.may_start_with("{", offset):
            return -1
        while True:
            offset = yield from source.visible(offset + 1)
            if source.may_start_with("}", offset) and offset == 1:
                source.consume(offset + 1)
                return 0 if source.is_ended else -1
            end = yield from string_end(source, offset)
            colon = (yield from source.visible(end)) if end > 0 else -1
            if colon < 0 or not source.may_start_with(":", colon):
                return -1
            value = yield from source.visible(colon + 1)
            if source.take_chunk(offset, end) == f'"{INPUT}"':
                return value
            end = yield from value_end(source, value)
            offset = (yield from source.visible(end)) if end > 0 else -1
            if offset < 0 or not source.may_start_with(",", offset):
                return -1
