"""Validators of request fields, shared by all endpoints, with OpenAI's wording.

An invalid field is a `RequestError` with the path of the value (`messages[3].content[0].type`) in its message
and in `param`. `null` means absent, as at OpenAI. A validator carries its JSON Schema (`with_schema`,
`properties`) for the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NoReturn, TypeVar

from qproxy.wire import storable
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON

MAX_MODEL_NAME = 1000
"""Characters of a model's name: it is compared, logged and sent."""
Check = TypeVar("Check", bound=Callable[[JSON, str], JSON])


def with_schema(check: Check, **schema: JSON) -> Check:
    """Return the validator with a JSON Schema of the values that it accepts."""
    vars(check)["schema"] = schema  # an attribute, so that the schema stays with the validator
    return check


def properties(table: Mapping[str, Callable[[JSON, str], JSON]]) -> dict[str, JSON]:
    """Return a table of validators as JSON Schema properties: each value, or null for absent."""
    found: dict[str, JSON] = {}
    for name, check in table.items():
        schema = dict(getattr(check, "schema", {}))
        kinds = schema.get("type", [])
        if kinds:
            schema["type"] = [*([kinds] if isinstance(kinds, str) else kinds), "null"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
        found[name] = schema
    return found


_KINDS = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
}


def type_name(value: JSON) -> str:
    """Return the name of a value's JSON type."""
    return "null" if value is None else _KINDS.get(type(value), "something else")


def wrong_type(path: str, expected: str, value: JSON) -> NoReturn:
    message = f"Invalid type for '{path}': expected {expected}, but got {type_name(value)} instead."
    raise RequestError(message, param=path, code="invalid_type")


def wrong_value(path: str, message: str) -> NoReturn:
    raise RequestError(f"Invalid value for '{path}': {message}", param=path, code="invalid_value")


def missing(path: str) -> NoReturn:
    raise RequestError(
        f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter"
    )


def object_(value: JSON, path: str) -> dict[str, JSON]:
    return value if isinstance(value, dict) else wrong_type(path, "an object", value)


def array(value: JSON, path: str) -> list[JSON]:
    return value if isinstance(value, list) else wrong_type(path, "an array", value)


def string(value: JSON, path: str) -> str:
    return value if isinstance(value, str) else wrong_type(path, "a string", value)


def identifier(value: JSON, path: str) -> str:
    """Return a name or an id: a string that can be compared, stored, or written into a header."""
    name = string(value, path)
    if not storable.is_storable_text(name):
        wrong_value(path, "it contains a NUL or a lone surrogate.")
    return name


def string_map(value: JSON, path: str) -> dict[str, JSON]:
    """Return an object of strings with the client's own keys."""
    for name in object_(value, path):
        identifier(name, f"{path}.{name[:64]}")
    return value  # type: ignore[no-any-return]


def boolean(value: JSON, path: str) -> bool:
    return value if isinstance(value, bool) else wrong_type(path, "a boolean", value)


with_schema(object_, type="object")
with_schema(array, type="array")
with_schema(string, type="string")
with_schema(identifier, type="string")
with_schema(string_map, type="object")
with_schema(boolean, type="boolean")


def number(low: float, high: float) -> Callable[[JSON, str], float]:
    """Return a validator of numbers within [low, high]."""

    def check(value: JSON, path: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            wrong_type(path, "a number", value)
        if not low <= value <= high:
            wrong_value(path, f"expected a number between {low:g} and {high:g}, but got {str(value)[:40]}.")
        return value

    return with_schema(check, type="number", minimum=low, maximum=high)


def integer(low: int, high: int = 2**63 - 1) -> Callable[[JSON, str], int]:
    """Return a validator of integers within [low, high]; 5.0 is accepted (JavaScript and YAML write it
    so)."""

    def check(value: JSON, path: str) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            wrong_type(path, "an integer", value)
        if not low <= value <= high:
            wrong_value(path, f"expected an integer from {low} to {high}, but got {str(value)[:40]}.")
        return value

    return with_schema(check, type="integer", minimum=low, maximum=high)


def one_of(options: Collection[str]) -> Callable[[JSON, str], str]:
    def check(value: JSON, path: str) -> str:
        if string(value, path) not in options:
            wrong_value(path, f"{value[:80]!r} is none of {', '.join(sorted(options))}.")
        return str(value)

    return with_schema(check, type="string", enum=sorted(options))


def token_ids(items: list[JSON]) -> bool:
    """Return whether an array contains token ids, or arrays of them."""

    def ids(values: list[JSON]) -> bool:
        return all(isinstance(value, int) and not isinstance(value, bool) for value in values)

    return ids(items) or all(isinstance(item, list) and ids(item) for item in items)


def stop_sequences(value: JSON, path: str) -> JSON:
    """Return a string or an array of strings."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            string(item, f"{path}[{number}]")
        return value
    return value if isinstance(value, str) else wrong_type(path, "a string or an array of strings", value)


with_schema(stop_sequences, type=["string", "array"], items={"type": "string"})


def include_values(value: JSON, what: str) -> bool:
    """Return whether the request's `qproxy` object, if any, includes a name in its `include` list."""
    names = array((value or {}).get("include") or [], "qproxy.include")
    for number, name in enumerate(names):
        one_of(("tools",))(name, f"qproxy.include[{number}]")
    return what in names


def body(value: JSON) -> dict[str, JSON]:
    """Return the request body. Raises RequestError if it is not an object."""
    if not isinstance(value, dict):
        raise RequestError(f"The request body must be a JSON object, but it is {type_name(value)}.")
    return value


def check_fields(
    body: Mapping[str, JSON], table: Mapping[str, Callable[[JSON, str], JSON]]
) -> dict[str, JSON]:
    """Return the body without nulls, each field with a validator in `table` validated."""
    checked = {}
    for name, value in body.items():
        if value is not None:
            check = table.get(name)
            checked[name] = value if check is None else check(value, name)
    return checked


def require_model(body: Mapping[str, JSON], default: str | None) -> str:
    """Return the request's model, or the operator's default."""
    value = body.get("model")
    if value is None:
        value = default
    if value is None:
        raise RequestError(
            "you must provide a model parameter", param="model", code="missing_required_parameter"
        )
    if not identifier(value, "model").strip():
        wrong_value("model", "it is empty.")
    if len(value) > MAX_MODEL_NAME:
        wrong_value("model", f"expected at most {MAX_MODEL_NAME} characters, but got {len(value)}.")
    return str(value)
