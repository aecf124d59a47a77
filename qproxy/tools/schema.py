"""A tool's arguments against its JSON Schema.

The library is `jsonschema`: it interprets a schema instead of compiling it to code, because an MCP server's schemas
are a stranger's; and with a registry of its own, because a `$ref` must never make this server fetch an address.
It is imported when the first schema is used: a server without tools does without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from qproxy.tools.tool import ToolError
from qproxy.wire import jsontext
from qproxy.wire.events import JSON

MAX_ARGUMENTS = 256 * 1024
MAX_DEPTH = 64
MAX_COMPLAINT = 500
MISSING = "tools need the package `jsonschema`: pip install 'qproxy[tools]'."


class SchemaError(ValueError):
    """A schema that cannot be used, and why."""


Checker: TypeAlias = Callable[[str], dict[str, Any]]


def checker(schema: Mapping[str, JSON]) -> Checker:
    """A function from the model's JSON text to arguments that fit the schema; it raises ToolError."""
    try:
        import jsonschema
        from referencing import Registry
    except ImportError:
        raise SchemaError(MISSING) from None
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise SchemaError(f"{error.json_path}: {error.message[:MAX_COMPLAINT]}") from None
    if schema.get("type", "object") != "object":
        raise SchemaError("the parameters of a tool are an object.")
    validator = kind(schema, registry=Registry())

    def check(arguments: str) -> dict[str, Any]:
        given = parse(arguments)
        try:
            error = jsonschema.exceptions.best_match(validator.iter_errors(given))
        except Exception as fault:  # a $ref to nowhere, a schema that goes in circles
            raise ToolError(f"The arguments cannot be checked: {type(fault).__name__}.") from None
        if error is not None:
            raise ToolError(f"Invalid arguments at {error.json_path}: {error.message[:MAX_COMPLAINT]}")
        return given

    return check


def parse(arguments: str) -> dict[str, Any]:
    """The arguments that a model wrote, whatever the schema says of them."""
    if len(arguments) > MAX_ARGUMENTS:
        raise ToolError(f"The arguments are longer than {MAX_ARGUMENTS} characters.")
    try:
        given = jsontext.loads(arguments or "{}")
    except ValueError as error:
        raise ToolError(f"The arguments are not JSON: {error}.") from None
    if not isinstance(given, dict):
        raise ToolError("The arguments must be a JSON object.")
    if jsontext.deeper_than(given, MAX_DEPTH):
        raise ToolError(f"The arguments are nested more than {MAX_DEPTH} deep.")
    return given
