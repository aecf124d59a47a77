"""Dialects of Qwen models' calls beside the two of their templates, and texts that only resemble them.

Each case is played whole, one character at a time and three at a time, with equal results.
"""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire.events import RawToolCallDelta, ReasoningDelta
from tests.wire.tool_calls.test_text_calls import TOOLS, TURN, function, same

A = '{"city": "Paris"}'
PARIS, NOW = ("get", A), ("now", "{}")
COMPACT = ("get", '{"city":"Paris"}')
CALL = f'{{"name": "get", "arguments": {A}}}'
PARAMETER = '<parameter name="city">Paris</parameter>'

READ = {
    "tools": (f"<tools>\n{CALL}\n</tools>", [PARIS]),
    "tools without a closing tag": (f"<tools>{CALL}", [PARIS]),
    "two in tools": (f'<tools>\n{CALL}\n{{"name": "now", "arguments": {{}}}}\n</tools>', [PARIS, NOW]),
    "function_call": (f"<function_call>{CALL}</function_call>", [PARIS]),
    "a list in tool_calls": (f"<tool_calls>[{CALL}]</tool_calls>", [PARIS]),
    "tool_call in tool_calls": (f"<tool_calls>\n<tool_call>\n{CALL}\n</tool_call>\n</tool_calls>", [PARIS]),
    "invoke": (f'<invoke name="get">\n{PARAMETER}\n</invoke>', [PARIS]),
    "invoke in single quotes": (f"<invoke name='get'>{PARAMETER}</invoke>", [PARIS]),
    "invoke without parameters": ('<invoke name="now"></invoke>', [NOW]),
    "two in function_calls": (f'<function_calls>\n<invoke name="get">\n{PARAMETER}\n</invoke>\n<invoke '
                              'name="now">\n</invoke>\n</function_calls>', [PARIS, NOW]),
    "invoke with more attributes": ('<invoke name="get">\n<parameter name="city" '
                                    'type="string">Paris</parameter>\n</invoke>', [PARIS]),
    "name as an attribute": (f'<tool_call>\n<function name="get">\n{PARAMETER}\n</function>\n</tool_call>',
        [PARIS]),
    "name as an attribute, bare": (f'<function name="get">\n{PARAMETER}\n</function>', [PARIS]),
    "a key as an attribute": (f"<tool_call>\n<function=get>\n{PARAMETER}\n</function>\n</tool_call>",
        [PARIS]),
    "JSON in a function": (f"<tool_call>\n<function=get>\n{A}\n</function>\n</tool_call>", [PARIS]),
    "JSON in a bare function": (f"<function=get>{A}</function>", [PARIS]),
    "JSON in a named function": (f'<tool_call><function name="get">{A}</function></tool_call>', [PARIS]),
    "a function element before JSON": (f"<tool_call>\n<function>get</function>\n{A}\n</tool_call>", [PARIS]),
    "a name element before JSON": (f"<tool_call><name>get</name>{A}</tool_call>", [PARIS]),
    "a name before JSON": (f"<tool_call>get\n{A}\n</tool_call>", [PARIS]),
    "Python": ('<tool_call>\nget(city="Paris")\n</tool_call>', [COMPACT]),
    "Python without a closing tag": ('<tool_call>get(city="Paris")', [COMPACT]),
    "a Python list": ('<tool_call>[get(city="Paris"), now()]</tool_call>', [COMPACT, NOW]),
    "Python lines": ('<tool_call>\nget(city="Paris")\nnow()\n</tool_call>', [COMPACT, NOW]),
    "Python by position": ('<tool_call>get("Paris")</tool_call>', [COMPACT]),
    "Python of an object": (f"<tool_call>get({A})</tool_call>", [COMPACT]),
    "Python with JSON's constants": ("<tool_call>typed(on=true, maybe=null)</tool_call>",
        [("typed", '{"on":true,"maybe":null}')]),
    "Python with a closing tag in a string": ('<tool_call>get(city="</tool_call>")</tool_call>',
        [("get", '{"city":"</tool_call>"}')]),
    "functions. in JSON": (f'<tool_call>{{"name": "functions.get", "arguments": {A}}}</tool_call>', [PARIS]),
    "functions. in tags": ("<tool_call><function=functions.now></function></tool_call>", [NOW]),
    "functions. in bare tags": ("<function=functions.now></function>", [NOW]),
    "functions. in Python": ('<tool_call>functions.get(city="Paris")</tool_call>', [COMPACT]),
    "bare text of a free-form tool": ("<tool_call><function=run>x = 1;\n</parameter></function></tool_call>",
        [("run", '{"code": "x = 1;"}')]),
    "bare text with tags in it": ("<tool_call>\n<function=run>\n<b>x</parameter>y</b>\n</function>\n</tool_call>", [("run", '{"code": "<b>x</parameter>y</b>"}')]),
    "more closing tags": ("<tool_call>\n<function=now>\n</function>\n</function>\n</function_invocation>\n</tool_call>", [NOW]),
    "an end token": ("<tool_call>\n<function=now>\n</function>\n</tool_call><|im_end|>", [NOW]),
    "a late end of thinking": (f"<tool_call>{CALL}</tool_call>\n</think>\n", [PARIS]),
    "tools closed as a tool_call": (f"<tools>\n{CALL}\n</tool_call>", [PARIS]),
    "function_call closed as a tool_call": (f"<function_call>{CALL}</tool_call>", [PARIS]),
    "an envelope in another": (f"<tool_call><function_call>{CALL}</function_call></tool_call>", [PARIS]),
    "tools with parameters": (f'<tools>{{"name": "get", "parameters": {A}}}</tools>', [PARIS]),
    "OpenAI's shape": (f'<tool_call>{{"id": "1", "type": "function", "function": {CALL}}}</tool_call>', [PARIS]),
    "OpenAI's shape, keys after it": (f'<tool_call>{{"function": {CALL}, "type": "function"}}</tool_call>', [PARIS]),
    "OpenAI's shape in tools": (f'<tools>{{"type": "function", "function": {CALL}}}</tools>', [PARIS]),
    "JSON in an invoke": (f'<invoke name="get">{A}</invoke>', [PARIS]),
    "JSON in two invokes": (f'<invoke name="get">{A}</invoke>\n<invoke name="now">{{}}</invoke>', [PARIS, NOW]),
    "JSON in a function element": (f"<tool_call><function>{CALL}</function></tool_call>", [PARIS]),
    "arguments in an element": (f"<tool_call><name>get</name><arguments>{A}</arguments></tool_call>", [PARIS]),
    "parameters in an element": (f"<tool_call>\n<function>get</function>\n<parameters>\n{A}\n</parameters>\n</tool_call>", [PARIS]),
    "JSON in a code block in a tool_call": (f"<tool_call>\n```json\n{CALL}\n```\n</tool_call>", [PARIS]),
    "Python in a code block in a tool_call": ('<tool_call>\n```python\nget(city="Paris")\n```\n</tool_call>', [COMPACT]),
    "Python in function_call": ('<function_call>get(city="Paris")</function_call>', [COMPACT]),
    "a Python list in tool_calls": ('<tool_calls>[get(city="Paris"), now()]</tool_calls>', [COMPACT, NOW]),
    "a Python dictionary": ("<tool_call>{'name': 'get', 'arguments': {'city': 'Paris'}}</tool_call>", [COMPACT]),
    "Python dictionaries": ("<tool_call>[{'name': 'typed', 'arguments': {'on': True}}, {'name': "
                            "'now'}]</tool_call>", [("typed", '{"on":true}'), NOW]),
    "functions. with a number": (f'<tool_call>{{"name": "functions.get:0", "arguments": {A}}}</tool_call>', [PARIS]),
    "a free-form tool's text as arguments": ('<tool_call>{"name": "run", "arguments": "x = 1;"}</tool_call>', [("run", '{"code": "x = 1;"}')]),
    "bare text after an element": ("<tool_call>\n<function>run</function>\nx = 1;\n</tool_call>", [("run", '{"code": "x = 1;"}')]),
    "bare text without its closing tag": ("<tool_call>\n<function=run>\nx = 1;\n</tool_call>", [("run", '{"code": "x = 1;"}')]),
    "args": (f'<tool_call>{{"name": "get", "args": {A}}}</tool_call>', [PARIS]),
    "input before the name": (f'<tool_call>{{"input": {A}, "name": "get"}}</tool_call>', [PARIS]),
    "a text called input beside arguments": (f'<tool_call>{{"name": "get", "input": "x", "arguments": {A}}}</tool_call>', [PARIS]),
    "tool_name": (f'<tool_call>{{"tool_name": "get", "params": {A}}}</tool_call>', [PARIS]),
    "a function's name as a string": (f'<tool_call>{{"function": "get", "arguments": {A}}}</tool_call>', [PARIS]),
    "tool in a list": (f'<tool_call>[{{"tool": "get", "arguments": {A}}}, {{"tool": "now"}}]</tool_call>', [PARIS, NOW]),
    "half of a closing tag": (f"<tool_call>{CALL}</tool_call>\n</func", [PARIS]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "calls"), READ.values(), ids=READ)
