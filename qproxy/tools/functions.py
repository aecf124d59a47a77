"""Python functions as tools, for programs that embed qproxy.

    @tools.function
    async def lookup(city: str, days: int = 1) -> dict:
        '''The weather of a city.

        Args:
            city: Its name.
            days: How many days ahead.
        '''

    app = qproxy.create_app(config, tools=[lookup])

The schema comes from the type hints, descriptions from the docstring. An async function runs in the request's
nursery and is cancelled with it; a plain one runs in a thread, which is abandoned on cancellation.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, overload

import trio

from qproxy.tools import arguments as argument_schema
from qproxy.tools.tool import NAME_PATTERN, Tool, ToolPolicy
from qproxy.wire import json_codec
from qproxy.wire.events import JSON

F = TypeVar("F", bound=Callable[..., Any])
_THREADS = trio.CapacityLimiter(40)
"""A separate limiter: a function that hangs keeps its thread, which must not be one that the server needs."""
_PLAIN: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_PARAMETER = re.compile(r"^\s*+(?::param\s++)?\*{0,2}(\w++)\s*+(?:\([^)]*+\)\s*+)?:\s*+(.+)$")
_SECTION = re.compile(r"^\s*(Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?)\s*+:?\s*+$")


@overload
def function(of: F) -> F: ...


@overload
def function(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float = 30.0,
    policy: ToolPolicy = "always",
) -> Callable[[F], F]: ...


def function(
    of: F | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float = 30.0,
    policy: ToolPolicy = "always",
) -> F | Callable[[F], F]:
    """Mark a function as a tool, and return it unchanged."""

    def decorate(function: F) -> F:
        function.__qproxy_tool__ = tool(  # type: ignore[attr-defined]
            function, name=name, description=description, timeout=timeout, policy=policy
        )
        return function

    return decorate if of is None else decorate(of)


def as_tool(value: Tool | Callable[..., Any]) -> Tool:
    """Return the tool for a `Tool`, a marked function, or any function."""
    if isinstance(value, Tool):
        return value
    marked: Tool | None = getattr(value, "__qproxy_tool__", None)
    return marked or tool(value)


def tool(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float = 30.0,
    policy: ToolPolicy = "always",
) -> Tool:
    """Return a tool that calls a function. Raise TypeError for an invalid name or an unsupported
    parameter."""
    name = name or function.__name__
    if not NAME_PATTERN.match(name):
        raise TypeError(f"invalid tool name {name!r}: use at most 64 letters, digits, _ and -.")
    summary, parameters = _parse_docstring(inspect.getdoc(function) or "")
    schema = parameters_schema(function, parameters)
    check = argument_schema.make_validator(schema)
    return Tool(
        name=name,
        description=description or summary,
        parameters=schema,
        validate=check,
        run=_make_runner(function),
        kind="function",
        timeout=timeout,
        policy=policy,
        unavailable=lambda: check.unavailable_reason,
    )


def _make_runner(function: Callable[..., Any]) -> Callable[[dict[str, Any]], typing.Awaitable[str]]:
    async def run(arguments: dict[str, Any]) -> str:
        if inspect.iscoroutinefunction(function):
            return _text(await function(**arguments))
        value = await trio.to_thread.run_sync(
            lambda: function(**arguments), abandon_on_cancel=True, limiter=_THREADS
        )
        return _text(value)

    return run


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json_codec.dumps(value).decode()


def parameters_schema(function: Callable[..., Any], about: Mapping[str, str]) -> dict[str, JSON]:
    """Return the JSON Schema of a function's parameters. Raise TypeError if JSON cannot express one."""
    hints = typing.get_type_hints(function, include_extras=True)
    properties: dict[str, JSON] = {}
    required = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{function.__name__}: parameter {name} cannot be passed by name.")
        properties[name] = _type_schema(hints.get(name, Any))
        if name in about:
            properties[name].setdefault("description", about[name])
        if parameter.default is parameter.empty:
            required.append(name)
        elif isinstance(parameter.default, str | int | float | bool):
            properties[name]["default"] = parameter.default
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _type_schema(hint: Any) -> dict[str, JSON]:
    """Return a type hint as a schema. Raise TypeError for a hint that JSON cannot express."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return {}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if origin is Annotated:
        descriptions = [extra for extra in arguments[1:] if isinstance(extra, str)]
        return {**_type_schema(arguments[0]), **({"description": descriptions[0]} if descriptions else {})}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_type_schema(inner) for inner in arguments]}
    if hint in (list, tuple) or origin in (list, tuple, typing.Sequence):
        items = [argument for argument in arguments if argument is not ...]
        return {"type": "array", **({"items": _type_schema(items[0])} if len(set(items)) == 1 else {})}
    if hint is dict or origin is dict:
        return {
            "type": "object",
            **({"additionalProperties": _type_schema(arguments[1])} if arguments else {}),
        }
    if typing.is_typeddict(hint):
        fields = typing.get_type_hints(hint, include_extras=True)
        properties = {name: _type_schema(inner) for name, inner in fields.items()}
        return {"type": "object", "properties": properties, "required": sorted(hint.__required_keys__)}
    raise TypeError(f"cannot convert type hint {hint!r} to a JSON Schema.")


def _parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return a docstring's description of the function, and of each parameter (`Args:` or `:param x:`)."""
    about: list[str] = []
    parameters: dict[str, str] = {}
    section = ""
    for line in text.splitlines():
        heading = _SECTION.match(line)
        if heading:
            section = heading[1]
            continue
        match = _PARAMETER.match(line)
        if match and (section.startswith(("Arg", "Param")) or line.lstrip().startswith(":param")):
            parameters[match[1]] = match[2].strip()
        elif not section and not line.lstrip().startswith(":"):
            about.append(line)
    return "\n".join(about).strip(), parameters
