"""Web searches that clients request: by Qwen's servers, by a tool of the operator, or not at all."""

import json

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent

from qproxy import tools
from qproxy.config.accounts import AccountConfig
from qproxy.config.tools import ToolRuleConfig
from qproxy.emulator.faults import json_reply
from tests.helpers import HELLO, MODEL, world
from tests.integration.test_responses import stream
from tests.openai_types import judge
from tests.relay.test_tool_loop import calling, saying
from tests.wire.endpoints.responses.test_encoder import read

PATH = "/v1/responses"
QWEN = (AccountConfig("one", base_url="http://one.test/compatible-mode/v1", key="sk-1"),)
NATIVE = (
    AccountConfig("one", base_url="http://one.test/compatible-mode/v1", key="sk-1", dialect="dashscope"),
)
OWN = (AccountConfig("own", "openai_compatible", base_url="http://own.test/v1"),)
SEARCH, PREVIEW = {"type": "web_search"}, {"type": "web_search_preview"}
ASK = {"model": MODEL, "input": "Hello", "tools": [SEARCH]}
SOURCES = {"include": ["web_search_call.action.sources"]}
URL = "https://example.com/emulator"
CHAT = {**HELLO, "web_search_options": {}}
RESULTS = json.dumps({"results": [{"url": URL, "title": "The emulator"}]})


@tools.function(policy="on request")
async def find(query: str) -> str:
    """Search the web."""
    return RESULTS


def cited(text):
    """Return the text that each annotation of an output_text part names, with its URL."""
    return [(text["text"][a["start_index"] : a["end_index"]], a["url"]) for a in text["annotations"]]