def test_reads_the_dialect(text, calls):
    """A call in the dialect is parsed, and nothing of its markup is text."""
    assert same(text) == ("", calls, "tool_calls")


@pytest.mark.parametrize(("text", "calls"), READ.values(), ids=READ)
def test_keeps_the_text_before_the_dialect(text, calls):
    """Text before a call is unchanged."""
    assert same(f"Let me look.\n{text}")[1:] == (calls, "tool_calls")
    assert same(f"Let me look.\n{text}")[0].rstrip() == "Let me look."


@pytest.mark.parametrize("text", [text for text, _ in READ.values()], ids=READ)
def test_an_example_of_the_dialect_stays_text(text):
    """In a code block, directly after a backtick and without tools a dialect is text, byte for byte."""
    block = f"Write:\n```\n{text}\n```\n"
    assert same(block) == (block, [], "stop")
    assert same(f"`{text[:20]}") == (f"`{text[:20]}", [], "stop")
    assert same(text, turn=replace(TURN, tools=[])) == (text, [], "stop")


TEXT = {
    "a declaration in tools": '<tools>\n{"type": "function", "function": {"name": "get", "parameters": '
    "{}}}\n</tools>",
    "a described declaration": '<tools>{"name": "get", "description": "d", "parameters": {"type": '
    '"object"}}</tools>',
    "a flat declaration": '<tools>{"name": "get", "parameters": {"type": "object", "properties": '
    "{}}}</tools>",
    "an undeclared name in tools": '<tools>{"name": "other", "arguments": {}}</tools>',
    "one of two undeclared": f'<tools>{CALL}{{"name": "other", "arguments": {{}}}}</tools>',
    "prose about tools": "The <tools> element lists {them}.",
    "prose in tools": f"<tools>{CALL} is how</tools>",
    "other JSON in function_call": '<function_call>{"city": "Paris"}</function_call>',
    "an undeclared invoke": f'<invoke name="other">{PARAMETER}</invoke>',
    "prose about invoke": '<invoke name="get"> begins a call.',
    "other attributes": f'<invoke id="get">{PARAMETER}</invoke>',
    "HTML": '<input name="get"><i>x</i><table><tr></tr></table>',
    "an undeclared function": f'<function name="other">{PARAMETER}</function>',
    "C in a function": "<function=get>{ return 1; }</function>",
    "broken JSON in a bare function": '<function=get>{"a": </function>',
    "an undeclared name before JSON": '<tool_call>other\n{"a": 1}</tool_call>',
    "prose after a name": "<tool_call>get is how it begins</tool_call>",
    "an undeclared element": '<tool_call><function>other</function>{"a": 1}</tool_call>',
    "Python that is no literal": "<tool_call>get(city=input())</tool_call>",
    "Python of an undeclared name": '<tool_call>other(city="Paris")</tool_call>',
    "Python and prose": "<tool_call>get(city) is how you do it</tool_call>",
    "an assignment": '<tool_call>get(city := "x")</tool_call>',
    "too many arguments": "<tool_call>get(1, 2, 3)</tool_call>",
    "prose about a free-form tool": "<tool_call><function=run> is how calls begin.",
    "a bare free-form tool": "<function=run>x = 1;</function>",
    "bare text for two parameters": "<tool_call><function=get>Paris</function></tool_call>",
    "closing tags alone": "\n</parameter>\n</function>\n</tool_call>",
    "closing tags in prose": "Then write\n</parameter>\n</function>\nand so on",
    "an end token in prose": "The token <|im_end|> ends a message.\n<|im_end|>",
    "a declaration in OpenAI's shape": '<tools>{"type": "function", "function": {"name": "get", "arguments": '
    '{}, "description": "d"}}</tools>',
    "an undeclared name in OpenAI's shape": '<tools>{"function": {"name": "other", "arguments": {}}}</tools>',
    "Python in tools": '<tools>get(city="Paris")</tools>',
    "other JSON in a code block": '<tool_call>\n```json\n{"city": "Paris"}\n```\n</tool_call>',
    "a code block and prose": f"<tool_call>\n```json\n{CALL}\n```\nis how</tool_call>",
    "an undeclared dictionary": "<tool_call>{'name': 'other', 'arguments': {}}</tool_call>",
    "a dictionary without a name": "<tool_call>{'city': 'Paris'}</tool_call>",
    "prose after an element": "<tool_call><function>run</function> is how calls begin.",
    "bare text of an undeclared element": "<tool_call><function>other</function>\nx\n</tool_call>",
    "JSON in an undeclared invoke": f'<invoke name="other">{A}</invoke>',
    "JSON and prose in an invoke": f'<invoke name="get">{A} is how',
    "an end token after prose": "It ends.<|im_end|>",
    "the same opener twice": "<tools><tools>",
    "an undeclared tool_name": '<tool_call>{"tool_name": "other", "arguments": {}}</tool_call>',
    "a name alone in prose": 'A call such as <tool_call>{"name": "get"} lacks its arguments.',
    "in quotes": f'He wrote "<tool_call>{CALL}</tool_call>" to me.',
    "in a string of a program": f"s = '<function=get>{PARAMETER}</function>'",
    "an added line of a diff": f"@@ -0,0 +1 @@\n+<tool_call>{CALL}</tool_call>\n",
    "a removed line of a diff, indented": f"-    <tool_call>{CALL}</tool_call>\n",
    "a quoted line": f"> <tool_call>{CALL}</tool_call>",
    "a bare prefix": "functions.get(city='Paris')",
}


