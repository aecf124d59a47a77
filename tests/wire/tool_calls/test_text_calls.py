"""Calls that a model wrote as text: every spelling, every fault, and text that must stay text.

Each case is played whole, one character at a time and three at a time, with equal results.
"""

import json

import pytest

from qproxy.wire import tool_calls
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import (
    ChoiceFinished,
    RawToolCallDelta,
    ReasoningDelta,
    StreamDone,
    StreamFailed,
    TextDelta,
    Turn,
)
from tests.wire.tool_call_contract import check, fold

TYPED = {
    "text": {"type": "string"},
    "count": {"type": "integer"},
    "ratio": {"type": "number"},
    "on": {"type": "boolean"},
    "items": {"type": "array", "items": {"type": "string"}},
    "table": {"type": "object"},
    "maybe": {"type": ["string", "null"]},
    "maybe_count": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "mode": {"enum": ["1", "2"]},
    "point": {"$ref": "#/$defs/point"},
    "either": {"type": ["integer", "string"]},
    "any": {},
}


def function(name, properties=None, **more):
    schema = {"type": "object", "properties": properties or {}, **more}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TOOLS = [
    function("get", {"city": {"type": "string"}, "unit": {"type": "string"}}),
    function("write", {"path": {"type": "string"}, "content": {"type": "string"}}),
    function("typed", TYPED, **{"$defs": {"point": {"type": "array"}}}),
    function("run", {"code": {"type": "string"}}),
    function("now"),
]
TURN = Turn(id="chatcmpl-1", created=0, model="m", messages=[], tools=TOOLS)
PROFILE = tool_calls.ModelProfile()


def pieces(text, size):
    return [text[at : at + size] for at in range(0, len(text), size)]


def play(*parts, finish="stop", size=0, kind=TextDelta, turn=TURN, profile=PROFILE, repairs=None):
    """Return the folded response to text (a string) and events, the text cut into parts of `size`."""
    stage = tool_calls.build_pipeline(turn, profile, repairs)
    sent = []
    for part in parts:
        if isinstance(part, str | ReasoningDelta | TextDelta):
            text = part if isinstance(part, str) else part.text
            make = kind if isinstance(part, str) else type(part)
            sent += [make(piece) for piece in (pieces(text, size) if size else [text])]
        else:
            sent.append(part)
    sent += [ChoiceFinished(finish), StreamDone()] if finish else []
    out = [result for event in sent for result in stage.feed(event)]
    out += stage.close()
    check(out)
    folded = fold(out)[0]
    return folded["text"], [(name, arguments) for _, name, arguments in folded["calls"]], folded["reason"]


def same(*parts, **options):
    """Return the response after checking that it is the same at any cut."""
    results = [play(*parts, size=size, **options) for size in (0, 1, 3)]
    assert results[0] == results[1] == results[2]
    return results[0]


GET = ("get", '{"city": "Paris"}')
H = '<tool_call>\n{"name": "get", "arguments": {"city": "Paris"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'

