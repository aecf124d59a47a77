"""A tool's arguments against its JSON Schema.

The library is `jsonschema`: it interprets a schema instead of compiling it to code, because an MCP server's schemas
are a stranger's; and with a registry of its own, because a `$ref` must never make this server fetch an address.
It is imported when the first schema is used: a server without tools does without it.

What an evaluation costs is the schema's and the model's to say, so it happens here only where it is known to be
short: the schema has none but PLAIN keywords, each of which looks at a part of the arguments once, and is small, and
so are the arguments.  That is nearly every call.  Everything else goes to a process that can be killed
(`schema_process`): patterns, references, `uniqueItems`, what is long, and the check of a stranger's schema itself,
once while it is the same.  A schema that goes beyond the limits there makes its tool unavailable for COOLDOWN_SECONDS.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import trio

from qproxy.tools import schema_worker
from qproxy.tools.schema_process import EvaluationLimitExceeded, SchemaEvaluator
from qproxy.tools.tool import ToolError
from qproxy.wire import json_codec
from qproxy.wire.events import JSON

MAX_ARGUMENTS = 256 * 1024
MAX_DEPTH = 64
MAX_SCHEMA = 128 * 1024
"""Bytes of a stranger's schema."""
MAX_SHORT = 8 * 1024
"""Bytes of a schema, and characters of arguments, that may be evaluated in this process."""
MAX_PAIRS = 2000
"""Values in the schema times values in the arguments that may be evaluated in this process: some milliseconds."""
COOLDOWN_SECONDS = 60.0
NOT_INSTALLED = "tools need the package `jsonschema`: pip install 'qproxy[tools]'."

_ANNOTATIONS = {"$comment", "$schema", "default", "deprecated", "description", "examples", "format", "readOnly",
                "title", "writeOnly"}  # fmt: skip
_ASSERTIONS = {"const", "enum", "exclusiveMaximum", "exclusiveMinimum", "maxItems", "maxLength", "maxProperties",
               "maximum", "minItems", "minLength", "minProperties", "minimum", "required", "type"}  # fmt: skip
_ONE_SCHEMA, _NAMED_SCHEMAS, _SCHEMAS = (
    {"additionalProperties", "items", "not"},
    {"properties"},
    {"allOf", "anyOf", "oneOf"},
)
BOUNDED_KEYWORDS = _ANNOTATIONS | _ASSERTIONS | _ONE_SCHEMA | _NAMED_SCHEMAS | _SCHEMAS
"""Keywords whose work is at most values of the schema times values of the arguments."""

_own: trio.lowlevel.RunVar[SchemaEvaluator] = trio.lowlevel.RunVar("qproxy.tools.schema")


class SchemaError(ValueError):
    """A schema that cannot be used, and why."""


class ArgumentsValidator:
    """Turns the model's JSON text into arguments that fit a schema; raises ToolError."""

    def __init__(
        self, schema: Mapping[str, JSON], text: bytes, evaluator: SchemaEvaluator | None = None
    ) -> None:
        self.text = text
        self._short = is_cheap(schema, text)
        self._values = count_values(schema) if self._short else 0
        self._validator = schema_worker.make_validator(schema) if self._short else None
        self._evaluator = evaluator
        self._refusal = ""
        self._until = 0.0

    def __repr__(self) -> str:
        return f"<ArgumentsValidator, {'here' if self._short else 'in a process'}>"

    @property
    def unavailable_reason(self) -> str | None:
        """Why the schema is not evaluated now, where that is so."""
        return self._refusal if self._refusal and trio.current_time() < self._until else None

    async def __call__(self, arguments: str) -> dict[str, Any]:
        given = parse(arguments)
        if self._short and len(arguments) <= MAX_SHORT and self._values * count_values(given) <= MAX_PAIRS:
            found = schema_worker.validate_arguments(self._validator, given)
        else:
            found = await self._evaluate_in_process(given)
        if "fault" in found:
            raise ToolError(f"The arguments cannot be checked: {found['fault']}.")
        if found:
            raise ToolError("Invalid arguments at {}: {}".format(*found["arguments"]))
        return given

    async def _evaluate_in_process(self, given: JSON) -> dict[str, Any]:
        if self.unavailable_reason is None:
            try:
                return await (self._evaluator or local_evaluator()).evaluate(
                    self.text, json_codec.dumps(given)
                )
            except EvaluationLimitExceeded as error:
                self._refusal = f"its schema cannot be checked: {error}"
                self._until = trio.current_time() + COOLDOWN_SECONDS
        raise ToolError(f"This tool is not available now: {self._refusal}")