@pytest.mark.parametrize("text", TEXT.values(), ids=TEXT)
def test_similar_text_stays_text(text):
    """Text that only resembles a dialect is forwarded, byte for byte."""
    assert same(text) == (text, [], "stop")


def test_a_value_holds_the_markup_of_other_dialects():
    """The tags of other dialects in a value are text."""
    content = '<invoke><parameter name="x">1</parameter>\n<parameter name="y">2</parameter></invoke>'
    for text in (content, "<tools><parameter>1</parameter></tools>", "<function name='a'>\n</function>b"):
        call = f"<tool_call>\n<function=write>\n<parameter=content>\n{text}\n</parameter>\n</function>\n</tool_call>"
        _, [(_, arguments)], _ = same(call)
        assert text.replace('"', '\\"').replace("\n", "\\n") in arguments


@pytest.mark.parametrize("before", ["- ", 'It is "Paris"', "1 > 0: ", "x - "])
def test_a_call_after_a_mark_within_text(before):
    """A list item, a closing quote and a mark within a line do not start an example."""
    assert same(f"{before}<tool_call>{CALL}</tool_call>")[1] == [PARIS]


@pytest.mark.parametrize("envelope", ["tool_call", "function_calls"])
def test_an_example_in_a_line_of_reasoning(envelope):
    """Tags within an envelope inside a line are part of it; a later call is parsed."""
    calls = f'\n<invoke name="get">\n{PARAMETER}\n</invoke>' * 2
    example = f"Like this: <{envelope}>{calls}\n</{envelope}> it goes.\n"
    assert same(ReasoningDelta(example))[1] == []
    assert same(ReasoningDelta(f"{example}<tool_call>{CALL}</tool_call>"))[1] == [PARIS]