HERMES = {
    "plain": (H, "", [GET]),
    "text before": ("Let me see.\n\n" + H, "Let me see.\n\n", [GET]),
    "text after": (H + "\n\nDone.", "\n\nDone.", [GET]),
    "text between": (H + "\nand\n" + NOW, "\nand\n", [GET, ("now", "{}")]),
    "two, a newline between": (H + "\n" + NOW, "", [GET, ("now", "{}")]),
    "two, back to back": (H + NOW, "", [GET, ("now", "{}")]),
    "one line": ('<tool_call>{"name":"get","arguments":{"city":"Paris"}}</tool_call>', "",
        [("get", '{"city":"Paris"}')]),
    "a list": ('<tool_call>[{"name": "get", "arguments": {"city": "Paris"}}, {"name": "now"}]</tool_call>',
        "", [GET, ("now", "{}")]),
    "arguments first": ('<tool_call>{"arguments": {"city": "Paris"}, "name": "get"}</tool_call>', "", [GET]),
    "parameters": ('<tool_call>{"name": "get", "parameters": {"city": "Paris"}}</tool_call>', "", [GET]),
    "more keys": ('<tool_call>{"id": 7, "name": "get", "type": "function", "arguments": {"city": "Paris"}, '
                  '"x": [1, {}]}</tool_call>', "", [GET]),
    "no arguments": ('<tool_call>{"name": "now"}</tool_call>', "", [("now", "{}")]),
    "null arguments": ('<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [("now", "{}")]),
    "empty string": ('<tool_call>{"name": "now", "arguments": ""}</tool_call>', "", [("now", "{}")]),
    "encoded twice": ('<tool_call>{"name": "get", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>', "",
        [GET]),
    "encoded twice, first": ('<tool_call>{"arguments": "{\\"city\\": \\"Paris\\"}", "name": '
                             '"get"}</tool_call>', "", [GET]),
    "encoded, escapes inside": ('<tool_call>{"name": "get", "arguments": "{\\"city\\": '
                                '\\"a\\\\nb\\\\\\"\\"}"}</tool_call>', "", [("get", '{"city": "a\\nb\\""}')]),
    "a plain string": ('<tool_call>{"name": "get", "arguments": "Paris"}</tool_call>', "",
        [("get", '"Paris"')]),
    "closer in a string": ('<tool_call>{"name": "write", "arguments": {"content": '
                           '"a</tool_call>b"}}</tool_call>', "",
                           [("write", '{"content": "a</tool_call>b"}')]),
    "opener in a string": ('<tool_call>{"name": "write", "arguments": {"content": '
                           '"<tool_call>{"}}</tool_call>', "", [("write", '{"content": "<tool_call>{"}')]),
    "fence in a string": ('<tool_call>{"name": "write", "arguments": {"content": '
                          '"```\\nx\\n```"}}</tool_call>', "", [("write", '{"content": "```\\nx\\n```"}')]),
    "white space kept": ('<tool_call>{"name": "get", "arguments": { "city" :\n"Paris" } }</tool_call>', "",
        [("get", '{ "city" :\n"Paris" }')]),
    "raw newline in a string": ('<tool_call>{"name": "run", "arguments": {"code": "a\n\tb"}}</tool_call>', "",
        [("run", '{"code": "a\\n\\tb"}')]),
    "unicode": ('<tool_call>{"name": "get", "arguments": {"city": "Zürich 🌊 \\ud83c\\udf0a"}}</tool_call>',
        "", [("get", '{"city": "Zürich 🌊 \\ud83c\\udf0a"}')]),
    "outer brace missing": ('<tool_call>{"name": "get", "arguments": {"city": "Paris"}\n</tool_call>', "",
        [GET]),
    "outer brace missing, end": ('<tool_call>{"name": "get", "arguments": {"city": "Paris"}', "", [GET]),
    "a brace too many": ('<tool_call>{"name": "get", "arguments": {"city": "Paris"}}}\n</tool_call>', "",
        [GET]),
    "closer missing at the end": ('<tool_call>\n{"name": "get", "arguments": {"city": "Paris"}}\n', "",
        [GET]),
    "closer missing before another": ('<tool_call>{"name": "get", "arguments": {"city": "Paris"}}\n' + NOW,
        "", [GET, ("now", "{}")]),
    "undeclared name": ('<tool_call>{"name": "other", "arguments": {}}</tool_call>', "", [("other", "{}")]),
    "several objects": ('<tool_call>{"name": "get", "arguments": {"city": "Paris"}}\n{"name": "now", '
                        '"arguments": {}}</tool_call>', "", [GET, ("now", "{}")]),
    "code mode": ('<tool_call>{"name": "run", "arguments": {"code": '
                  '""}}\n<code>\nprint("x")\n</code>\n</tool_call>', "", [("run", '{"code": '
                                                                                  '"print(\\"x\\")"}')]),
    "empty code": ('<tool_call>{"name": "run", "arguments": {"code": ""}}</tool_call>', "", [("run", '{"code": ""}')]),
    "bad JSON inside": ('<tool_call>{"name": "get", "arguments": {"city": "a "b" c"}}</tool_call>', "", [("get", '{"city": "a "b" c"}')]),
    "python's quotes inside": ("<tool_call>{\"name\": \"get\", \"arguments\": {'city': 'Paris'}}</tool_call>", "", [("get", "{'city': 'Paris'}")]),
    "stray closer before a call": ("</tool_call>\n" + H, "", [GET]),
    "opener twice": ("<tool_call>\n" + H, "<tool_call>\n", [GET]),
    "leading blanks": ("\n\n" + H + "\n", "", [GET]),
    "backtick after the call": (H + "`x`", "`x`", [GET]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected_text", "calls"), HERMES.values(), ids=HERMES.keys())
def test_hermes(text, expected_text, calls):
    """JSON blocks become calls; the text around them is unchanged."""
    assert same(text) == (expected_text, calls, "tool_calls")


TEXT = {
    "prose after the opener": "Use <tool_call> to call a tool.",
    "opener at the end": "so: <tool_call>",
    "a prefix": "a <tool",
    "an object without a name": '<tool_call>{"city": "Paris"}</tool_call>',
    "a name that is no string": '<tool_call>{"name": 7}</tool_call>',
    "an empty name": '<tool_call>{"name": ""}</tool_call>',
    "no JSON": "<tool_call>{name: get}</tool_call>",
    "cut before the name": '<tool_call>{"na',
    "a list of numbers": "<tool_call>[1, 2]</tool_call>",
    "back-ticked": 'Write `<tool_call>{"name": "get", "arguments": {}}</tool_call>`.',
    "in a fence": f"Like so:\n```\n{H}\n```\nDone.",
    "in a fence with a language": f"```xml\n{H}\n```",
    "in tildes": f"~~~\n{H}\n~~~",
    "in an open fence": f"```\n{H}",
    "in a long fence": f"````\n```\n{H}\n```\n````",
    "in an indented fence": f"   ```\n{H}\n   ```",
    "bare function, undeclared": "<function=other>\n<parameter=a>1</parameter>\n</function>",
    "bare function, prose": "<function=get> is what I would call",
    "bare function, end": "<function=get>",
    "a closer alone": "a\n</tool_call>\nb",
    "a closer at the end": "</tool_call>",
    "html": "<p>a < b</p>\n<div>x</div>",
    "an unpaired closer": "a</think>b",
    "flowers, undeclared": "✿FUNCTION✿: other\n✿ARGS✿: {}",
    "flowers in the line": "say ✿FUNCTION✿: get\n✿ARGS✿: {}",
    "flowers alone": "✿FUNCTION✿: get and so on",
    "a result without a call": "✿RESULT✿: 3",
    "react": 'Thought: hm\nAction: get\nAction Input: {"city": "Paris"}',
    "bare JSON": '{"name": "get", "arguments": {"city": "Paris"}}',
    "fenced JSON": '```json\n{"name": "get", "arguments": {}}\n```',
    "blank": " \n",
}


@pytest.mark.parametrize("text", TEXT.values(), ids=TEXT.keys())
def test_text_like_a_call_stays_text(text):
    """Text that only resembles a call is forwarded, byte for byte."""
    assert same(text) == (text, [], "stop")


def test_a_call_after_a_closed_fence_is_parsed():
    """Text after the end of a fence is no example."""
    text = f"```\nexample\n```\n{H}"
    assert same(text) == ("```\nexample\n```\n", [GET], "tool_calls")
    spoiled = f"``` `x`\n{H}"  # a backtick in the remainder of the line: no fence
    assert same(spoiled) == ("``` `x`\n", [GET], "tool_calls")


@pytest.mark.parametrize(
    "turn", [Turn("i", 0, "m", []), Turn("i", 0, "m", [], tools=TOOLS, tool_choice="none")]
)
def test_text_is_unchanged_without_tools(turn):
    """Without tools, or with tool_choice none, every byte stays in its place."""
    for text in (*(case[0] for case in HERMES.values()), *TEXT.values()):
        assert same(text, turn=turn) == (text, [], "stop")


def x(name, *parameters, wrapped=True, compact=False):
    newline = "" if compact else "\n"
    inner = "".join(f"<parameter={k}>{newline}{v}{newline}</parameter>{newline}" for k, v in parameters)
    call = f"<function={name}>{newline}{inner}</function>"
    return f"<tool_call>{newline}{call}{newline}</tool_call>" if wrapped else call


PARIS = ("city", "Paris")
CODER = {
    "plain": (x("get", PARIS), "", [GET]),
    "compact": (x("get", PARIS, compact=True), "", [GET]),
    "text around": ("I look.\n" + x("get", PARIS) + "\nDone", "I look.\n", [GET], "\nDone"),
    "no parameters": (x("now"), "", [("now", "{}")]),
    "two parameters": (x("get", PARIS, ("unit", "C")), "", [("get", '{"city": "Paris", "unit": "C"}')]),
    "two blocks": (x("get", PARIS) + "\n" + x("now"), "", [GET, ("now", "{}")]),
    "two blocks, back to back": (x("get", PARIS) + x("now"), "", [GET, ("now", "{}")]),
    "two functions in one block": ("<tool_call>\n" + x("get", PARIS, wrapped=False) + "\n" + x("now",
        wrapped=False) + "\n</tool_call>", "", [GET, ("now", "{}")]),
    "opener missing": (x("get", PARIS, wrapped=False) + "\n</tool_call>", "", [GET]),
    "both missing": (x("get", PARIS, wrapped=False), "", [GET]),
    "both missing, twice": (x("get", PARIS, wrapped=False) + "\n" + x("now", wrapped=False), "",
        [GET, ("now", "{}")]),
    "closer missing": ("<tool_call>\n" + x("get", PARIS, wrapped=False), "", [GET]),
    "closer missing before another": ("<tool_call>\n" + x("get", PARIS, wrapped=False) + "\n" + x("now"), "",
        [GET, ("now", "{}")]),
    "undeclared, wrapped": (x("other", ("a", "1")), "", [("other", '{"a": "1"}')]),
    "parameter closer missing": ("<tool_call>\n<function=get>\n<parameter=city>\nParis\n<parameter=unit>\nC\n</parameter>\n</function>\n</tool_call>", "", [("get", '{"city": "Paris", "unit": "C"}')]),
    "last parameter closer missing": ("<tool_call>\n<function=get>\n<parameter=city>\nParis\n</function>\n</tool_call>", "", [GET]),
    "last parameter closer missing, compact": ("<tool_call><function=get><parameter=city>Paris</function></tool_call>", "", [GET]),
    "function closer missing": ("<tool_call>\n<function=get>\n<parameter=city>\nParis\n</parameter>\n</tool_call>", "", [GET]),
    "all closers missing": ("<tool_call>\n<function=get>\n<parameter=city>\nParis", "", [GET]),
    "all closers but one missing": ("<tool_call>\n<function=get>\n<parameter=city>\nParis\n</parameter>", "",
        [GET]),
    "name not closed": ("<tool_call>\n<function=now</function>\n</tool_call>", "", [("now", "{}")]),
    "quotes and blanks": ('<tool_call><function="get"><parameter= city '
                          '>Paris</parameter></function></tool_call>', "", [GET]),
    "a key given twice": (x("get", PARIS, ("city", "Rome")), "", [GET]),
    "newlines kept": (x("write", ("content", "\n  a\n\n")), "", [("write", '{"content": "\\n  a\\n\\n"}')]),
    "CRLF": ("<tool_call>\r\n<function=get>\r\n<parameter=city>\r\nParis\r\n</parameter>\r\n</function>\r\n</tool_call>", "", [GET]),
    "empty value": (x("write", ("content", "")), "", [("write", '{"content": ""}')]),
    "empty value, compact": (x("write", ("content", ""), compact=True), "", [("write", '{"content": ""}')]),
    "html": (x("write", ("content", "<p>a</p>\n<b>")), "", [("write", '{"content": "<p>a</p>\\n<b>"}')]),
    "a parameter closer in the value": (x("write", ("content", "a</parameter> b")), "",
        [("write", '{"content": "a</parameter> b"}')]),
    "a function closer in the value": (x("write", ("content", "a</function>\nb")), "",
        [("write", '{"content": "a</function>\\nb"}')]),
    "a block closer in the value": (x("write", ("content", "a\n</tool_call>\nb")), "",
        [("write", '{"content": "a\\n</tool_call>\\nb"}')]),
    "an undeclared parameter in the value": (x("write", ("content", "a\n<parameter=zz>\nb")), "",
        [("write", '{"content": "a\\n<parameter=zz>\\nb"}')]),
    "an opener in the value": (x("write", ("content", "a\n<tool_call>\n{}")), "",
        [("write", '{"content": "a\\n<tool_call>\\n{}"}')]),
    "a fence in the value": (x("write", ("content", "```py\nx\n```")), "",
        [("write", '{"content": "```py\\nx\\n```"}')]),
    "quotes and unicode": (x("write", ("content", 'say "ü🌊\\"')), "",
        [("write", '{"content": "say \\"ü🌊\\\\\\""}')]),
}  # fmt: skip


@pytest.mark.parametrize("case", CODER.values(), ids=CODER.keys())
def test_coder(case):
    """Tags become calls with the values that the model wrote."""
    text, before, calls, *after = case
    assert same(text) == (before + "".join(after), calls, "tool_calls")


VALUES = [
    ("text", "true", '"true"'), ("text", "1", '"1"'), ("text", "null", '"null"'), ("text", "  a ", '"  a "'),
    ("undeclared", "1", '"1"'), ("any", "1", '"1"'), ("mode", "1", '"1"'),
    ("count", "42", "42"), ("count", "-7", "-7"), ("count", "5.0", "5"), ("count", "five", '"five"'),
    ("count", "1_0", '"1_0"'),
    ("ratio", "0.5", "0.5"), ("ratio", "5", "5"), ("ratio", "2.0", "2"), ("ratio", "nan", '"nan"'),
    ("ratio", "1e999", '"1e999"'), ("ratio", "inf", '"inf"'),
    ("on", "true", "true"), ("on", "False", "false"), ("on", "1", "true"), ("on", "yes", '"yes"'),
    ("items", '["a", "b"]', '["a", "b"]'), ("items", "['a', 'b']", '["a","b"]'), ("items", "a, b", '"a, b"'),
    ("items", "('a',)", '["a"]'),
    ("table", '{"k": true}', '{"k": true}'), ("table", "{'k': True, 'n': None}", '{"k":true,"n":null}'),
    ("table", "{k}", '"{k}"'),
    ("maybe", "null", "null"), ("maybe", "None", "null"), ("maybe", "8080", '"8080"'),
    ("maybe_count", "NULL", "null"), ("maybe_count", "3", "3"),
    ("point", "[1, 2]", "[1, 2]"), ("either", "7", "7"), ("either", "x", '"x"'),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "expected"), VALUES)
def test_values_get_their_declared_type(key, value, expected):
    """The declared schema decides the type of a value; a text that does not fit stays text."""
    _, calls, reason = same(x("typed", (key, value)))
    assert calls == [("typed", f'{{"{key}": {expected}}}')]
    assert reason == "tool_calls"
    json.loads(calls[0][1])


LEGACY = {
    "plain": ('✿FUNCTION✿: get\n✿ARGS✿: {"city": "Paris"}', "", [GET]),
    "text before": ('I look.\n✿FUNCTION✿: get\n✿ARGS✿: {"city": "Paris"}\n✿RESULT✿: sunny\n✿RETURN✿: so',
        "I look.\n", [GET]),
    "full-width colons": ('✿FUNCTION✿：get\n✿ARGS✿：{"city": "Paris"}', "", [GET]),
    "no colons": ('✿FUNCTION✿ get\n✿ARGS✿ {"city": "Paris"}', "", [GET]),
    "two calls": ('✿FUNCTION✿: get\n✿ARGS✿: {"city": "Paris"}\n✿FUNCTION✿: now\n✿ARGS✿: {}', "",
        [GET, ("now", "{}")]),
    "two sets of arguments": ('✿FUNCTION✿: get\n✿ARGS✿: {"city": "Paris"}\n✿ARGS✿: {"city": "Rome"}', "",
        [GET, ("get", '{"city": "Rome"}')]),
    "a comment": ('✿FUNCTION✿: get\n✿ARGS✿: {"city": "Paris"} <!-- x -->\n✿RESULT✿', "", [GET]),
    "code in a fence": ("✿FUNCTION✿: run\n✿ARGS✿: ```py\nprint(1)\n```\n✿RESULT✿: 1", "",
        [("run", '{"code": "print(1)"}')]),
    "no arguments": ("✿FUNCTION✿: now\n✿ARGS✿:", "", [("now", "{}")]),
    "a call after the result is invented": ('✿FUNCTION✿: get\n✿ARGS✿: {"city": "Paris"}\n✿RESULT✿: '
                                            'x\n✿FUNCTION✿: now\n✿ARGS✿: {}', "", [GET]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected_text", "calls"), LEGACY.values(), ids=LEGACY.keys())
def test_marker_words(text, expected_text, calls):
    """Marker words become calls; the result that the model invents is dropped."""
    assert same(text) == (expected_text, calls, "tool_calls")


BARE = {
    "an object": ('{"name": "get", "arguments": {"city": "Paris"}}', "", [GET]),
    "blanks around": ('\n {"name": "get", "arguments": {"city": "Paris"}}\n', "", [GET]),
    "double braces": ('{{"name": "get", "arguments": {"city": "Paris"}}}', "", [GET]),
    "last brace missing": ('{"name": "get", "arguments": {"city": "Paris"}', "", [GET]),
    "all braces double": ('{{"name": "get", "arguments": {{"city": "Paris"}}}}', "", [GET]),
    "a list": ('[{"name": "get", "arguments": {"city": "Paris"}}, {"name": "now"}]', "",
        [GET, ("now", "{}")]),
    "one after the other": ('{"name": "get", "arguments": {"city": "Paris"}}\n{"name": "now", "arguments": '
                            '{}}', "", [GET, ("now", "{}")]),
    "a fence": ('```json\n{"name": "get", "arguments": {"city": "Paris"}}\n```', "", [GET]),
    "text and a fence": ('I look:\n```json\n{"name": "get", "arguments": {"city": "Paris"}}\n```\nok',
        "I look:\n", [GET], "ok"),
    "an open fence": ('```json\n{"name": "get", "arguments": {"city": "Paris"}}', "", [GET]),
    "tags still work": (H, "", [GET]),
}  # fmt: skip


@pytest.mark.parametrize("case", BARE.values(), ids=BARE.keys())
def test_bare_json(case):
    """With the profile, JSON that is the whole response or fence is a call."""
    text, expected_text, calls, *after = case
    profile = tool_calls.ModelProfile(bare_json=True)
    assert same(text, profile=profile) == (expected_text + "".join(after), calls, "tool_calls")


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "other", "arguments": {}}',
        '{"name": "get", "arguments": {}} ok?',
        '{"a": 1}',
        "{",
        '```py\n{"name": "get"}\n```',
        "```json\n{}\n```\n",
        "`x` {y}",
        '```json\n{"name": "get", "arguments": {}}\nx\n```',
    ],
)
def test_other_json_stays_text(text):
    """Other JSON, undeclared names and JSON within prose stay text."""
    assert same(text, profile=tool_calls.ModelProfile(bare_json=True)) == (text, [], "stop")


def test_react():
    """With the profile, an action with its input is a call, and the invented observation is dropped."""
    text = 'Thought: hm\nAction: get\nAction Input: {"city": "Paris"}\nObservation: x\nThought: y'
    profile = tool_calls.ModelProfile(react=True)
    assert same(text, profile=profile) == ("Thought: hm\n", [GET], "tool_calls")
    plain = "Actions: An Action: none of them\nAction: other\nAction Input: {}"
    assert same(plain, profile=profile) == (plain, [], "stop")


CUT = {
    "hermes in the arguments": ('<tool_call>{"name": "get", "arguments": {"city": "Pa',
        [("get", '{"city": "Pa')]),
    "hermes after the name": ('<tool_call>{"name": "get", "argu', [("get", "")]),
    "coder in a value": ("<tool_call>\n<function=get>\n<parameter=city>\nPa", [("get", '{"city": "Pa')]),
    "coder between parameters": ("<tool_call>\n<function=get>\n<parameter=city>\nParis\n</parameter>\n<par",
        [("get", '{"city": "Paris"')]),
    "legacy": ('✿FUNCTION✿: get\n✿ARGS✿: {"city": "Pa', [("get", '{"city": "Pa')]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "calls"), CUT.values(), ids=CUT.keys())
def test_a_truncated_call_is_not_closed(text, calls):
    """A truncated call keeps its received part, and the finish reason is length."""
    assert same(text, finish="length") == ("", calls, "length")


def test_truncated_json_has_reason_length():
    """JSON that stops in the middle was truncated, whatever the server reports."""
    for text, calls in list(CUT.values())[:2]:
        assert same(text, finish="stop") == ("", calls, "length")


def test_a_truncated_closing_tag_is_dropped():
    """A part of a closing tag is not text."""
    for size in range(1, 12):
        assert same(H[: -12 + size], finish="length")[:2] == ("", [GET])
    cut = x("get", PARIS)
    assert same(cut[:-4], finish="length")[:2] == ("", [GET])


def test_held_text_precedes_a_failure():
    """A failed stream sends the text that was held, and leaves the call open."""
    stage = tool_calls.build_pipeline(TURN)
    out = [*stage.feed(TextDelta("a <tool")), *stage.feed(StreamFailed(UpstreamError("x")))]
    assert [type(e).__name__ for e in out] == ["TextDelta", "TextDelta", "StreamFailed"]
    assert fold(out)[0]["text"] == "a <tool"


THOUGHTS = {
    "closer, then call": ("<think>hm</think>\n\n" + H, "hm", "", [GET]),
    "call instead of a closer": ("<think>hm\n" + H, "hm\n", "", [GET]),
    "call, then a late closer": ("<think>hm\n" + H + "\n</think>\n\nok", "hm\n", "ok", [GET]),
    "call, text, a late closer": ("<think>hm\n" + H + "\nmore</think>ok", "hm\n", "\nmoreok", [GET]),
    "not at a line's start": ("<think>say " + H + "</think>ok", "say " + H, "ok", []),
    "undeclared": ('<think>\n<tool_call>{"name": "zz", "arguments": {}}</tool_call></think>ok',
        '<tool_call>{"name": "zz", "arguments": {}}</tool_call>', "ok", []),
    "in a fence": (f"<think>a\n```\n{H}\n```\n</think>ok", f"a\n```\n{H}\n```", "ok", []),
    "tags": ("<think>hm\n" + x("get", PARIS), "hm\n", "", [GET]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "thought", "expected_text", "calls"), THOUGHTS.values(), ids=THOUGHTS.keys()
)
def test_calls_and_inline_reasoning(text, thought, expected_text, calls):
    """A call ends reasoning without a closing tag, under strict rules; a late tag is dropped."""
    assert same(text) == (expected_text, calls, "tool_calls" if calls else "stop")
    stage = tool_calls.build_pipeline(TURN)
    out = [e for piece in text for e in stage.feed(TextDelta(piece))] + list(
        stage.feed(ChoiceFinished("stop"))
    )
    assert fold(out)[0]["thought"] == thought


def test_calls_in_structured_reasoning():
    """A call within the reasoning is parsed, and the reasoning continues after it."""
    result = same(ReasoningDelta("hm\n" + H + "\nyes"), TextDelta("ok"))
    assert result == ("ok", [GET], "tool_calls")
    assert same(ReasoningDelta("say " + H), TextDelta("ok")) == ("ok", [], "stop")


def test_text_and_structured_calls_share_their_indices():
    """Both kinds in one response have dense indices and unique ids; blanks between them are dropped."""
    structured = RawToolCallDelta(0, "call_a", "now", "{}")
    assert same(H + "\n", structured) == ("", [GET, ("now", "{}")], "tool_calls")
    assert same("\n\n", structured, "\n") == ("", [("now", "{}")], "tool_calls")
    assert same("Hm <tool", structured, " so") == ("Hm <tool so", [("now", "{}")], "tool_calls")


def texts(events):
    """Return the text of the events, of any kind."""
    return "".join(getattr(event, "text", "") for event in events)


def test_text_is_not_held_back():
    """Everything except the start of a marker is sent at once; arguments are streamed."""
    stage = tool_calls.build_pipeline(TURN)
    (event,) = stage.feed(TextDelta("hello <"))
    assert event == TextDelta("hello ")
    (event,) = stage.feed(TextDelta("b>"))
    assert event == TextDelta("<b>")
    list(stage.feed(TextDelta('<tool_call>{"name": "write", "arguments": {"content": "')))
    assert texts(stage.feed(TextDelta("long text"))) == "long text"
    stage = tool_calls.build_pipeline(TURN)
    list(stage.feed(TextDelta("<tool_call><function=write><parameter=content>a")))
    assert texts(stage.feed(TextDelta("long text"))) == "long text"


def test_a_block_without_a_name_is_released():
    """Text that never becomes a call is held only up to a limit."""
    stage = tool_calls.build_pipeline(TURN)
    text = '<tool_call>{"x": "' + "y" * 70_000
    assert "".join(texts(stage.feed(TextDelta(piece))) for piece in pieces(text, 1000)) == text


def test_cumulative_text():
    """With the profile, text that repeats all earlier text is forwarded once."""
    profile = tool_calls.ModelProfile(cumulative=True)
    assert play("He", "Hello", "Hello", "Hello you", profile=profile)[0] == "Hello you"
    assert play("He", "He")[0] == "HeHe"
