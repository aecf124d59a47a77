"""The kinds of repairs: the code, the table and the documentation have the same, and each occurs in a
stream."""

import ast
from collections import Counter
from pathlib import Path

import pytest

import qproxy.wire
from qproxy.wire.tool_calls import ModelProfile, marker_words, repairs
from tests.wire.pipeline import BODY, DONE, call, calls, chunk, entry, same, texts, thought

WIRE = Path(qproxy.wire.__file__).parent
PAGE = Path(__file__).parents[3] / "docs" / "tool-calls.md"


def counted():
    """Return the kinds that the code counts: the keys under which anything called `repairs` is
    incremented."""
    sources = (path.read_text() for path in WIRE.rglob("*.py"))
    for source in sources:
        for node in ast.walk(ast.parse(source)) if "repairs" in source else ():
            if isinstance(node, ast.Subscript) and "repairs" in ast.unparse(node.value):
                for part in ast.walk(node.slice):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value:
                        yield part.value


def test_code_and_table_agree():
    """Every counted kind is in the table, and the table has no other."""
    found = set(counted()) - {"written_"}
    spellings = {
        "hermes",
        "coder",
        "bare",
        "element",
        "named",
        marker_words.FLOWER_MARKERS.dialect,
        marker_words.REACT.dialect,
    }
    assert found | {f"written_{spelling}" for spelling in spellings} == set(repairs.REPAIRS)


def test_the_page_has_the_table():
    """docs/tool-calls.md has the kinds with the table's descriptions."""
    assert repairs.repairs_table() in PAGE.read_text()


A = '{"city": "Paris"}'
END = [chunk(None, "tool_calls"), DONE]
HERMES = '<tool_call>{"name": "now", "arguments": %s}</tool_call>'
MET = {
    "index_missing": [call(None, "x", "now", "{}"), *END],
    "index_reused": [call(0, "x", "now", "{}"), call(0, "y", "now", "{}"), *END],
    "index_gap": [call(3, "x", "now", "{}"), *END],
    "id_missing": [call(0, None, "now", "{}"), *END],
    "id_late": [call(0, None, "now"), call(0, "x", None, "{}"), *END],
    "id_duplicate": [call(0, "x", "get_weather", A), call(1, "x", "get_weather", "{}"), *END],
    "call_copied": [call(0, "x", "get_weather", A), call(1, "x", "get_weather", A), *END],
    "name_repeated": [call(0, "x", "now", "{"), call(0, "x", "now", "}"), *END],
    "name_joined": [call(0, "x", "write_"), call(0, "x", "file", "{}"), *END],
    "nameless_call": [call(0, "x", None, "{}"), call(1, "y", "now", "{}"), *END],
    "blank_entry": [call(0, "", "", ""), call(0, "y", "now", "{}"), *END],
    "arguments_missing": [call(0, "y", "now"), *END],
    "arguments_object": [call(0, "y", "now", {}), *END],
    "arguments_replayed": [call(0, "y", "now", A), call(0, "", None, A), *END],
    "arguments_snapshot": [call(0, "y", "now", A[:3]), call(0, "", None, A), *END],
    "arguments_encoded": [*texts(HERMES % '"{}"'), *END],
    "arguments_broken": [*texts(HERMES % "{a}"), *END],
    "text_snapshot": [*texts("He", "Hello"), chunk(None, "stop"), DONE],
    "written_hermes": [*texts(HERMES % "{}"), *END],
    "written_coder": [*texts("<tool_call><function=now></function></tool_call>"), *END],
    "written_legacy": [*texts("✿FUNCTION✿: now\n✿ARGS✿: {}"), *END],
    "written_react": [*texts("Action: now\nAction Input: {}"), *END],
    "written_bare": [*texts('{"name": "now"}'), *END],
    "written_element": [*texts('<tools>{"name": "now", "arguments": {}}</tools>'), *END],
    "written_named": [*texts("<tool_call>now()</tool_call>"), *END],
    "json_in_reasoning": [*thought('{"a": 1}'), chunk(None, "stop"), DONE],
    "call_in_thought": [*thought(HERMES % "{}"), *END],
    "opener_missing": [*texts("<function=now></function>"), *END],
    "closer_missing": [*texts('<tool_call>{"name": "now"}'), *END],
    "closer_stray": [*texts("</tool_call>\n" + HERMES % "{}"), *END],
    "brace_extra": [*texts('<tool_call>{"name": "now"}}</tool_call>'), *END],
    "parameter_twice": [
        *texts("<tool_call><function=now><parameter=a>1</parameter><parameter=a>2</parameter></function>"),
        *texts("</tool_call>"),
        *END,
    ],
    "result_invented": [*texts("✿FUNCTION✿: now\n✿ARGS✿: {}\n✿RESULT✿: x"), *END],
    "think_tag": [*texts("<think>a</think>b"), chunk(None, "stop"), DONE],
    "finish_missing": [*texts("a"), DONE],
    "finish_corrected": [call(0, "x", "now", "{}"), chunk(None, "stop"), DONE],
    "finish_truncated": [call(0, "x", "now", "{"), chunk(None, "stop"), DONE],
    "finish_repeated": [*texts("a"), chunk(None, "stop"), chunk(None, "stop"), DONE],
    "after_finish": [*texts("a"), chunk(None, "stop"), calls(entry(0, "x", "now", "{}")), DONE],
}  # fmt: skip
PROFILES = {
    "text_snapshot": ModelProfile(cumulative=True),
    "written_react": ModelProfile(react=True),
    "written_bare": ModelProfile(bare_json=True),
}


@pytest.mark.parametrize("kind", repairs.REPAIRS)
def test_each_kind_occurs(kind):
    """Each kind has a stream in which it is counted, the same at any cut."""
    found: Counter[str] = Counter()
    body = {**BODY, "response_format": {"type": "json_object"}} if kind == "json_in_reasoning" else BODY
    same(*MET[kind], repairs=found, profile=PROFILES.get(kind, ModelProfile()), body=body)
    assert found[kind]
    assert set(found) <= set(repairs.REPAIRS)


def test_a_bare_call_counts_as_one_kind():
    """A call without tags is not counted as missing them."""
    found: Counter[str] = Counter()
    same(*MET["written_bare"], repairs=found, profile=ModelProfile(bare_json=True))
    assert found == {"written_bare": 1, "arguments_missing": 1}


def test_a_clean_stream_needs_no_repair():
    """A response that keeps the contract is forwarded unchanged."""
    found: Counter[str] = Counter()
    same(*texts("Hi"), call(0, "x", "now", ""), call(0, None, None, "{}"), *END, repairs=found)
    assert not found
