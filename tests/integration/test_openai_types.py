"""Every body and chunk matches the SDK's own types; the check itself can fail."""

import pytest
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import ValidationError

from tests.helpers import HELLO, MODEL, world
from tests.integration.test_chat import WEATHER
from tests.openai_types import judge, refusal, stream

CUSTOM = {"type": "custom", "custom": {"name": "note", "description": "Take a note"}}
EXTRAS = {
    "text": {},
    "usage in a stream": {"stream_options": {"include_usage": True}},
    "thoughts": {"enable_thinking": True},
    "a call": {"tools": [WEATHER], "tool_choice": "required"},
    "a custom call": {"tools": [CUSTOM], "tool_choice": "required"},
    "a legacy call": {"functions": [WEATHER["function"]], "function_call": {"name": "get_weather"}},
    "JSON": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    },
}
GOOD = {"id": "a", "object": "model", "created": 1, "owned_by": "q"}


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
async def test_chat_matches_the_sdk_s_types(extra):
    """A response, whole or in chunks, has the SDK's types, without an unknown key."""
    async with world() as w:
        status, _, body = await w.post(HELLO | {k: v for k, v in extra.items() if k != "stream_options"})
        assert status == 200
        judge(ChatCompletion, body)
        status, text = await w.stream(HELLO | extra)
        assert status == 200
        chunks = stream(ChatCompletionChunk, text)
        assert chunks[-1 if "stream_options" not in extra else -2].choices[0].finish_reason


async def test_models_match_the_sdk_s_types():
    """The list of models and one model have the SDK's types."""
    async with world() as w:
        _, listing = await w.get("/v1/models")
        assert set(listing) == {"object", "data"}
        for model in [*listing["data"], (await w.get(f"/v1/models/{MODEL}"))[1]]:
            judge(Model, model)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {}),
        ("/v1/chat/completions", HELLO | {"model": "nope"}),
        ("/v1/chat/completions", HELLO | {"model": "fault-429"}),
        ("/v1/nowhere", {}),
    ],
)
async def test_rejections_match_the_sdk_s_types(path, body):
    """An error has OpenAI's four keys, whatever rejected the request."""
    async with world() as w:
        status, _, answer = await w.post(body, path)
        assert status >= 400
        refusal(answer)


@pytest.mark.parametrize(
    "wrong",
    [GOOD | {"created": "1"}, GOOD | {"extra": 1}, {"id": "a"}, GOOD | {"object": "thing"}],
    ids=["a string for a number", "an unknown key", "keys missing", "another literal"],
)
def test_the_check_rejects(wrong):
    """A wrong type, an unknown key, a missing key and an undeclared literal are each rejected."""
    judge(Model, GOOD)
    with pytest.raises((AssertionError, ValidationError)):
        judge(Model, wrong)
