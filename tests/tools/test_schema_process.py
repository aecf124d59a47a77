"""Schemas of remote tools: the bounds of their evaluation, its process, and tools that exceed the bounds."""

import json
import os
import random
import signal
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from qproxy.sandbox import SandboxPolicy, UnsandboxedLauncher
from qproxy.tools import arguments as argument_schema
from qproxy.tools import invoke, mcp, schema_worker
from qproxy.tools.mcp_stdio import stdio_connection
from qproxy.tools.schema_process import EvaluationLimitExceeded, SchemaEvaluator
from qproxy.tools.tool import Tool, ToolError
from tests.examples import examples

DOUBLING = {
    **{f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]} for n in range(22)},
    "d22": {"type": "string"},
}
BOMB = "^(a+)+$"
NEARLY = "a" * 40 + "!"
NEXT_TWICE = [{"$ref": "#/$defs/d0"}]
MANY = [{"a": [n]} for n in range(12_000)]


def properties(**named):
    return {"type": "object", "properties": named}


RUNAWAYS = {
    "a pattern": (properties(a={"pattern": BOMB}), {"a": NEARLY}),
    "a pattern for names": ({"patternProperties": {BOMB: {}}}, {NEARLY: 1}),
    "a pattern for all names": ({"propertyNames": {"pattern": BOMB}}, {NEARLY: 1}),
    "a pattern beside additionalProperties": (
        {"patternProperties": {BOMB: {}}, "additionalProperties": False},
        {NEARLY: 1},
    ),
    "definitions that use the next twice": ({"allOf": NEXT_TWICE, "$defs": DOUBLING}, {"a": 1}),
    "the same in if": ({**properties(a={"if": NEXT_TWICE[0]}), "$defs": DOUBLING}, {"a": "a"}),
    "the same in dependentSchemas": ({"dependentSchemas": {"a": NEXT_TWICE[0]}, "$defs": DOUBLING}, {"a": 1}),
    "the same in contains": (
        {**properties(a={"contains": {"allOf": NEXT_TWICE}}), "$defs": DOUBLING},
        {"a": ["a"]},
    ),
    "uniqueItems": (properties(a={"uniqueItems": True}), {"a": MANY}),
}
"""Schemas and arguments whose evaluation takes minutes to years."""


@pytest.mark.parametrize(("hostile", "arguments"), RUNAWAYS.values(), ids=RUNAWAYS.keys())
async def test_a_runaway_schema_makes_its_tool_unavailable(hostile, arguments):
    """The process that evaluates it is killed, the model and the operator get the cause, and it is not
    retried soon."""
    evaluator = SchemaEvaluator(cpu_seconds=0.2)
    check = await argument_schema.make_foreign_validator(
        hostile, argument_schema.serialize_bounded(hostile), evaluator
    )
    for _ in range(2):
        with pytest.raises(ToolError, match=r"currently unavailable: .* takes more than 0.2 s of CPU"):
            await check(json.dumps(arguments))
    assert check.unavailable_reason == "cannot evaluate its schema: it takes more than 0.2 s of CPU."
    another = {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}}
    check = await argument_schema.make_foreign_validator(
        another, argument_schema.serialize_bounded(another), evaluator
    )
    assert await check('{"a": 1}') == {"a": 1}


ODD = {
    "a reference to itself": ({"$ref": "#"}, "RecursionError"),
    "a circle": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "",
    ),
    "a dynamic circle": ({"$dynamicAnchor": "a", "$dynamicRef": "#a"}, "RecursionError"),
    "a reference to an address": ({"$ref": "http://127.0.0.1:9/x"}, ""),
    "a reference to nowhere": ({"$ref": "#/$defs/x"}, ""),
}


@pytest.mark.parametrize(("odd", "why"), ODD.values(), ids=ODD.keys())
async def test_a_schema_that_cannot_be_evaluated(odd, why):
    """The error for the model names the cause, and no process is lost."""
    evaluator = SchemaEvaluator()
    check = await argument_schema.make_foreign_validator(
        odd, argument_schema.serialize_bounded(odd), evaluator
    )
    for _ in range(2):
        with pytest.raises(ToolError, match=f"Cannot validate the arguments: {why}"):
            await check("{}")
    assert check.unavailable_reason is None


def nested(depth):
    found = {"type": "object"}
    for _ in range(depth):
        found = properties(a=found)
    return found


