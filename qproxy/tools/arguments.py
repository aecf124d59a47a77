"""Validation of a tool's arguments against its JSON Schema.

The library is `jsonschema`, which interprets a schema instead of compiling it to code: an MCP server's
schemas are untrusted. It gets an empty registry, because a `$ref` must never make this server fetch an
address. It is imported when the first schema is used, so a server without tools does not need it.

The schema and the model determine the cost of an evaluation, so it runs in this process only if it is known
to be cheap: the schema has only BOUNDED_KEYWORDS, each of which visits a part of the arguments once, and both
schema and arguments are small. That is nearly every call. Everything else goes to a process that can be
killed (`schema_process`): patterns, references, `uniqueItems`, long input, and the check of an untrusted
schema itself, once per schema. A schema that exceeds the limits there makes its tool unavailable for
COOLDOWN_SECONDS.
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
"""Bytes of an untrusted schema."""
MAX_SHORT = 8 * 1024
"""Bytes of a schema, and characters of arguments, that may be evaluated in this process."""
MAX_PAIRS = 2000
"""Values in the schema times values in the arguments that may be evaluated in this process: some
milliseconds."""
COOLDOWN_SECONDS = 60.0
NOT_INSTALLED = "tools require the package `jsonschema`: pip install jsonschema."

_ANNOTATIONS = {"$comment", "$schema", "default", "deprecated", "description", "examples", "format",
    "readOnly",
                "title", "writeOnly"}  # fmt: skip
_ASSERTIONS = {
    "const",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "required",
    "type",
}
_ONE_SCHEMA, _NAMED_SCHEMAS, _SCHEMAS = (
    {"additionalProperties", "items", "not"},
    {"properties"},
    {"allOf", "anyOf", "oneOf"},
)
BOUNDED_KEYWORDS = _ANNOTATIONS | _ASSERTIONS | _ONE_SCHEMA | _NAMED_SCHEMAS | _SCHEMAS
"""Keywords whose cost is at most the values of the schema times the values of the arguments."""

_own: trio.lowlevel.RunVar[SchemaEvaluator] = trio.lowlevel.RunVar("qproxy.tools.schema")


class SchemaError(ValueError):
    """Raised for a schema that cannot be used, with the reason."""


class ArgumentsValidator:
    """A parser of the model's JSON text into arguments that match a schema. Raises ToolError."""

    def __init__(
        self, schema: Mapping[str, JSON], text: bytes, evaluator: SchemaEvaluator | None = None
    ) -> None:
        self.text = text
        self._short = is_cheap(schema, text)
        self._values = count_values(schema) if self._short else 0
        self._validator = schema_worker.make_validator(schema) if self._short else None
        self._evaluator = evaluator
        self._failure = ""
        self._until = 0.0

    def __repr__(self) -> str:
        return f"<ArgumentsValidator, {'here' if self._short else 'in a process'}>"

    @property
    def unavailable_reason(self) -> str | None:
        """The reason for which the schema is not evaluated now, or None."""
        return self._failure if self._failure and trio.current_time() < self._until else None

    async def __call__(self, arguments: str) -> dict[str, Any]:
        values = parse(arguments)
        if self._short and len(arguments) <= MAX_SHORT and self._values * count_values(values) <= MAX_PAIRS:
            reply = schema_worker.validate_arguments(self._validator, values)
        else:
            reply = await self._evaluate_in_process(values)
        if "fault" in reply:
            raise ToolError(f"Cannot validate the arguments: {reply['fault']}.")
        if reply:
            raise ToolError("Invalid arguments at {}: {}".format(*reply["arguments"]))
        return values

    async def _evaluate_in_process(self, values: JSON) -> dict[str, Any]:
        if self.unavailable_reason is None:
            try:
                return await (self._evaluator or local_evaluator()).evaluate(
                    self.text, json_codec.dumps(values)
                )
            except EvaluationLimitExceeded as error:
                self._failure = f"cannot evaluate its schema: {error}"
                self._until = trio.current_time() + COOLDOWN_SECONDS
        raise ToolError(f"This tool is currently unavailable: {self._failure}")


