"""Anthropic's messages as chat messages: every kind of block, the system prompt, and stable prefixes."""

import json

import pytest

from qproxy.wire.endpoints.anthropic import signatures
from qproxy.wire.errors import RequestError
from tests.wire.endpoints.anthropic.test_request import decode

EPHEMERAL = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
PNG_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}
PDF_NOTE = "[A document (application/pdf) was left out here: this model cannot read it.]"


def user(*content):
    return {"role": "user", "content": [text(part) if isinstance(part, str) else part for part in content]}


def assistant(*content):
    return {**user(*content), "role": "assistant"}


def text(value, **more):
    return {"type": "text", "text": value, **more}


def use(id="t1", name="get", **arguments):
    return {"type": "tool_use", "id": id, "name": name, "input": arguments}


def result(content=None, id="t1", **more):
    return {
        "type": "tool_result",
        "tool_use_id": id,
        **({} if content is None else {"content": content}),
        **more,
    }


def tool(content, id="t1", **more):
    return {"role": "tool", "tool_call_id": id, "content": content, **more}


def chat_call(id="t1", name="get", arguments="{}"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def assistant_message(content, **more):
    return {"role": "assistant", "content": content, **more}


def thought(value, **more):
    return {"type": "thinking", "thinking": value, **more}


USER = {
    "a string": ({"role": "user", "content": "hi"}, [{"role": "user", "content": "hi"}]),
    "one text": (user("hi"), [user("hi")]),
    "texts, an empty one among them": (user("a", "", "b"), [user("a", "b")]),
    "nothing": (user(""), [{"role": "user", "content": ""}]),
    "a marked text": (user(text("a", cache_control=HOUR)), [user(text("a", cache_control=EPHEMERAL))]),
    "a text with citations": (user(text("a", citations=[{"x": 1}])), [user("a")]),
    "a picture": (user("see", {"type": "image", "source": PNG}), [user("see", PNG_PART)]),
    "a marked picture": (
        user({"type": "image", "source": PNG, "cache_control": EPHEMERAL}),
        [user({**PNG_PART, "cache_control": EPHEMERAL})],
    ),
    "a picture by URL": (
        user({"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}),
        [user({"type": "image_url", "image_url": {"url": "https://x/y.png"}})],
    ),
    "a document of text": (
        user(
            {
                "type": "document",
                "title": 'A "b"',
                "source": {"type": "text", "media_type": "text/plain", "data": "x"},
            }
        ),
        [user("<document title=\"A 'b'\">\nx\n</document>")],
    ),
    "a document of blocks": (
        user(
            {
                "type": "document",
                "context": "c",
                "source": {"type": "content", "content": [text("x"), text("y")]},
            }
        ),
        [user('<document context="c">\nx\n\ny\n</document>')],
    ),
    "a search result": (
        user(
            {"type": "search_result", "title": "T", "source": "https://x", "content": [text("x"), text("y")]}
        ),
        [user("T\nhttps://x\nx\n\ny")],
    ),
    "a result": (user(result("ok")), [tool("ok")]),
    "a result without content": (user(result()), [tool("")]),
    "a result of texts": (user(result([text("a"), text(""), text("b")])), [tool("a\n\nb")]),
    "a result that failed": (user(result("Exit code 3", is_error=True)), [tool("Error: Exit code 3")]),
    "a result that says that it failed": (
        user(result("<tool_use_error>no</tool_use_error>", is_error=True)),
        [tool("<tool_use_error>no</tool_use_error>")],
    ),
    "a result that failed without a word": (user(result(is_error=True)), [tool("Error")]),
    "a result that did not fail": (user(result("ok", is_error=False)), [tool("ok")]),
    "a result with a picture": (
        user(result([text("see"), {"type": "image", "source": PNG}])),
        [tool([text("see"), PNG_PART])],
    ),
    "a result that is a picture": (user(result([{"type": "image", "source": PNG}])), [tool([PNG_PART])]),
    "a result of a search for tools": (
        user(result([{"type": "tool_reference", "tool_name": "mcp__x"}])),
        [tool("The tool mcp__x is available now.")],
    ),
    "a marked result": (user(result("ok", cache_control=HOUR)), [tool("ok", cache_control=EPHEMERAL)]),
    "a result for an id of ours": (
        user(result("ok", "toolu_b64_ZnVuY3Rpb25zLmdldDow")),
        [tool("ok", "functions.get:0")],
    ),
    "results and texts in any order": (
        user("a", result("1", "t1"), "b", result("2", "t2"), "c"),
        [tool("1", "t1"), tool("2", "t2"), user("a", "b", "c")],
    ),
}


@pytest.mark.parametrize(("message", "messages"), USER.values(), ids=USER)
def test_user_messages(message, messages):
    """Every block of a user message becomes part of a chat message."""
    turn = decode(messages=[message])
    assert turn.messages == messages
    assert turn.ignored == ()


NOTES = {
    "a PDF": (user(PDF), [user(PDF_NOTE)], "content.document"),
    "a PDF beside a result": (user(result("read"), PDF), [tool("read"), user(PDF_NOTE)], "content.document"),
    "a PDF in a result": (user(result([PDF])), [tool(PDF_NOTE)], "content.document"),
    "a document by URL": (
        user({"type": "document", "title": "T", "source": {"type": "url", "url": "https://x"}}),
        [user('[A document title="T" (url) was left out here: this model cannot read it.]')],
        "content.document",
    ),
    "a block of tomorrow": (
        user({"type": "hologram", "x": 1}),
        [user("[A block of the type 'hologram' was left out here: this model cannot read it.]")],
        "content.hologram",
    ),
}


@pytest.mark.parametrize(("message", "messages", "ignored"), NOTES.values(), ids=NOTES)
def test_blocks_without_a_counterpart(message, messages, ignored):
    """A block that no Qwen model reads leaves a note, and the client is notified; it is never an error."""
    turn = decode(messages=[message])
    assert turn.messages == messages
    assert turn.ignored == (ignored,)


REFUSED = {
    "a picture by file": ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "source.type"),
    "a picture without data": (
        {"type": "image", "source": {"type": "base64", "media_type": "a/b"}},
        "source.data",
    ),
    "a picture without a source": ({"type": "image"}, "source"),
    "a document without a source": ({"type": "document"}, "source"),
    "a result without an id": ({"type": "tool_result", "content": "x"}, "tool_use_id"),
    "a result whose id is a number": ({"type": "tool_result", "tool_use_id": 1}, "tool_use_id"),
    "a result that is a number": (result(5), "content"),
    "a block of a result without text": (result([{"type": "text"}]), "content[0].text"),
}


@pytest.mark.parametrize(("block", "path"), REFUSED.values(), ids=REFUSED)
def test_rejects_an_unusable_block(block, path):
    """A block that changes the request's meaning, or is invalid, is a 400 with its path."""
    with pytest.raises(RequestError) as caught:
        decode(messages=[user("x", block)])
    assert caught.value.param == f"messages[0].content[1].{path}"


ASSISTANT = {
    "a string": ({"role": "assistant", "content": "hi"}, assistant_message("hi")),
    "texts": (assistant("a", "b"), assistant_message("ab")),
    "nothing": (assistant(""), assistant_message("")),
    "a call": (
        assistant(use(a=1, b=[2.5, "é"])),
        assistant_message(None, tool_calls=[chat_call(arguments='{"a": 1, "b": [2.5, "é"]}')]),
    ),
    "a call without input": (
        assistant({**use(), "input": None}),
        assistant_message(None, tool_calls=[chat_call()]),
    ),
    "a text and calls": (
        assistant("x", use(), use("t2", "put")),
        assistant_message("x", tool_calls=[chat_call(), chat_call("t2", "put")]),
    ),
    "a call with an id of ours": (
        assistant(use("toolu_b64_ZnVuY3Rpb25zLmdldDow")),
        assistant_message(None, tool_calls=[chat_call("functions.get:0")]),
    ),
    "a thought": (
        assistant(thought("t", signature="any"), "x"),
        assistant_message("x", reasoning_content="t"),
    ),
    "a thought without signature": (
        assistant(thought("t"), "x"),
        assistant_message("x", reasoning_content="t"),
    ),
    "an empty thought": (
        assistant(thought("", signature="s"), "x"),
        assistant_message("x", reasoning_content=""),
    ),
    "a thought that is null": (
        assistant(thought(None, signature="s"), "x"),
        assistant_message("x", reasoning_content=""),
    ),
    "thoughts": (
        assistant(thought("a", signature=""), "x", thought("b", signature="s"), use()),
        assistant_message("x", reasoning_content="a\nb", tool_calls=[chat_call()]),
    ),
    "a sealed thought": (
        assistant(thought("summary", signature=signatures.seal("gAAAA==")), "x"),
        assistant_message("x", reasoning_content="summary", encrypted_content="gAAAA=="),
    ),
    "a marked text": (
        assistant(text("x", cache_control=HOUR)),
        assistant_message("x", cache_control=EPHEMERAL),
    ),
}


@pytest.mark.parametrize(("message", "expected"), ASSISTANT.values(), ids=ASSISTANT)
def test_assistant_messages(message, expected):
    """A response in the history becomes one message, with reasoning beside its text, never in it."""
    turn = decode(messages=[user("q"), message, user("go on")])
    assert turn.messages == [user("q"), expected, user("go on")]
    assert turn.ignored == ()


DROPPED = (
    "redacted_thinking",
    "server_tool_use",
    "web_search_tool_result",
    "mcp_tool_result",
    "container_upload",
    "compaction",
    "mcp_tool_listing",
    "block_of_tomorrow",
)


@pytest.mark.parametrize("kind", DROPPED)
def test_blocks_of_another_vendor(kind):
    """Blocks of a response that only Anthropic's models can use are dropped and named."""
    turn = decode(messages=[user("q"), assistant("a", {"type": kind, "data": "x"}, "b"), user("c")])
    assert turn.messages[1] == assistant_message("ab")
    assert turn.ignored == (f"content.{kind}",)


BAD_CALLS = {
    "no id": ({"type": "tool_use", "name": "x", "input": {}}, "id"),
    "no name": ({"type": "tool_use", "id": "x", "input": {}}, "name"),
    "an input that is a text": ({"type": "tool_use", "id": "x", "name": "x", "input": "y"}, "input"),
}


@pytest.mark.parametrize(("block", "key"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_rejects_invalid_calls(block, key):
    """An invalid call is a 400 with its path."""
    with pytest.raises(RequestError) as caught:
        decode(messages=[user("q"), assistant(block)])
    assert caught.value.param == f"messages[1].content[0].{key}"


def test_prefill():
    """A response at the end is a prefill, without its trailing blanks."""
    turn = decode(messages=[user("q"), assistant("The answer is \n")])
    assert turn.messages[-1] == assistant_message("The answer is", partial=True)
    turn = decode(messages=[user("q"), assistant("x", use())])
    assert "partial" not in turn.messages[-1]


BILLING = "x-anthropic-billing-header: cc_version=2.1; cch=0123;"
SYSTEM = {
    "a string": ("be brief", "be brief"),
    "blocks": ([text("a"), text("b")], "a\n\nb"),
    "marked blocks": (
        [text("a"), text("b", cache_control=HOUR)],
        [text("a"), text("b", cache_control=EPHEMERAL)],
    ),
    "the billing block": ([text(BILLING), text("a")], "a"),
    "the billing block alone": ([text(BILLING)], None),
    "the billing line of a string": (f"{BILLING}\nbe brief", "be brief"),
    "empty": ("", None),
    "no blocks": ([], None),
}


@pytest.mark.parametrize(("system", "content"), SYSTEM.values(), ids=SYSTEM)
def test_system(system, content):
    """The system prompt is one message at the start, without text that would invalidate every cache."""
    expected = [] if content is None else [{"role": "system", "content": content}]
    assert decode(system=system).messages == [*expected, {"role": "user", "content": "hi"}]


def reminder(value):
    return {"role": "user", "content": f"<system-reminder>\n{value}\n</system-reminder>"}


SYSTEM_MESSAGE = {"role": "system", "content": "S"}
SYSTEM_MESSAGES = {
    "after the user's": (
        [user("a"), SYSTEM_MESSAGE],
        [user("a"), reminder("S")],
    ),
    "between": (
        [user("a"), SYSTEM_MESSAGE, assistant("b"), user("c")],
        [user("a"), reminder("S"), assistant_message("b"), user("c")],
    ),
    "of blocks": (
        [user("a"), {"role": "system", "content": [text("S"), text(""), text("T", cache_control=HOUR)]}],
        [user("a"), reminder("S\n\nT")],
    ),
    "wrapped already": (
        [user("a"), {"role": "system", "content": reminder("S")["content"]}],
        [user("a"), reminder("S")],
    ),
    "empty": ([user("a"), {"role": "system", "content": ""}], [user("a")]),
    "news of tools": (
        [
            user("a"),
            {
                "role": "system",
                "content": [
                    {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "x"}},
                    {"type": "tool_removal", "tool": {"type": "mcp_toolset_reference", "server_name": "y"}},
                ],
            },
        ],
        [user("a"), reminder("The tool x is available now.\n\nThe tool y is not available anymore.")],
    ),
    "cleared at the next user message": (
        [user("a"), {**SYSTEM_MESSAGE, "clear_at": "next_user_message"}, assistant("b"), user("c")],
        [user("a"), assistant_message("b"), user("c")],
    ),
    "not cleared yet": (
        [user("a"), {**SYSTEM_MESSAGE, "clear_at": "next_user_message"}, assistant("b", use())],
        [user("a"), reminder("S"), assistant_message("b", tool_calls=[chat_call()])],
    ),
    "never cleared": (
        [user("a"), {**SYSTEM_MESSAGE, "clear_at": "never"}, user("c")],
        [user("a"), reminder("S"), user("c")],
    ),
    "in front": ([SYSTEM_MESSAGE, user("a")], [{"role": "system", "content": "be brief\n\nS"}, user("a")]),
}


@pytest.mark.parametrize(("messages", "expected"), SYSTEM_MESSAGES.values(), ids=SYSTEM_MESSAGES)
def test_system_messages(messages, expected):
    """A system message stays in its place as a reminder of the user's; at the start it is part of the
    prompt."""
    turn = decode(system="be brief", messages=messages)
    if expected[0]["role"] != "system":
        expected = [{"role": "system", "content": "be brief"}, *expected]
    assert turn.messages == expected


def test_each_request_starts_with_the_previous_one():
    """The messages of a conversation's previous request are a prefix, except for the moving cache markers."""
    blocks = [
        user("do it", text("please")),
        {"role": "system", "content": "S"},
        assistant(thought("t", signature="s"), "I will.", use("t1", a={"b": 1.0}), use("t2")),
        user(result("1", "t1"), result([text("2"), {"type": "image", "source": PNG}], "t2")),
        assistant("Done.", use("t3")),
        user(result("3", "t3"), PDF),
        assistant("All."),
        user("thanks"),
    ]
    earlier: list[str] = []
    for count in (2, 4, 6, 8):
        history = json.loads(json.dumps(blocks[:count]))
        last = next(message for message in reversed(history) if message["role"] == "user")
        last["content"][-1]["cache_control"] = EPHEMERAL
        billing = text(f"{BILLING} cch={count:08x};")
        turn = decode(system=[billing, text("P", cache_control=EPHEMERAL)], messages=history)
        prompt = [without_markers(message) for message in turn.messages]
        assert prompt[: len(earlier)] == earlier
        assert "cch" not in json.dumps(prompt)
        earlier = prompt


def without_markers(value):
    """Return a message as its text, without cache markers."""
    return json.dumps(value).replace(', "cache_control": {"type": "ephemeral"}', "")