REFUSED = {
    "too deep": (nested(40), "nested more than 64 levels deep"),
    "too deep for any stack": (None, "nested more than 64 levels deep"),
    "too long": ({"enum": ["x" * 1000] * 1000}, "longer than 131072 bytes"),
    "a number of too many digits": ({"maximum": 10**5000}, "limit"),
    "no number": ({"maximum": float("inf")}, "not JSON compliant"),
}


@pytest.mark.parametrize(("hostile", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_a_schema_is_bounded_before_it_is_evaluated(hostile, why):
    """Depth, length and numbers have limits, whatever the keywords mean."""
    with pytest.raises(argument_schema.SchemaError, match=why):
        argument_schema.serialize_bounded(nested(20_000) if hostile is None else hostile)


PLAIN = {
    "type": "object",
    "description": "pattern, $ref",
    "properties": {
        "pattern": {"type": "string", "maxLength": 3},
        "n": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
        "kinds": {"type": "array", "items": {"enum": ["a", "b", {"c": 1}]}, "minItems": 1},
        "inner": {"not": {"required": ["x"]}, "additionalProperties": {"type": "boolean"}},
    },
    "required": ["n"],
    "additionalProperties": False,
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["a", "b", "long"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["c", "n", "x", "kinds", "inner", "pattern"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@examples(100)
@given(st.dictionaries(st.sampled_from(["n", "kinds", "inner", "pattern", "z"]), VALUES, max_size=5))
def test_both_processes_give_the_same_result(arguments):
    """Small arguments of a plain schema are checked in the server's process, with the result of the
    evaluation process."""
    text = json.dumps(PLAIN).encode()
    assert argument_schema.is_cheap(PLAIN, text)
    here = schema_worker.validate_arguments(schema_worker.make_validator(PLAIN), arguments)
    assert here == schema_worker.evaluate(text, json.dumps(arguments).encode(), {})


NAMES = st.sampled_from(["a", "b", "$ref", "pattern"])
REFERENCES = st.sampled_from(
    ["#", "#/$defs/a", "#/properties/a", "#/%", "a", "urn:x", "http://127.0.0.1:9/", ""]
)
PATTERNS = st.sampled_from(["a", BOMB, "(a|aa)+$", "[", "(?=a)*"])


def subschemas(inner):
    """Return schemas of schemas, with every keyword and occasionally one with an invalid value."""
    several, named = st.lists(inner, min_size=1, max_size=3), st.dictionaries(NAMES, inner, max_size=3)
    keywords = {
        **dict.fromkeys(("items", "not", "contains", "if", "then", "else", "propertyNames"), inner),
        **dict.fromkeys(("additionalProperties", "unevaluatedProperties", "unevaluatedItems"), inner),
        **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), several),
        **dict.fromkeys(("properties", "$defs", "dependentSchemas", "definitions"), named),
        **dict.fromkeys(("$ref", "$dynamicRef"), REFERENCES),
        **dict.fromkeys(("$anchor", "$dynamicAnchor"), st.sampled_from("ab")),
        **dict.fromkeys(("multipleOf", "maximum"), st.sampled_from([1e-300, 0.1, 10**400])),
        "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
        "pattern": PATTERNS,
        "type": st.sampled_from(["object", "array", ["null", "integer"]]),
        "uniqueItems": st.just(True),
        "enum": st.lists(VALUES, max_size=3) | VALUES,
    }
    one = st.sampled_from(sorted(keywords)).flatmap(lambda name: st.tuples(st.just(name), keywords[name]))
    return st.lists(one, min_size=1, max_size=4).map(dict)


SCHEMAS: st.SearchStrategy[Any] = st.recursive(st.booleans() | st.just({}), subschemas, max_leaves=5)


@examples(60)
@given(
    schemas=st.lists(subschemas(SCHEMAS), min_size=1, max_size=5), arguments=st.dictionaries(NAMES, VALUES)
)
def test_any_schema_is_handled(schemas, arguments):
    """Any schema is used, rejected with a message, or makes its tool unavailable."""

    errors = []

    async def main():
        evaluator = SchemaEvaluator(cpu_seconds=0.1)
        for hostile in schemas:
            try:
                check = await argument_schema.make_foreign_validator(
                    hostile, argument_schema.serialize_bounded(hostile), evaluator
                )
                assert await check(json.dumps(arguments)) == arguments
            except (argument_schema.SchemaError, EvaluationLimitExceeded, ToolError) as error:
                errors.append(str(error))

    trio.run(main)
    assert all(5 < len(text) < 1200 for text in errors)


async def test_small_arguments_need_no_process():
    """Arguments of a usual schema are checked in the server; longer ones are sent to the process, with the
    same result."""
    check = await argument_schema.make_foreign_validator(
        PLAIN, argument_schema.serialize_bounded(PLAIN), SchemaEvaluator()
    )
    check._evaluator = evaluator = SchemaEvaluator()
    assert await check('{"n": 1}') == {"n": 1}
    with pytest.raises(ToolError, match=r"Invalid arguments at \$: 'n' is a required property"):
        await check("{}")
    assert repr(evaluator) == "<SchemaEvaluator, idle>"
    with pytest.raises(ToolError, match=r"Invalid arguments at \$\.kinds\[4999\]: 'x' is not one of"):
        await check(json.dumps({"n": 1, "kinds": ["a"] * 4999 + ["x"]}))
    assert "process" in repr(evaluator)


NOT_PLAIN = {
    "a pattern": properties(a={"pattern": "a"}),
    "a reference": {"items": [{"$ref": "#"}]},
    "a reference where a schema is misplaced": {"anyOf": {"$ref": "#"}},
    "an unknown keyword": {"x-new": {"$ref": "#"}},
    "uniqueItems": {"not": {"uniqueItems": True}},
    "a type that holds schemas, in draft 3": {"type": ["object", {"$ref": "#"}]},
    "a type that is one": {"type": {"$ref": "#"}},
    "no schema": properties(a=5),
    "properties that are none": {"properties": [{"$ref": "#"}]},
}


@pytest.mark.parametrize("odd", NOT_PLAIN.values(), ids=NOT_PLAIN.keys())
def test_expensive_schemas_are_not_evaluated_in_the_server(odd):
    """Only known keywords in their correct places are evaluated in the server's process."""
    assert not argument_schema.is_cheap(odd, json.dumps(odd).encode())


def test_keyword_calls_are_bounded_by_a_product():
    """With plain keywords each value of the schema meets each value of the arguments at most once."""
    rng = random.Random(1)
    calls = 0

    def counting(function):
        def wrapper(*given):
            nonlocal calls
            calls += 1
            yield from function(*given) or ()

        return wrapper

    def random_schema(depth):
        if depth == 0:
            return {"type": rng.choice(["integer", "string", "array"])}
        inner = [random_schema(depth - 1) for _ in range(3)]
        return {"anyOf": inner, "items": inner[0], "additionalProperties": inner[1], "not": inner[2]}

    kind = schema_worker.validator_class({})
    validators = {name: counting(function) for name, function in kind.VALIDATORS.items()}
    for depth in range(4):
        hostile = random_schema(depth)
        assert argument_schema._has_bounded_keywords(hostile)
        given = {"a": [[["x", 1], {"b": [1]}]] * 5}
        import jsonschema

        calls = 0
        list(jsonschema.validators.extend(kind, validators)(hostile).iter_errors(given))
        assert 0 < calls <= argument_schema.count_values(hostile) * argument_schema.count_values(given)


async def test_a_cancelled_evaluation_kills_its_process():
    """The next caller gets the result of its own schema, from a new process."""
    evaluator = SchemaEvaluator(cpu_seconds=5.0)
    hostile = argument_schema.serialize_bounded(RUNAWAYS["a pattern"][0])
    with trio.move_on_after(0.3) as scope:
        await evaluator.evaluate(hostile, json.dumps(RUNAWAYS["a pattern"][1]).encode())
    assert scope.cancelled_caught
    assert await evaluator.evaluate(b'{"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}}', b"{}") == {}


async def test_concurrent_callers_get_their_own_results():
    """Callers take turns, and each gets the result of its own schema."""
    evaluator = SchemaEvaluator()
    replies = {}

    async def evaluate(number):
        found = {"pattern": "^x$", "maxLength": number}
        replies[number] = await evaluator.evaluate(
            argument_schema.serialize_bounded(found), json.dumps("x" * 20).encode()
        )

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(evaluate, number)
    assert len(replies) == 20
    assert all("'xxxxxxxxxxxxxxxxxxxx'" in reply["arguments"][1] for reply in replies.values())


async def test_an_idle_process_that_exited_is_restarted():
    """Its exit is no error of the schema."""
    evaluator = SchemaEvaluator()
    assert await evaluator.evaluate(b"{}") == {}
    process = evaluator._process
    assert process is not None
    assert process.stdin is not None
    await process.stdin.aclose()  # it exits without input
    await process.wait()
    assert process.returncode == 0
    replacement = await trio.lowlevel.open_process(["true"], stdin=-1, stdout=-1)
    await replacement.wait()
    evaluator._process = replacement
    assert await evaluator.evaluate(b"{}") == {}


async def test_a_killed_process_is_an_error_of_the_schema():
    """The kernel may kill it for its memory: the error names the schema."""
    evaluator = SchemaEvaluator()
    assert await evaluator.evaluate(b"{}") == {}
    assert evaluator._process is not None
    os.kill(evaluator._process.pid, signal.SIGKILL)
    with pytest.raises(EvaluationLimitExceeded, match=r"failed \(-9\)"):
        await evaluator.evaluate(b"{}")
    assert await evaluator.evaluate(b"{}") == {}


async def test_the_process_inherits_nothing_of_the_server(monkeypatch):
    """The process has no variable, file or terminal of the server."""
    monkeypatch.setenv("QPROXY_UPSTREAM_KEY", "a secret")
    evaluator = SchemaEvaluator()
    assert await evaluator.evaluate(b"{}") == {}
    assert evaluator._process is not None
    pid = evaluator._process.pid
    assert os.getsid(pid) == pid
    environment, descriptors = inherited_resources(pid)
    assert b"a secret" not in environment
    assert set(descriptors) == {"0", "1", "2"}


def inherited_resources(pid):
    """Return the environment and descriptors of a process, if the system has /proc."""
    if not os.path.isdir(f"/proc/{pid}/fd"):
        return b"", ["0", "1", "2"]
    with open(f"/proc/{pid}/environ", "rb") as environment:
        return environment.read(), os.listdir(f"/proc/{pid}/fd")


class Listed:
    """A tool as an MCP server lists it."""

    title = None

    def __init__(self, name, input_schema, description=""):
        self.name, self.input_schema, self.description = name, input_schema, description


def source():
    server = mcp.McpServer("s", stdio_connection([], UnsandboxedLauncher(), SandboxPolicy()))
    server._evaluator = SchemaEvaluator(cpu_seconds=0.1)
    return server


def slow_to_check(number):
    """Return a schema that is itself slow to check: draft 4 requires the items of an `enum` to be unique."""
    draft = "http://json-schema.org/draft-04/schema#"
    return {"$schema": draft, "enum": [{"a": [n, number]} for n in range(6000)]}


async def test_checking_a_list_of_tools_takes_a_bounded_time(caplog):
    """After three schemas that take too long no new one is checked; tools checked earlier stay."""
    server = source()
    await server._make_tools([Listed("good", PLAIN)])
    hostile = [Listed(f"bad{n}", slow_to_check(n)) for n in range(10)]
    tools = await server._make_tools([*hostile, Listed("good", PLAIN)])
    assert [tool.name for tool in tools] == ["s__good"]
    assert caplog.text.count("takes more than 0.1 s of CPU") == mcp.MAX_EXCEEDED
    assert caplog.text.count("earlier schemas took too long to check") == 10 - mcp.MAX_EXCEEDED


async def test_the_declarations_of_a_server_are_bounded(caplog):
    """The schemas and descriptions of one server go into requests: together they have a limit."""
    server = source()
    tools = await server._make_tools([Listed(f"t{n}", {"title": str(n)}, "x" * 100_000) for n in range(20)])
    assert len(tools) == mcp.MAX_DECLARED // 100_000
    assert "declarations exceed 1048576 bytes" in caplog.text


async def test_a_tool_stays_unavailable_when_the_list_is_reloaded():
    """The result for a schema lasts while it is unchanged; after a cooldown it is evaluated again."""
    server = source()
    (tool,) = await server._make_tools([Listed("t", PLAIN)])
    assert tool.unavailable_reason is None
    (check,) = server._checkers.values()
    check._failure, check._until = "too slow", trio.current_time() + argument_schema.COOLDOWN_SECONDS
    (tool,) = await server._make_tools([Listed("t", PLAIN)])
    assert tool.unavailable_reason == "too slow"
    check._until = trio.current_time()
    assert tool.unavailable_reason is None


async def test_the_model_reads_why_a_tool_is_unavailable():
    """A call with arguments that cannot be checked gets an error result, and the tool does not run."""
    hostile, arguments = RUNAWAYS["a pattern"]

    async def run(given):
        raise AssertionError("it must not run")

    check = await argument_schema.make_foreign_validator(
        hostile, argument_schema.serialize_bounded(hostile), SchemaEvaluator(cpu_seconds=0.1)
    )
    tool = Tool("t", "", hostile, check, run, "mcp", unavailable=lambda: check.unavailable_reason)
    outcome = await invoke.invoke(tool, json.dumps(arguments))
    assert not outcome.ok
    assert outcome.text.startswith("Error: This tool is currently unavailable: cannot evaluate its schema")
    assert tool.unavailable_reason is not None
