"""Calls in `<tool_call>` that are not JSON with the name in it: variants of Qwen models.

    "<tool_call>" ("<function>" NAME "</function>" | "<name>" NAME "</name>" | NAME) WS? BODY "</tool_call>"
    "<tool_call>" "<function>" JSON "</function>" "</tool_call>"
    "<tool_call>" (PYTHON | "[" PYTHON ("," PYTHON)* "]" | a code block of JSON or PYTHON) "</tool_call>"

    BODY := OBJECT | ("<arguments>" | "<parameters>") OBJECT | after an element, a tool's one string
    PYTHON := NAME "(" arguments ")" | a dictionary with "name" and "arguments"

NAME must be declared: nothing else distinguishes these from prose about `<tool_call>`. An object is passed on
as it comes. Python can be judged only as a whole, so it is held until the closing tag (MAX_TEXT); its values
must be literals.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator

from qproxy.wire import json_codec
from qproxy.wire.events import JSON
from qproxy.wire.tool_calls import bare_json, function_tags, hermes
from qproxy.wire.tool_calls.code_fences import without_fence
from qproxy.wire.tool_calls.emitter import DeclaredFunctions, EventEmitter
from qproxy.wire.tool_calls.text_buffer import ParseSteps, TextBuffer

MAX_NAME = 512
MAX_TEXT = 64 * 1024
"""Characters of Python held until its closing tag; a longer one is text."""
MAX_CLOSERS = 8
"""Closing tags in one text that are tried as its end: a string may hold one."""
_ELEMENTS = {"<function>": "</function>", "<name>": "</name>"}
_NAME_END = re.compile(r"[^\w.-]")
_CLOSER = re.compile("</(?:tool_calls?|function_calls?|tools)>")
_BODIES = ("<arguments>", "<parameters>")
_FENCE = "```"
_JSON_NAMES = {"true": True, "false": False, "null": None}


def parse_call(
    source: TextBuffer, sink: EventEmitter, tools: DeclaredFunctions, start: int, closers: tuple[str, ...]
) -> ParseSteps[bool]:
    """Read the calls whose first name is at `start`, up to one of the closing tags; return False, with
    nothing consumed, if it is text.
    """
    if (yield from _begins_held(source, tools, start)):
        return (yield from _held(source, sink, tools, start, closers))
    element = yield from source.match_any(tuple(_ELEMENTS), start)
    offset = (yield from source.visible(start + len(element))) if element is not None else start
    if element == "<function>" and source.may_start_with("{", offset):
        return (yield from hermes.parse_call(source, sink, tools, offset, declared=True))
    end = yield from source.read_until(_NAME_END, offset, MAX_NAME, tools.is_prefix)
    name = tools.resolve(source.take_chunk(offset, end)) if end >= 0 else ""
    if name not in tools:
        return False
    if element is None and source.may_start_with("(", end):
        return (yield from _held(source, sink, tools, start, closers))
    end = yield from source.visible(end)
    if element is not None:
        if (yield from source.match_any((_ELEMENTS[element],), end)) is None:
            return False
        end = yield from source.visible(end + len(_ELEMENTS[element]))
        if (body := (yield from source.match_any(_BODIES, end))) is not None:
            end = yield from source.visible(end + len(body))
        elif tools.only_string(name) is not None and not source.may_start_with("{", end):
            return (yield from _free_text(source, sink, tools, name, end, closers))
    inside = (yield from source.visible(end + 1)) if source.may_start_with("{", end) else -1
    if inside < 0 or not (source.may_start_with('"', inside) or source.may_start_with("}", inside)):
        return False
    sink.begin_call(name, "named")
    source.consume(end)
    sink.emit_arguments((yield from hermes.as_call(source, sink)))
    offset = yield from source.visible()
    if (closer := (yield from source.match_any(closers, offset))) is not None:
        source.consume(offset + len(closer))
    return True


def _free_text(
    source: TextBuffer,
    sink: EventEmitter,
    tools: DeclaredFunctions,
    name: str,
    start: int,
    closers: tuple[str, ...],
) -> ParseSteps[bool]:
    """Read the bare text of a tool whose one parameter is a string, up to a closing tag that ends it."""
    end = yield from source.read_until(_CLOSER, start, MAX_TEXT)
    closer = (yield from source.match_any(closers, end)) if end >= 0 else None
    if closer is None:
        return False
    sink.begin_call(name, "named")
    sink.emit_arguments(function_tags.text_argument(source.take_chunk(start, end), tools, name))
    source.consume(end + len(closer))
    return True


def _begins_held(source: TextBuffer, tools: DeclaredFunctions, start: int) -> ParseSteps[bool]:
    """Return whether a list of Python calls, a Python dictionary or a code block may begin at `start`."""
    if source.may_start_with("`", start):
        return (yield from source.match_any((_FENCE,), start)) is not None
    listed = source.may_start_with("[", start)
    offset = (yield from source.visible(start + 1)) if listed else start
    if source.may_start_with("{", offset):
        inside = yield from source.visible(offset + 1)
        return source.may_start_with("'", inside)
    if not listed:
        return False
    end = yield from source.read_until(_NAME_END, offset, MAX_NAME, tools.is_prefix)
    declared = end >= 0 and tools.resolve(source.take_chunk(offset, end)) in tools
    return declared and source.may_start_with("(", end)


def _held(
    source: TextBuffer, sink: EventEmitter, tools: DeclaredFunctions, start: int, closers: tuple[str, ...]
) -> ParseSteps[bool]:
    """Read calls that can be judged only as a whole: they are held until their closing tag."""
    end = start
    for _ in range(MAX_CLOSERS):
        end = yield from source.read_until(_CLOSER, end, MAX_TEXT)
        if end - start > MAX_TEXT or (end < 0 and not source.is_ended):
            return False
        stop = len(source) if end < 0 else end
        closer = "" if end < 0 else (yield from source.match_any(closers, end)) or ""
        text, size = without_fence(source.take_chunk(start, stop)), stop + len(closer)
        is_fenced = source.may_start_with(_FENCE, start)
        if is_fenced and bare_json.read_calls(source, sink, tools, text, size, "named"):
            return True
        calls = list(parse_python(text, tools))
        for function, arguments in calls:
            sink.begin_call(function, "named")
            sink.emit_arguments(arguments)
        if calls:
            source.consume(size)
            return True
        if end < 0:
            return False
        end += 1
    return False


def parse_python(text: str, tools: DeclaredFunctions) -> Iterator[tuple[str, str]]:
    """Yield names and JSON arguments of Python calls; nothing if the text holds anything else."""
    if len(text) > MAX_TEXT:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            body = ast.parse(text.strip()).body
            nodes = [statement.value for statement in body if isinstance(statement, ast.Expr)]
            if len(nodes) == 1 and isinstance(nodes[0], ast.List | ast.Tuple):
                nodes = nodes[0].elts
            calls = [_call(node, tools) for node in nodes] if len(body) and len(nodes) >= len(body) else []
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return
    yield from calls


def _call(node: ast.expr, tools: DeclaredFunctions) -> tuple[str, str]:
    """Return the name and JSON arguments of a call; raise ValueError if it is not one of a declared
    function."""
    if isinstance(node, ast.Dict):
        return _dictionary(_value(node), tools)
    name = tools.resolve(ast.unparse(node.func)) if isinstance(node, ast.Call) else ""
    if not isinstance(node, ast.Call) or name not in tools:
        raise ValueError("not a call of a declared function")
    positional = [_value(argument) for argument in node.args]
    keys = list(tools.properties(name))
    if len(positional) == 1 and isinstance(positional[0], dict) and not node.keywords:
        return name, json_codec.dumps(positional[0]).decode()
    if len(positional) > len(keys):
        raise ValueError("more arguments than parameters")
    arguments = dict(zip(keys, positional, strict=False))
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ValueError("an argument without a name of its own")
        arguments[keyword.arg] = _value(keyword.value)
    return name, json_codec.dumps(arguments).decode()


def _dictionary(value: JSON, tools: DeclaredFunctions) -> tuple[str, str]:
    """Return the name and JSON arguments of a call that is JSON but for Python's quotes and constants."""
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters", {}))
    if not isinstance(name, str) or tools.resolve(name) not in tools or not isinstance(arguments, dict):
        raise ValueError("not a call of a declared function")
    return tools.resolve(name), json_codec.dumps(arguments).decode()


def _value(node: ast.expr) -> JSON:
    """Return a literal's value, with JSON's names for constants; raise ValueError for anything else."""
    return ast.literal_eval(_Constants().visit(node))


class _Constants(ast.NodeTransformer):
    """Replaces JSON's `true`, `false` and `null` by Python's constants."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_JSON_NAMES[node.id]) if node.id in _JSON_NAMES else node