@pytest.mark.parametrize("text", [text for text, _ in READ.values() if "\n" not in text])
def test_a_value_holds_an_example_in_one_line(text):
    """A file about calls is one value, whatever dialect a line of it shows."""
    written = f"# Calls\n{text}\nSo it is.\n{text} and so on"
    call = f"<tool_call>\n<function=write>\n<parameter=content>\n{written}\n</parameter>\n</function>\n</tool_call>"
    _, [(_, arguments)], _ = same(call)
    assert json.loads(arguments) == {"content": written}


def test_text_after_a_call_stays():
    """Closing tags are dropped until other text follows, and are text after it."""
    text, calls, _ = same(f"<tool_call>{CALL}</tool_call>\n</function>\nDone.\n</function>\nend")
    assert (text.lstrip(), calls) == ("Done.\n</function>\nend", [PARIS])


STRUCTURED = RawToolCallDelta(0, "a", "get", A)


@pytest.mark.parametrize(
    "closers", ["</tool_call>", "\n</parameter>\n</function>\n</tool_call>", "</think>\n<|im_end|>"]
)
def test_closing_tags_beside_a_structured_call_are_dropped(closers):
    """Orphan closing tags are dropped before and after a structured call, and other text stays."""
    assert same(STRUCTURED, closers) == ("", [PARIS], "tool_calls")
    assert same(closers, STRUCTURED) == ("", [PARIS], "tool_calls")
    assert same(f"Yes.\n{closers.lstrip()}", STRUCTURED)[0].rstrip() == "Yes."
    assert same(f"{closers} and more", STRUCTURED)[0] == f"{closers} and more"


