"""Calls, reasoning and markup in text, from the upstream's bytes to the client's: parsed calls and remaining
text.

As in `test_assembler_streams`: played whole, byte by byte and at seeded cuts, streamed and as a whole
response, and read by `tests.wire.strict_reader`. `test_text_calls` has more of the faults, on events.
"""

import json

import pytest

from qproxy.wire.tool_calls import ModelProfile
from tests.wire.pipeline import DONE, TEXT, call, chunk, function, meaning, play, stream, texts, thought

NAME = "get_weather"
A, B = '{"city": "Paris"}', '{"city": "Rome"}'
PARIS, ROME, NOW = (NAME, A), (NAME, B), ("now", "{}")
END = [chunk(None, "stop"), DONE]
GET, TIME = f'{{"name": "{NAME}", "arguments": {A}}}', '{"name": "now", "arguments": {}}'


def block(inner, newline="\n"):
    return f"<tool_call>{newline}{inner}{newline}</tool_call>"


def tags(name, *parameters, newline="\n", wrapped=True):
    inner = "".join(f"<parameter={k}>{newline}{v}{newline}</parameter>{newline}" for k, v in parameters)
    text = f"<function={name}>{newline}{inner}</function>"
    return block(text, newline) if wrapped else text


def meaning_of_text(text, finish="stop", **options):
    """Return the meaning of a response with this text, at any cut into deltas and with any in-progress finish
    reason."""
    found = meaning(*texts(text), chunk(None, finish), DONE, **options)
    for size, going in ((1, None), (4, "null"), (3, "")):
        deltas = [chunk({"content": text[at : at + size]}, going) for at in range(0, len(text), size)]
        choices, error = play([stream(deltas, chunk(None, finish), DONE)], **options)
        assert (choices[0]["text"], choices[0]["thought"], choices[0]["reason"], error) == (
            *found[:2],
            found[3],
            None,
        )
        assert [tuple(one) for one in choices[0]["calls"]] == found[2]
    return found


H, HN, CITY = block(GET), block(TIME), ("city", "Paris")


@pytest.mark.parametrize("newline", ["", "\n", " ", "\r\n", "\n\n\t"], ids=repr)
def test_whitespace_between_tags_is_dropped(newline):
    """Blocks are parsed with any whitespace in and between them; the text around them stays, whitespace does
    not."""
    one, two = block(GET, newline), block(TIME, newline)
    assert meaning_of_text(one + newline + two + newline) == ("", "", [PARIS, NOW], "tool_calls")
    listed = block(f"[{newline}{GET}{newline},{newline}{TIME}{newline}]", newline)
    assert meaning_of_text(listed) == ("", "", [PARIS, NOW], "tool_calls")
    around = f"Hi.{newline}{one}{newline}and{newline}{two}{newline}bye"
    shown = f"Hi.{newline}{newline}and{newline}{newline}bye"
    assert meaning_of_text(around) == (shown, "", [PARIS, NOW], "tool_calls")


ARGUMENTS = {
    "verbatim": ('{ "city" :\n"Paris" }', '{ "city" :\n"Paris" }'),
    "encoded": ('"{\\"city\\": \\"Paris\\"}"', A),
    "encoded, pretty": ('"{\\n \\"city\\": \\"Paris\\"}"', '{\n "city": "Paris"}'),
    "encoded, a newline in a string": ('"{\\"c\\": \\"a\\nb\\"}"', '{"c": "a\\nb"}'),
    "encoded, blank first": ('" {\\"a\\":1}"', ' {"a":1}'),
    "encoded, empty": ('"{}"', "{}"),
    "null": ("null", "{}"),
    "raw control characters": ('{"a": "x\n\ty\r\nz"}', '{"a": "x\\n\\ty\\r\\nz"}'),
    "markers in a string": ('{"a": "x </tool_call> <tool_call> </think> ```"}',
        '{"a": "x </tool_call> <tool_call> </think> ```"}'),
    "unicode": ('{"a": "東京 🗼 \\ud83d\\uddfc é"}', '{"a": "東京 🗼 \\ud83d\\uddfc é"}'),
    "bad JSON": ('{"city": Paris}', '{"city": Paris}'),
}  # fmt: skip
SHAPES = [
    '{"name": "get_weather", "arguments": %s}',
    '{"name": "get_weather", "parameters": %s}',
    '{"id": "x", "type": "function", "name": "get_weather", "arguments": %s, "z": [1, {"name": "no"}]}',
    '{"arguments": %s, "name": "get_weather"}',
    '{"name": "get\\u005fweather", "arguments": %s',
]