def local_evaluator() -> SchemaEvaluator:
    """Return the evaluator of this Trio program for tools of its operator."""
    try:
        return _own.get()
    except LookupError:
        _own.set(SchemaEvaluator())
        return _own.get()


def make_validator(schema: Mapping[str, JSON]) -> ArgumentsValidator:
    """Return the validator for a schema of the operator's, which is checked in this process; raises SchemaError."""
    _require_jsonschema()
    _raise_for_reply(schema_worker.validate_schema(schema), schema)
    return ArgumentsValidator(schema, json_codec.dumps(schema))


async def make_foreign_validator(
    schema: Mapping[str, JSON], text: bytes, evaluator: SchemaEvaluator
) -> ArgumentsValidator:
    """Return the validator for a stranger's schema; raises SchemaError, and EvaluationLimitExceeded when that cannot be checked."""
    _require_jsonschema()
    _raise_for_reply(await evaluator.evaluate(text), schema)
    return ArgumentsValidator(schema, text, evaluator)


def serialize_bounded(schema: Mapping[str, JSON]) -> bytes:
    """Return the text of a stranger's schema; raises SchemaError when it has no usable one."""
    if json_codec.exceeds_depth(schema, MAX_DEPTH):
        raise SchemaError(f"it is nested more than {MAX_DEPTH} deep.")
    try:
        text = json_codec.dumps(schema)
    except ValueError as error:  # a number that JSON or Python cannot write
        raise SchemaError(f"{error}.") from None
    if len(text) > MAX_SCHEMA:
        raise SchemaError(f"it has more than {MAX_SCHEMA} bytes.")
    return text


def _raise_for_reply(found: Mapping[str, Any], schema: Mapping[str, JSON]) -> None:
    if "fault" in found:
        raise SchemaError(f"it cannot be checked: {found['fault']}.")
    if found:
        raise SchemaError("{}: {}".format(*found["schema"]))
    if schema.get("type", "object") != "object":
        raise SchemaError("the parameters of a tool are an object.")


def _require_jsonschema() -> None:
    if find_spec("jsonschema") is None:
        raise SchemaError(NOT_INSTALLED)


def is_cheap(schema: JSON, text: bytes) -> bool:
    """Return whether a schema is small and has none but PLAIN keywords."""
    return len(text) <= MAX_SHORT and _has_bounded_keywords(schema) and count_values(schema) <= MAX_PAIRS


def _has_bounded_keywords(schema: JSON) -> bool:
    if isinstance(schema, bool):
        return True
    if (
        not isinstance(schema, dict)
        or not schema.keys() <= BOUNDED_KEYWORDS
        or not _is_known_type(schema.get("type", ""))
    ):
        return False
    return all(
        _has_bounded_keywords(inner) for key, value in schema.items() for inner in _subschemas(key, value)
    )


def _is_known_type(value: JSON) -> bool:
    """Return whether a type is a name or names: in draft 3 it may hold schemas."""
    return all(isinstance(one, str) for one in (value if isinstance(value, list) else [value]))


def _subschemas(key: str, value: JSON) -> list[JSON]:
    """Return the schemas in a keyword's value; for a value of a wrong type one that is not plain."""
    if key in _ONE_SCHEMA:
        return [value]
    if key in _NAMED_SCHEMAS:
        return list(value.values()) if isinstance(value, dict) else [None]
    if key in _SCHEMAS:
        return value if isinstance(value, list) else [None]
    return []


def count_values(value: JSON) -> int:
    """Return how many values JSON has, containers included."""
    count, level = 0, [value]
    while level:
        count += len(level)
        inner = (
            one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)
        )
        level = [one for values in inner for one in values]
    return count


def parse(arguments: str) -> dict[str, Any]:
    """The arguments that a model wrote, whatever the schema says of them."""
    if len(arguments) > MAX_ARGUMENTS:
        raise ToolError(f"The arguments are longer than {MAX_ARGUMENTS} characters.")
    try:
        given = json_codec.loads(arguments or "{}")
    except ValueError as error:
        raise ToolError(f"The arguments are not JSON: {error}.") from None
    if not isinstance(given, dict):
        raise ToolError("The arguments must be a JSON object.")
    if json_codec.exceeds_depth(given, MAX_DEPTH):
        raise ToolError(f"The arguments are nested more than {MAX_DEPTH} deep.")
    return given