@pytest.mark.parametrize("accounts", [QWEN, NATIVE], ids=["compatible", "native"])
@pytest.mark.parametrize("kind", ["web_search", "web_search_2025_08_26", "web_search_preview"])
async def test_qwen_searches(kind, accounts):
    """Qwen searches natively, where it names its sources: an item with them stands before the message, which
    cites them with the right offsets, whole and streamed."""
    ask = {**ASK, **SOURCES, "tools": [{"type": kind, "search_context_size": "medium"}]}
    async with world(accounts=accounts) as it:
        status, headers, body = await it.post(ask, PATH)
        judge(Response, body)
        seen = it.emulator.requests[-1]
        assert "/services/aigc/multimodal-generation/" in seen.path
        assert seen.body["parameters"]["enable_search"] is True
        assert (status, "x-qproxy-ignored-params" in headers) == (200, False)
        search, message = body["output"]
        assert search["action"] == {"type": "search", "sources": [{"type": "url", "url": URL}]}
        assert (search["type"], search["status"]) == ("web_search_call", "completed")
        assert cited(message["content"][0]) == [("[ref_1]", URL)]
        assert body["tools"] == ask["tools"]
        status, text = await stream(it, ask)
        events = read(text)
    for event in events:
        judge(ResponseStreamEvent, event)
    names = [event["type"] for event in events]
    assert names[2:7] == [
        "response.output_item.added",
        "response.web_search_call.in_progress",
        "response.web_search_call.searching",
        "response.web_search_call.completed",
        "response.output_item.done",
    ]
    assert names[-5:] == [
        "response.output_text.annotation.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    streamed = events[-1]["response"]["output"]
    assert [item["type"] for item in streamed] == ["web_search_call", "message"]
    assert events[-5]["annotation"] == streamed[1]["content"][0]["annotations"][0]
    assert cited(streamed[1]["content"][0]) == [("[ref_1]", URL)]


async def test_sources_are_listed_on_request():
    """Without `include` the item has no sources; the annotations stay."""
    async with world(accounts=QWEN) as it:
        _, _, body = await it.post(ASK, PATH)
        assert body["output"][0]["action"] == {"type": "search"}
        assert cited(body["output"][1]["content"][0]) == [("[ref_1]", URL)]


async def test_a_search_is_forced():
    """A choice of the tool forces the search."""
    ask = {**ASK, "tools": [PREVIEW], "tool_choice": PREVIEW}
    async with world(accounts=QWEN) as it:
        _, _, body = await it.post(ask, PATH)
        judge(Response, body)
        assert it.emulator.requests[-1].body["parameters"]["search_options"]["forced_search"] is True
        assert body["tool_choice"] == PREVIEW


async def test_a_searched_conversation_goes_on():
    """A response with a search can be continued."""
    async with world(accounts=QWEN) as it:
        _, _, first = await it.post(ASK, PATH)
        status, _, _ = await it.post(
            {"model": MODEL, "input": "Go on", "previous_response_id": first["id"]}, PATH
        )
        assert status == 200
        roles = [message["role"] for message in it.emulator.requests[-1].body["messages"]]
        assert roles == ["user", "assistant", "user"]


async def test_json_has_no_marks():
    """A response in JSON gets no marks, which would break it; its sources stand for all of it."""
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
    async with world(accounts=QWEN) as it:
        _, _, body = await it.post({**ASK, "text": {"format": form}}, PATH)
        (text,) = body["output"][1]["content"]
        assert json.loads(text["text"]) is not None
        assert cited(text) == [(text["text"], URL)]
        assert "enable_citation" not in it.emulator.requests[-1].body["parameters"]["search_options"]


async def test_chat_has_annotations():
    """`web_search_options` of chat search natively too, and its annotations have offsets in the content."""
    async with world(accounts=QWEN) as it:
        _, _, body = await it.post(CHAT)
        message = body["choices"][0]["message"]
        found = [one["url_citation"] for one in message["annotations"]]
        assert [message["content"][one["start_index"] : one["end_index"]] for one in found] == ["[ref_1]"]
        judge(ChatCompletion, body)
        _, text = await it.stream(CHAT)
        chunks = [json.loads(frame[6:]) for frame in text.split("\n\n") if frame.startswith("data: {")]
        judge(ChatCompletionChunk, chunks[-1])
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert [delta["annotations"] for delta in deltas if "annotations" in delta] == [
            message["annotations"]
        ]


async def test_the_compatible_api_searches_without_sources():
    """With web_search_sources = false, and after the native API refused, the compatible one searches."""
    async with world(accounts=QWEN, web_search_sources=False) as it:
        _, _, body = await it.post(ASK, PATH)
        assert it.emulator.requests[-1].body["enable_search"] is True
        assert [item["type"] for item in body["output"]] == ["message"]
    async with world(accounts=QWEN) as it:
        it.emulator.script(json_reply({"code": "InvalidParameter", "message": "url error"}, 400))
        status, _, body = await it.post(ASK, PATH)
        assert (status, [item["type"] for item in body["output"]]) == (200, ["message"])
        first, second = it.emulator.requests
        assert (first.body["parameters"]["enable_search"], second.body["enable_search"]) == (True, True)


async def test_what_is_left_out_is_named():
    """Filters, a place, and a search in a cache alone are left out and named."""
    async with world(accounts=QWEN) as it:
        filters = {
            **SEARCH,
            "filters": {"allowed_domains": ["a.test"]},
            "user_location": {"type": "approximate"},
        }
        _, headers, _ = await it.post({**ASK, "tools": [filters]}, PATH)
        assert headers["x-qproxy-ignored-params"] == "tools[0].filters, tools[0].user_location"
        _, headers, body = await it.post({**ASK, "tools": [{**SEARCH, "external_web_access": False}]}, PATH)
        assert headers["x-qproxy-ignored-params"] == "tools[0]"
        assert body["tools"] == []
        assert "enable_search" not in it.emulator.requests[-1].body


async def test_an_own_server_cannot_search():
    """A search that nothing can do is left out and named, or an error, by `missing_web_search`."""
    async with world(accounts=OWN) as it:
        _, headers, body = await it.post(ASK, PATH)
        assert headers["x-qproxy-ignored-params"] == "tools[0]"
        assert [item["type"] for item in body["output"]] == ["message"]
        _, headers, _ = await it.post(CHAT)
        assert headers["x-qproxy-ignored-params"] == "web_search_options"
    async with world(accounts=OWN, missing_web_search="error") as it:
        for path, ask, param in (
            (PATH, ASK, "tools[0]"),
            ("/v1/chat/completions", CHAT, "web_search_options"),
        ):
            status, _, body = await it.post(ask, path)
            assert (status, body["error"]["code"]) == (400, "unsupported_parameter")
            assert body["error"]["param"] == param
            assert "missing_web_search" in body["error"]["message"]


SEARCHED = (calling(("find", {"query": "emulators"})), saying(f"As [they say]({URL})."))


async def test_a_tool_of_the_operator_searches():
    """On an own server the operator's tool searches: its call is a search with the query and its results, and
    the text's link cites them."""
    ask = {**ASK, **SOURCES}
    async with world(accounts=OWN, functions=[find], web_search_tool="find") as it:
        it.emulator.script(*SEARCHED, *SEARCHED)
        _, _, body = await it.post(ask, PATH)
        judge(Response, body)
        search, message = body["output"]
        assert search["action"] == {
            "type": "search",
            "query": "emulators",
            "queries": ["emulators"],
            "sources": [{"type": "url", "url": URL}],
        }
        assert cited(message["content"][0]) == [(f"[they say]({URL})", URL)]
        _, text = await stream(it, ask)
        events = read(text)
    names = [event["type"] for event in events]
    assert names[2:7] == [
        "response.output_item.added",
        "response.web_search_call.in_progress",
        "response.web_search_call.searching",
        "response.web_search_call.completed",
        "response.output_item.done",
    ]
    for event in events:
        judge(ResponseStreamEvent, event)
    assert events[6]["item"] == {**search, "id": events[6]["item"]["id"]}


async def test_a_failed_search_is_an_item():
    """A search that fails is a failed item, and the model hears of it."""

    @tools.function(name="find", policy="on request")
    async def broken(query: str) -> str:
        """Search the web."""
        raise tools.ToolError("The engine is down.")

    async with world(accounts=OWN, functions=[broken], web_search_tool="find") as it:
        it.emulator.script(*SEARCHED)
        _, _, body = await it.post(ASK, PATH)
        judge(Response, body)
        assert (body["output"][0]["type"], body["output"][0]["status"]) == ("web_search_call", "failed")
        assert "engine is down" in it.emulator.requests[-1].body["messages"][-1]["content"]


async def test_a_tool_searches_for_chat():
    """A chat client sees no call, but the annotations."""
    async with world(accounts=OWN, functions=[find], web_search_tool="find") as it:
        it.emulator.script(*SEARCHED)
        _, _, body = await it.post(CHAT)
        (found,) = body["choices"][0]["message"]["annotations"]
        assert (found["url_citation"]["url"], found["url_citation"]["start_index"]) == (URL, 3)


async def test_a_forced_search_forces_the_tool():
    """A choice of the web search is a choice of the operator's tool."""
    async with world(accounts=OWN, functions=[find], web_search_tool="find") as it:
        it.emulator.script(*SEARCHED)
        await it.post({**ASK, "tool_choice": SEARCH}, PATH)
        offered = [tool["function"]["name"] for tool in it.emulator.requests[0].body["tools"]]
        assert offered == ["find"]
        assert it.emulator.requests[0].body["tool_choice"] != "auto"


async def test_qwen_needs_no_tool():
    """The operator's tool is for models without a search of their own."""
    async with world(accounts=QWEN, functions=[find], web_search_tool="find") as it:
        _, _, body = await it.post(ASK, PATH)
        assert "tools" not in it.emulator.requests[-1].body["parameters"]
        assert body["output"][0]["type"] == "web_search_call"


@pytest.mark.parametrize(
    "settings",
    [
        {"tool_rules": (ToolRuleConfig(policy="never", tools=["find"]),)},
        {"web_search_tool": "other"},
    ],
    ids=["forbidden", "unknown"],
)
async def test_a_tool_must_be_allowed(settings):
    """A tool that the key may not use, or that does not exist, is no search engine."""
    settings = {"web_search_tool": "find", **settings}
    async with world(accounts=OWN, functions=[find], **settings) as it:
        _, headers, _ = await it.post(ASK, PATH)
        assert headers["x-qproxy-ignored-params"] == "tools[0]"
