"""The types that a parameter's schema allows, for values that a model wrote as text, at a bounded cost."""

import pytest

from qproxy.wire.tool_calls import coercion

ROOT = {"$defs": {"n": {"type": ["integer", "null"]}, "t": {"$ref": "#/$defs/n"}}}
CASES = {
    "a type": ({"type": "integer"}, {"integer"}),
    "types": ({"type": ["Integer", "null"]}, {"integer", "null"}),
    "types in other words": ({"type": "str"}, {"string"}),
    "a reference to a reference": ({"$ref": "#/$defs/t"}, {"integer", "null"}),
    "a reference to nowhere": ({"$ref": "#/$defs/x"}, set()),
    "branches": ({"anyOf": [{"type": "array"}, {"$ref": "#/$defs/n"}]}, {"array", "integer", "null"}),
    "an enum": ({"enum": [1, "a"]}, {"integer", "string"}),
    "a const": ({"const": True}, {"boolean"}),
    "by its keywords": ({"items": {}, "nullable": True}, {"array", "null"}),
    "a type that is none": ({"type": 5}, set()),
    "branches that are none": ({"anyOf": {"type": "array"}}, set()),
    "no schema": (True, set()),
}


@pytest.mark.parametrize(("schema", "kinds"), CASES.values(), ids=CASES.keys())
def test_kinds(schema, kinds):
    """Types come from type, references, branches, enum, const and the other keywords, in this order."""
    assert coercion.allowed_types(schema, ROOT) == kinds


class CountedSchema(dict):
    """A schema that counts how often its keywords are looked up."""

    lookups = 0

    def get(self, key, default=None):
        CountedSchema.lookups += 1
        return super().get(key, default)


WIDE = CountedSchema(anyOf=[CountedSchema({"$ref": "#"}) for _ in range(300)])
DOUBLING = CountedSchema(
    {f"d{n}": CountedSchema(anyOf=[CountedSchema({"$ref": f"#/d{n + 1}"})] * 2) for n in range(22)},
    anyOf=[{"$ref": "#/d0"}],
)
CIRCLE = CountedSchema({"$ref": "#"})


@pytest.mark.parametrize("root", [WIDE, DOUBLING, CIRCLE], ids=["wide", "doubling", "circle"])
def test_a_recursive_schema_has_a_bounded_cost(root):
    """300 references to the root would be visited 300**4 times: MAX_NODES subschemas are, then no more."""
    CountedSchema.lookups = 0
    coercion.allowed_types(root, root)
    assert CountedSchema.lookups <= 12 * coercion.MAX_NODES


def test_a_long_list_has_a_bounded_cost():
    """Of types, branches and an enum only the first MAX_NODES are visited."""
    many = 1_000_000
    assert coercion.allowed_types({"enum": [1] * coercion.MAX_NODES + ["a"] * many}, {}) == {"integer"}
    assert coercion.allowed_types({"type": ["null"] * coercion.MAX_NODES + ["string"] * many}, {}) == {"null"}
    assert (
        coercion.allowed_types({"anyOf": [{}] * coercion.MAX_NODES + [{"type": "string"}] * many}, {})
        == set()
    )