@pytest.mark.parametrize("closers", ["</tool_call>", "</function>\n</tool_call>\n", "</think>\n"])
@pytest.mark.parametrize("text", [READ["invoke"][0], READ["tools"][0], f"<tool_call>{CALL}</tool_call>"])
def test_closing_tags_before_a_written_call_are_dropped(closers, text):
    """Orphan closing tags on their own line are dropped right before a call."""
    assert same(f"{closers}{text}") == ("", [PARIS], "tool_calls")
    shown = f"{closers}<invoke name='other'>"
    assert same(shown) == (shown, [], "stop")


ENDS = {
    "function tags": "<tool_call><function=get><parameter=city>Paris</parameter></function></tool_call>",
    "without the envelope's end": "<tool_call><function=get><parameter=city>Paris</parameter></function>",
    "without an envelope": "<function=get><parameter=city>Paris</parameter></function>",
    "invoke": f'<invoke name="get">{PARAMETER}</invoke>',
    "tools": f"<tools>{CALL}</tools>",
    "closing tags behind it": f"<tool_call>{CALL}</tool_call>\n</think>\n<|im_end|>",
}  # fmt: skip


@pytest.mark.parametrize("text", ENDS.values(), ids=ENDS)
def test_a_call_that_ends_the_response_within_a_line_of_reasoning_is_read(text):
    """A call in any dialect counts at the very end, even before blank text, and is reasoning otherwise."""
    assert same(ReasoningDelta(f"I call {text}")) == ("", [PARIS], "tool_calls")
    assert same(ReasoningDelta(f"I call {text}"), "\n\n") == ("", [PARIS], "tool_calls")
    assert same(ReasoningDelta(f"I call {text} or not")) == ("", [], "stop")
    assert same(ReasoningDelta(f"I call {text}"), "\n\nNo.")[1:] == ([], "stop")
    assert same(ReasoningDelta(f"e.g. `{text}`"), "\n") == ("\n", [], "stop")
    assert same(ReasoningDelta(f"I call {text}".replace("get", "other"))) == ("", [], "stop")