@pytest.mark.parametrize(("written", "expected"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_arguments(written, expected):
    """Arguments are forwarded as they were written, in any order of the keys."""
    for shape in SHAPES[: 2 if written == '{"city": Paris}' else None]:
        assert meaning_of_text(block(shape % written)) == ("", "", [(NAME, expected)], "tool_calls")


CODE = {
    "alone": ('{"code": ""}', '{"code": "print(\\"a\\")\\nx"}'),
    "first": ('{"code": "", "timeout": 3}', '{"code": "print(\\"a\\")\\nx", "timeout": 3}'),
    "last": ('{"timeout": 3, "code": ""}', '{"timeout": 3, "code": "print(\\"a\\")\\nx"}'),
}


@pytest.mark.parametrize(("written", "expected"), CODE.values(), ids=CODE.keys())
def test_code_blocks(written, expected):
    """A `<code>` block fills an empty `code` argument, and only an empty one."""
    body = f'{{"name": "run_code", "arguments": {written}}}\n<code>\nprint("a")\nx\n</code>'
    assert meaning_of_text(block(body)) == ("", "", [("run_code", expected)], "tool_calls")
    body = f'{{"name": "run_code", "arguments": {written}}}'
    assert meaning_of_text(block(body)) == ("", "", [("run_code", written)], "tool_calls")


SLIPS = {
    "brace missing": (block(GET[:-1]) + HN, [PARIS, NOW]),
    "brace missing before another": (f"<tool_call>{GET[:-1]}\n{HN}", [PARIS, NOW]),
    "braces too many": (block(GET + "}\n}") + "\n" + HN, [PARIS, NOW]),
    "closer missing": ("<tool_call>\n" + GET, [PARIS]),
    "closer missing, newline": ("<tool_call>\n" + GET + "\n", [PARIS]),
    "closer cut": ("<tool_call>\n" + GET + "\n</tool", [PARIS]),
    "closer missing before another": ("<tool_call>\n" + GET + "\n" + HN, [PARIS, NOW]),
    "stray closer": ("</tool_call>\n" + H + "\n</tool_call>\n" + HN, [PARIS, NOW]),
    "undeclared": (block('{"name": "nope", "arguments": {"a": 1}}'), [("nope", '{"a": 1}')]),
    "spellings mixed": (H + "\n" + tags("now") + "\n" + tags(NAME, ("city", "Rome"), wrapped=False),
        [PARIS, NOW, ROME]),
    "parameter closer missing": ("<tool_call>\n<function=get_weather>\n<parameter=days>\n3\n<parameter=unit>\nC\n</function>\n</tool_call>", [(NAME, '{"days": 3, "unit": "C"}')]),
    "function closer missing": ("<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</tool_call>\n" + HN, [PARIS, NOW]),
    "two closers missing": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</tool_call>\n" + HN, [PARIS, NOW]),
    "block closer missing": ("<tool_call>\n" + tags(NAME, CITY, wrapped=False) + "\n" + tags("now"),
        [PARIS, NOW]),
    "two functions in a block": (block(tags(NAME, CITY, wrapped=False) + "\n" + tags("now", wrapped=False)),
        [PARIS, NOW]),
    "opener missing": (tags(NAME, CITY, wrapped=False) + "\n</tool_call>", [PARIS]),
    "name not closed": ("<tool_call>\n<function=now</function>\n</tool_call>", [NOW]),
    "name ended by a newline": ("<tool_call>\n<function=get_weather\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>", [PARIS]),
    "a key twice": (tags(NAME, CITY, ("city", "Rome")), [PARIS]),
    "an end in a value": ("<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n", [PARIS]),
    "an end after the name": ("<tool_call>\n<function=get_weather>\n", [(NAME, "{}")]),
    "an undeclared function": (tags("nope", ("a", "1")), [("nope", '{"a": "1"}')]),
    "an undeclared key": (tags(NAME, ("foo", "true")), [(NAME, '{"foo": "true"}')]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), SLIPS.values(), ids=SLIPS.keys())
def test_faulty_tags(text, expected):
    """Missing and misplaced tags are accepted."""
    assert meaning_of_text(text) == ("", "", expected, "tool_calls")
    assert meaning_of_text("Let me see.\n" + text) == ("Let me see.\n", "", expected, "tool_calls")


@pytest.mark.parametrize(
    "head", ['<function="get_weather">', "<function= get_weather >", "<function='get_weather'>"]
)
@pytest.mark.parametrize("key", ["<parameter= city >", '<parameter="city">', "<parameter='city'>"])
def test_quotes_and_blanks_around_names(head, key):
    """Quotes and blanks around names are dropped, with and without `<tool_call>`."""
    text = f"{head}\n{key}\nParis\n</parameter>\n</function>"
    assert meaning_of_text(text) == meaning_of_text(block(text)) == ("", "", [PARIS], "tool_calls")


VALUES = [
    "<div>\n<p>a</p>\n</div>", "<A b={c}>{d}</A>\n<B/>", '<?xml version="1.0"?>\n<a/>', "```py\nx\n```",
    "use <function=x> and <parameter=y>v</parameter> here", "a</parameter>b", "a\n</parameter>\nb",
    "a</function>b",
    "a\n</function>\nb", "a</tool_call>b", "a\n</tool_call>\nb", "<tool_call>", "<think>x</think>",
    "a < b && c <", "</",
    "x\n</par", '{"a": 1}', '"\\', "✿FUNCTION✿: now\n✿ARGS✿: {}", HN + " is how", "a\n<parameter=zz>\nb",
    "a\n<parameter=path>\nb", "", "   ", "\n\n", "a\x01\tb", "a\u2028b", "🌊", "    def f():\n        pass",
    "#x\n", "null",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_markup_in_values(value):
    """A value may hold anything, even this syntax; one newline on each side belongs to the form."""
    expected = [("write_file", f'{{"path": "p", "content": {json.dumps(value, ensure_ascii=False)}}}')]
    for newline in ("\n", "\r\n", ""):
        if newline or not (value.endswith(("<", "</")) or value[:1] == "\n" or value[-1:] == "\n"):
            text = tags("write_file", ("path", "p"), ("content", value), newline=newline)
            assert meaning_of_text(text) == ("", "", expected, "tool_calls")


KINDS = {
    "object": {"type": "object"}, "array": {"type": "array"},
    "either": {"oneOf": [{"type": "object"}, {"type": "array"}]},
    "all": {"allOf": [{"type": "integer"}]}, "enum": {"enum": [1, 2]}, "enum_null": {"enum": ["a", None]},
    "nullable": {"type": "string", "nullable": True}, "int": {"type": "int"}, "dict": {"type": "dict"},
    "ref": {"$ref": "#/$defs/R"}, "switch": {"anyOf": [{"type": "boolean"}, {"type": "integer"}]},
}  # fmt: skip
TYPED = [
    ("object", '{"a": "x\ny"}', '{"a": "x\\ny"}'),
    ("object", '{\n  "a": [1,\n 2]\n}', '{\n  "a": [1,\n 2]\n}'), ("object", "null", '"null"'),
    ("array", '["<p>", "</parameter>x"]', '["<p>", "</parameter>x"]'), ("array", "(1, 2)", "[1,2]"),
    ("either", "{}", "{}"), ("either", "[1]", "[1]"),
    ("all", "3", "3"), ("enum", "1", "1"), ("enum", "a", '"a"'), ("enum_null", "null", "null"),
    ("enum_null", "a", '"a"'),
    ("nullable", "None", "null"), ("nullable", "8080", '"8080"'), ("int", "3", "3"),
    ("dict", '{"a": 1}', '{"a": 1}'), ("ref", "3", "3"),
    ("switch", "1", "1"), ("switch", "true", "true"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "expected"), TYPED)
def test_types(key, value, expected):
    """The declared schema gives a value its type; `test_text_calls` has the plain types."""
    body = {"tools": [function("typed", KINDS, **{"$defs": {"R": {"type": "integer"}}})]}
    for newline in ("\n", ""):
        found = meaning_of_text(tags("typed", (key, value), newline=newline), body=body)
        assert found == ("", "", [("typed", f'{{"{key}": {expected}}}')], "tool_calls")


PLAIN = [
    "<tool_call> is a tag", "<tool_call>x", "<tool_call>", "<tool_call>\n<b>", "<tool_call></tool_call>",
    '<tool_call>"a"</tool_call>',
    '<tool_call>{"city": 1}</tool_call> end', '<tool_call>{"name": null}</tool_call>',
    "<tool_call>{}</tool_call>", "<tool_call>[]</tool_call>",
    '<tool_call>\n{"arguments": {"a": 1}}\n</tool_call>', "a<tool_callx>", "<<tool_call",
    "<tool_call<tool_call>", '<tool_call>[{"a":1}]</tool_call>',
    "<tool_call><function=>", "<tool_call><function=a b", "<tool_call>\n<function=get_weather>then prose",
    "<function=now> is cool",
    "say <function=now>", "<function=no", tags("nope", ("a", "1"), wrapped=False),
    "```\n<function=now>\n</function>\n```\n",
    f"Example:\n```\n{H}\n```\nok", f"~~~~ x\n{H}\n~~~~\nok", f"````\n{H}\n```\n{HN}\n````",
    f"```\n{H}\n~~~\n{HN}\n```", f"```\na\n``` x\n{H}\n```",
    f"Use `{H}`", "a <think>b</think> c", "a</think>b", "</think>b", "✿", "✿FUNC", "✿ flower ✿\n✿FUNCTION",
    "✿RESULT✿: x",
    "✿FUNCTION✿: zz\n✿ARGS✿: {}", "a ✿FUNCTION✿: now\n✿ARGS✿: {}", "```\n✿FUNCTION✿: now\n✿ARGS✿: {}\n```",
    f'Thought: x\nAction: {NAME}\nAction Input: {A}\nObservation: y', GET, f"```json\n{GET}\n```",
]  # fmt: skip


@pytest.mark.parametrize("text", PLAIN, ids=repr)
def test_text_like_a_call_stays_text(text):
    """Text that only resembles a call is unchanged, byte for byte, and a real call after it is parsed."""
    assert meaning_of_text(text) == (text, "", [], "stop")
    inline = "Hello " if text[0] not in "`~" else "Hello\n"
    assert meaning_of_text(inline + text + "\n") == (inline + text + "\n", "", [], "stop")


AFTER = [
    f"```\n{H}\n```\n",
    f"~~~\n{H}\n~~~\n",
    "    ```\n",
    "a ``` b\n",
    "Use `<tool_call>` then ",
    "<tool_call> is a tag\n",
]


@pytest.mark.parametrize("text", AFTER, ids=repr)
def test_a_call_after_an_example(text):
    """A fence ends an example; inline code starts none."""
    assert meaning_of_text(text + HN) == (text, "", [NOW], "tool_calls")


@pytest.mark.parametrize("body", [{"tools": None}, {"tool_choice": "none"}], ids=["no tools", "none"])
def test_without_tools(body):
    """Without tools, or with tool_choice none, no byte of the text changes; structured calls are
    forwarded."""
    for text in (H, tags("now"), "✿FUNCTION✿: now\n✿ARGS✿: {}", "<tool_call>", "\n\n" + H + "\n", " \n"):
        assert meaning_of_text(text, body=body) == (text, "", [], "stop")
    assert meaning_of_text("<think>a</think>b", body=body) == ("b", "a", [], "stop")
    assert meaning(call(0, "x", NAME, A), *END, body=body)[2:] == ([PARIS], "tool_calls")


CUT = {
    "in arguments": (f'<tool_call>\n{{"name": "{NAME}", "arguments": {{"city": {{"a": [1',
        [(NAME, '{"city": {"a": [1')]),
    "in the second": (H + f'\n<tool_call>\n{{"name": "{NAME}", "arguments": {{"city": "Pa',
        [PARIS, (NAME, '{"city": "Pa')]),
    "in a value": ("<tool_call>\n<function=get_weather>\n<parameter=city>\nPar", [(NAME, '{"city": "Par')]),
    "in a typed value": ("<tool_call>\n<function=get_weather>\n<parameter=days>\n1", [(NAME, '{"days": 1')]),
    "after the name": ("<tool_call>\n<function=get_weather>\n", [(NAME, "")]),
    "after marker words": (f"✿FUNCTION✿: {NAME}\n✿ARGS✿: {A[:8]}", [(NAME, A[:8])]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CUT.values(), ids=CUT.keys())
def test_truncated_calls(text, expected):
    """A truncated call is left open, and the finish reason is length."""
    assert meaning_of_text(text, "length") == ("", "", expected, "length")


@pytest.mark.parametrize("colon", [": ", ":", "：", "： ", " ", " : "], ids=repr)
def test_marker_words(colon):
    """Marker words have any colon; comments behind the arguments and invented results are dropped."""
    one = f"✿FUNCTION✿{colon}{NAME}\n✿ARGS✿{colon}{A}"
    for text in (
        one,
        "\n" + one + "\n",
        one + " <!-- c -->\n✿RESULT✿",
        f"{one}\n✿RETURN✿{colon}It is\n✿FUNCTION✿: now\n✿ARGS✿: {{}}",
    ):
        assert meaning_of_text(text) == ("", "", [PARIS], "tool_calls")
    assert meaning_of_text(f"{one}\n✿ARGS✿{colon}{B}")[2] == [PARIS, ROME]
    assert meaning_of_text(f"{one}\n✿FUNCTION✿{colon}now\n✿ARGS✿{colon}{{}}\n✿RESULT✿: x")[2] == [PARIS, NOW]
    assert meaning_of_text(f"{one}\nSome words\n✿RESULT✿: sunny") == (
        "\nSome words\n",
        "",
        [PARIS],
        "tool_calls",
    )


def test_code_after_marker_words():
    """Code in a fence is the value of the one string parameter, or raw if there is not exactly one."""
    text = "✿FUNCTION✿: {}\n✿ARGS✿:{}```py\nprint(1)\n\nx\n```\n✿RESULT✿: 1"
    for gap in (" ", "\n"):
        assert meaning_of_text(text.format("run_code", gap))[2] == [
            ("run_code", '{"code": "print(1)\\n\\nx"}')
        ]
        assert meaning_of_text(text.format(NAME, gap))[2] == [(NAME, "print(1)\n\nx")]


def test_react():
    """ReAct is parsed for models with that profile."""
    text = f"Thought: x\nAction: {NAME}\nAction Input: {A}\nObservation: y"
    assert meaning_of_text(text, profile=ModelProfile(react=True)) == (
        "Thought: x\n",
        "",
        [PARIS],
        "tool_calls",
    )


INLINE = {
    "answer": ("<think>\nhm\n</think>\n\nhi", "hi", "hm", []),
    "call": ("<think>\nhm\n</think>\n\n" + H, "", "hm", [PARIS]),
    "empty, call": ("<think>\n\n</think>\n\n" + H, "", "", [PARIS]),
    "text and call": ("<think>hm</think>Let me see.\n" + H, "Let me see.\n", "hm", [PARIS]),
    "call, late closer": ("<think>hm\n\n" + H + "\n</think>\n\nAfter", "After", "hm\n\n", [PARIS]),
    "call, no closer": ("<think>hm\n" + tags(NAME, CITY), "", "hm\n", [PARIS]),
    "a mention": ("<think>so\n<tool_call> is what I need</think>hi", "hi", "so\n<tool_call> is what I need",
        []),
    "a mention in the line": ("<think>say " + H + "</think>hi", "hi", "say " + H, []),
    "undeclared": ('<think>\n<tool_call>{"name": "zz"}</tool_call></think>hi', "hi",
        '<tool_call>{"name": "zz"}</tool_call>', []),
}  # fmt: skip


@pytest.mark.parametrize(("text", "shown", "hidden", "expected"), INLINE.values(), ids=INLINE.keys())
def test_inline_reasoning(text, shown, hidden, expected):
    """Reasoning in the text is reasoning; a call ends it under strict rules. Implied openers need a
    profile."""
    reason = "tool_calls" if expected else "stop"
    assert meaning_of_text(text) == (shown, hidden, expected, reason)
    implied = ModelProfile(implied_think=True)
    assert meaning_of_text(text, profile=implied) == (shown, hidden, expected, reason)
    assert meaning_of_text(text.removeprefix("<think>"), profile=implied) == (shown, hidden, expected, reason)


SPLIT = {
    "answer": ("hm", "hi", "hi", "hm", []),
    "late closer": ("hm", "</think>\n\nhi", "hi", "hm", []),
    "blanks and a late closer": ("hm", "\n</think>\n\nhi", "hi", "hm", []),
    "tags once more": ("hm", "<think>\n\n</think>\n\nhi", "hi", "hm", []),
    "call": ("hm", "\n\n" + H, "", "hm", [PARIS]),
    "call inside": ("hm\n" + H, "", "", "hm\n", [PARIS]),
    "call inside, text": ("hm\n" + H, "ok", "ok", "hm\n", [PARIS]),
    "call in the line": ("hm " + H, "ok", "ok", "hm " + H, []),
    "call in a fence": ("hm\n```\n" + H + "\n```\n", "ok", "ok", "hm\n```\n" + H + "\n```\n", []),
}


@pytest.mark.parametrize(
    ("hidden", "text", "shown", "reasoned", "expected"), SPLIT.values(), ids=SPLIT.keys()
)
@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_structured_reasoning(hidden, text, shown, reasoned, expected, key):
    """Reasoning under either name is one field; calls in it are parsed, and leaked tags are dropped."""
    result = (shown, reasoned, expected, "tool_calls" if expected else "stop")
    assert meaning(*thought(hidden, key=key), *texts(text), *END) == result
    assert meaning(*texts("\n"), *thought(hidden, key=key), *texts(text), *END)[1:] == result[1:]


def test_text_and_structured_calls_in_one_response():
    """They share one sequence of indices; blanks between them are dropped."""
    structured = call(0, "q", "now", "{}")
    assert meaning(*texts("a\n", H, "\n"), structured, *texts("\n"), *END) == (
        "a\n",
        "",
        [PARIS, NOW],
        "tool_calls",
    )
    assert meaning(structured, *texts("\n", H), *END) == ("", "", [NOW, PARIS], "tool_calls")
    assert meaning(*thought("hm"), *texts("\n\n"), structured, *END) == ("", "hm", [NOW], "tool_calls")


def test_custom_tools_in_text():
    """A custom tool that is called in text gets bare input, in any spelling."""
    body = {"tools": [{"type": "custom", "custom": {"name": "patch"}}, function("other", {"a": TEXT})]}
    for text in (
        block('{"name": "patch", "arguments": {"input": "a\\nb"}}'),
        tags("patch", ("input", "a\nb")),
    ):
        assert meaning_of_text(text, body=body) == ("", "", [("patch", "a\nb")], "tool_calls")
