"""Hostile schemas get small arguments: the emulator's response is bounded, whatever a schema expands to."""

import json

import pytest

from qproxy.emulator import schema_values

DOUBLING = {
    **{f"d{n}": {"type": "array", "minItems": 2, "items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(22)},
    "d22": {"type": "string"},
}
HOSTILE = {
    "each definition uses the next twice": {"$ref": "#/$defs/d0", "$defs": DOUBLING},
    "a hundred references to the root": {
        "type": "object",
        "properties": {f"p{n}": {"$ref": "#"} for n in range(100)},
    },
    "a circle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "minItems": {"type": "array", "minItems": 10**18},
    "minItems no float holds": {"type": "array", "minItems": 10**400},
    "minLength": {"type": "string", "minLength": 10**18, "maxLength": 10**18},
    "a long default, often": {
        "type": "array",
        "minItems": 1000,
        "items": {"$ref": "#/$defs/a"},
        "$defs": {"a": {"default": "x" * 60_000}},
    },
    "a long name, often": {
        "type": "array",
        "minItems": 1000,
        "items": {"type": "object", "required": ["x" * 60_000]},
    },
    "a huge enum": {"enum": [f"choice {n}" for n in range(1_000_000)]},
    "values of other types": {
        "type": "object",
        "required": ["a", "b", "c", "d", 5],
        "properties": {
            "a": {"type": "integer", "minimum": "x", "maximum": []},
            "b": {"type": "string", "minLength": None, "maxLength": -1, "format": {}},
            "c": {"anyOf": [None, 5]},
            "d": {"type": {}, "enum": {}, "properties": []},
        },
    },
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_arguments_are_bounded(hostile):
    """The values of a response and its text have a limit, and no schema is an error."""
    question = "9" * 20_000 + " 1.5 in Ulm"
    text = json.dumps(schema_values.example_arguments(hostile, question))
    assert (
        len(text) < 100 * schema_values.MAX_VALUES + schema_values.MAX_SCHEMA + schema_values.MAX_VALUES * 200
    )