def test_end_tokens_before_a_call_are_dropped():
    """An end token in the middle of a line is dropped right before a call."""
    assert same(f"Yes.<|im_end|>\n<tool_call>{CALL}</tool_call>") == ("Yes.", [PARIS], "tool_calls")
    assert same("Yes.<|im_end|>", STRUCTURED) == ("Yes.", [PARIS], "tool_calls")


def test_a_call_within_a_line_of_reasoning_counts_only_at_the_end():
    """In the middle of a line of reasoning a call is read only if it ends the whole response."""
    thought = f"I should call it: <tool_call>{CALL}</tool_call>"
    assert same(ReasoningDelta(thought)) == ("", [PARIS], "tool_calls")
    assert same(ReasoningDelta(f"{thought} or not")) == ("", [], "stop")
    assert same(ReasoningDelta(thought), "No.") == ("No.", [], "stop")
    other = thought.replace('"get"', '"other"')
    assert same(ReasoningDelta(other)) == ("", [], "stop")


MARKUP = [
    "<tool_call>", "</tool_call>", "<tools>", "</tools>", "<function_call>", "</function_call>",
    "<tool_calls>", "</tool_calls>",
    "<function=get>", "<function=run>", '<function name="get">', '<invoke name="get">', "</invoke>",
    "</function>", "<parameter=city>",
    '<parameter name="city">', "</parameter>", "Paris", "\n", " ", CALL, A, 'get(city="x")', "now()", "{",
    "[", "}", "]", ",", '"', "\\",
    "<function>get</function>", "<name>now</name>", "<|im_end|>", "`", "```\n", "functions.", "</func", "<",
    "x = 1;", "and so on. ",
]  # fmt: skip


@given(
    st.lists(st.sampled_from(MARKUP), max_size=9).map("".join),
    st.sampled_from([RawToolCallDelta(0, "a", "get", A), ""]),
)
def test_any_mixture_means_the_same_at_any_cut(text, then):
    """For any mixture of markup a cut changes nothing, and without a call no character is lost."""
    shown, calls, reason = same(*([text, then] if then else [text]))
    assert calls or (shown, reason) == (text, "stop")


REQUIRED = replace(TURN, tool_choice="required")


def choice(name):
    return {"type": "function", "function": {"name": name}}


NAMED = replace(TURN, tool_choice=choice("get"))


@pytest.mark.parametrize(
    "text", [f"[{CALL}]", CALL, CALL.replace("arguments", "parameters"), f"```json\n{CALL}\n```"]
)
def test_reads_a_forced_call_that_is_all_of_the_content(text):
    """With a forced tool choice, JSON that is the whole response is the call, as content or as reasoning."""
    assert same(text, turn=REQUIRED) == ("", [PARIS], "tool_calls")
    assert same(text, turn=NAMED) == ("", [PARIS], "tool_calls")
    assert same(text) == (text, [], "stop")
    assert same(ReasoningDelta(text), turn=REQUIRED) == ("", [PARIS], "tool_calls")
    assert same(ReasoningDelta(text), "\n", turn=REQUIRED) == ("", [PARIS], "tool_calls")
    assert same(ReasoningDelta(text), "No.", turn=REQUIRED) == ("No.", [], "stop")


def test_reads_the_arguments_of_a_named_choice():
    """An object of the named function's parameters is its arguments; any other object is text."""
    assert same(A, turn=NAMED) == ("", [PARIS], "tool_calls")
    assert same(f"```json\n{A}\n```", turn=NAMED) == ("", [PARIS], "tool_calls")
    assert same("{}", turn=replace(TURN, tool_choice=choice("now"))) == ("", [NOW], "tool_calls")
    assert same(ReasoningDelta(A), turn=NAMED) == ("", [PARIS], "tool_calls")
    required = replace(
        NAMED, tools=[function("get", {"city": {"type": "string"}}, required=["city"]), *TOOLS[1:]]
    )
    for text, turn in (
        ('{"answer": 1}', NAMED),
        ("{}", NAMED),
        ("[1]", NAMED),
        (A, REQUIRED),
        ("{}", required),
        ("Hi {", NAMED),
    ):
        assert same(text, turn=turn) == (text, [], "stop")