def local_evaluator() -> SchemaEvaluator:
    """Return the evaluator that this Trio program uses for the operator's tools."""
    try:
        return _own.get()
    except LookupError:
        _own.set(SchemaEvaluator())
        return _own.get()


def make_validator(schema: Mapping[str, JSON]) -> ArgumentsValidator:
    """Return the validator of an operator's schema, which is checked in this process. Raise SchemaError."""
    _require_jsonschema()
    _raise_for_reply(schema_worker.validate_schema(schema), schema)
    return ArgumentsValidator(schema, json_codec.dumps(schema))


async def make_foreign_validator(
    schema: Mapping[str, JSON], text: bytes, evaluator: SchemaEvaluator
) -> ArgumentsValidator:
    """Return the validator of an untrusted schema. Raise SchemaError, or EvaluationLimitExceeded past the
    limits."""
    _require_jsonschema()
    _raise_for_reply(await evaluator.evaluate(text), schema)
    return ArgumentsValidator(schema, text, evaluator)


def serialize_bounded(schema: Mapping[str, JSON]) -> bytes:
    """Return the text of an untrusted schema. Raise SchemaError if it is too deep, too long or not JSON."""
    if json_codec.exceeds_depth(schema, MAX_DEPTH):
        raise SchemaError(f"it is nested more than {MAX_DEPTH} levels deep.")
    try:
        text = json_codec.dumps(schema)
    except ValueError as error:  # a number that JSON or Python cannot write
        raise SchemaError(f"{error}.") from None
    if len(text) > MAX_SCHEMA:
        raise SchemaError(f"it is longer than {MAX_SCHEMA} bytes.")
    return text


def _raise_for_reply(reply: Mapping[str, Any], schema: Mapping[str, JSON]) -> None:
    if "fault" in reply:
        raise SchemaError(f"it cannot be checked: {reply['fault']}.")
    if reply:
        raise SchemaError("{}: {}".format(*reply["schema"]))
    if schema.get("type", "object") != "object":
        raise SchemaError("the parameters of a tool must be an object.")


def _require_jsonschema() -> None:
    if find_spec("jsonschema") is None:
        raise SchemaError(NOT_INSTALLED)


def is_cheap(schema: JSON, text: bytes) -> bool:
    """Return whether a schema is small and has only BOUNDED_KEYWORDS."""
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
    """Return whether a type is a name or a list of names: in draft 3 it may hold schemas."""
    return all(isinstance(name, str) for name in (value if isinstance(value, list) else [value]))


def _subschemas(key: str, value: JSON) -> list[JSON]:
    """Return the schemas in a keyword's value, or [None], which is not bounded, for a value of a wrong
    type."""
    if key in _ONE_SCHEMA:
        return [value]
    if key in _NAMED_SCHEMAS:
        return list(value.values()) if isinstance(value, dict) else [None]
    if key in _SCHEMAS:
        return value if isinstance(value, list) else [None]
    return []


def count_values(value: JSON) -> int:
    """Return the number of values in JSON, including containers."""
    count, level = 0, [value]
    while level:
        count += len(level)
        inner = (
            node.values() if isinstance(node, dict) else node
            for node in level
            if isinstance(node, dict | list)
        )
        level = [node for nodes in inner for node in nodes]
    return count


def parse(arguments: str) -> dict[str, Any]:
    """Parse the model's arguments without validating them against the schema. Raise ToolError."""
    if len(arguments) > MAX_ARGUMENTS:
        raise ToolError(f"The arguments are longer than {MAX_ARGUMENTS} characters.")
    try:
        values = json_codec.loads(arguments or "{}")
    except ValueError as error:
        raise ToolError(f"The arguments are not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ToolError("The arguments must be a JSON object.")
    if json_codec.exceeds_depth(values, MAX_DEPTH):
        raise ToolError(f"The arguments are nested more than {MAX_DEPTH} levels deep.")
    return values
