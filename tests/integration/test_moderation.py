"""Moderations by a guard model, a decision model, a chat model, and an own server's own endpoint."""

import math

import pytest
from openai.types import ModerationCreateResponse

from qproxy.emulator.faults import json_reply
from tests.helpers import accounts, world
from tests.openai_types import refusal

PATH = "/v1/moderations"
GUARD, DECISION, CHAT = "Qwen3Guard-Gen-8B", "decision-model-preview", "qwen3-32b"


async def results(it, input, model=GUARD, **fields):
    """Return the results of a moderation, valid for the SDK."""
    status, _, body = await it.post({"model": model, "input": input, **fields}, PATH)
    assert status == 200, body
    ModerationCreateResponse.model_validate(body, strict=True)
    assert body["model"] == model
    return body["results"]


async def test_a_guard_model():
    """Each text has a result: OpenAI's categories with scores from the log probabilities, and the model's own
    words."""
    async with world() as it:
        unsafe, safe, doubtful = await results(it, ["I kill you", "Hello", "a naked man"])
        assert (unsafe["flagged"], safe["flagged"], doubtful["flagged"]) == (True, False, True)
        assert [name for name, found in unsafe["categories"].items() if found] == ["violence"]
        assert unsafe["category_scores"]["violence"] == pytest.approx((0.8 + 0.05) / 1.0)
        assert doubtful["category_scores"]["sexual"] == pytest.approx((0.8 * 0.5 + 0.1) / 1.0)
        assert not any(safe["category_scores"].values())
        assert unsafe["qproxy"]["safety"] == "Unsafe"
        assert unsafe["qproxy"]["categories"] == ["Violent"]
        applied = safe["category_applied_input_types"]
        assert (applied["violence"], applied["violence/graphic"], applied["hate"]) == (["text"], [], ["text"])
        assert it.sound()


async def test_controversial_inputs_are_flagged_by_a_setting():
    """The score stays what it is."""
    async with world(moderation_flags_controversial=False) as it:
        (result,) = await results(it, "a naked man")
        assert result["flagged"] is False
        assert result["category_scores"]["sexual"] == pytest.approx(0.5)


async def test_a_category_without_counterpart_flags_the_input():
    """OpenAI has no category for personal data: the input is flagged, and the category is named."""
    async with world() as it:
        (result,) = await results(it, "my passport number")
        assert result["flagged"] is True
        assert not any(result["categories"].values())
        assert result["qproxy"]["categories"] == ["PII"]


def guard_reply(text, *tokens):
    """Return a guard's answer with the log probabilities of single tokens."""
    content = [
        {
            "token": token,
            "logprob": -0.1,
            "top_logprobs": [{"token": word, "logprob": math.log(share)} for word, share in tops],
        }
        for token, tops in tokens
    ]
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if content:
        choice["logprobs"] = {"content": content}
    return json_reply(
        {"id": "x", "object": "chat.completion", "created": 1, "model": "g", "choices": [choice]}
    )


ANSWERS = {
    "no log probabilities": (guard_reply("Safety: Unsafe\nCategories: Violent"), 1.0),
    "controversial without them": (guard_reply("Safety: Controversial\nCategories: Violent"), 0.5),
    "words in pieces": (
        guard_reply(
            "Safety: Unsafe\nCategories: Violent, PII",
            ("Safe", [("Safe", 0.9)]), ("ty", []), (":", []),
            (" Un", [(" Un", 0.6), (" Contro", 0.2), ("x", 0.2)]),
            ("safe", [("safe", 1.0)]),
        ),
        (0.6 + 0.1) / 0.8,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("reply", "score"), ANSWERS.values(), ids=ANSWERS)
async def test_scores(reply, score):
    """They come from the first token of the word of safety, or else from the word."""
    async with world() as it:
        it.emulator.script(reply)
        (result,) = await results(it, "x")
        assert result["category_scores"]["violence"] == pytest.approx(score)


@pytest.mark.parametrize("text", ["", "Sorry.", "Safety: Perhaps\nCategories: None"])
async def test_an_answer_without_a_judgement_is_an_error(text):
    """Unknown is not safe."""
    async with world() as it:
        it.emulator.script(*[guard_reply(text)] * 3)
        status, _, body = await it.post({"model": GUARD, "input": "x"}, PATH)
        assert status >= 500
        refusal(body)


@pytest.mark.parametrize(("model", "requests"), [(DECISION, 1), (CHAT, 13)])
async def test_questions_about_the_categories(model, requests):
    """A decision model judges all categories in one request, a chat model in one each."""
    async with world() as it:
        (result,) = await results(it, "Death, violence and physical injury", model)
        assert len(it.emulator.requests) == requests
        assert result["flagged"] is True
        assert result["categories"]["violence"] is True
        assert all(result["category_applied_input_types"].values())


async def test_images():
    """A decision model or a chat model gets them; a guard model is a 400; some categories are of texts
    only."""
    parts = [{"type": "image_url", "image_url": {"url": "https://a.test/x.png"}}]
    async with world() as it:
        (result,) = await results(it, parts, CHAT)
        applied = result["category_applied_input_types"]
        assert (applied["violence"], applied["hate"]) == (["image"], [])
        status, _, body = await it.post({"model": GUARD, "input": parts}, PATH)
        assert (status, refusal(body).param) == (400, "input")


async def test_openais_names_stand_for_the_operators_model():
    """Without the setting they are a 400 that names it."""
    async with world(moderation_model=GUARD) as it:
        for body in ({"input": "Hi"}, {"input": "Hi", "model": "omni-moderation-latest"}):
            status, _, answer = await it.post(body, PATH)
            assert (status, answer["model"]) == (200, GUARD)
    async with world() as it:
        status, _, answer = await it.post({"input": "Hi"}, PATH)
        assert (status, refusal(answer).param) == (400, "model")
        assert "moderation_model" in answer["error"]["message"]


async def test_an_own_server_with_moderations_gets_the_clients_body():
    """Its account names the task; its response is passed as it is."""
    one = accounts("one", kind="openai_compatible", tasks=["moderation"])
    async with world(accounts=one) as it:
        body = {"model": "my-moderator", "input": ["kill"], "threshold": 0.4}
        status, _, answer = await it.post(body, PATH)
        assert (status, answer["id"], answer["results"][0]["flagged"]) == (200, "modr-emu", True)
        (seen,) = it.emulator.requests
        assert (seen.path, seen.body) == ("/v1/moderations", body)


INVALID = {
    "no input": ({"model": GUARD}, "input"),
    "an empty array": ({"model": GUARD, "input": []}, "input"),
    "a number": ({"model": GUARD, "input": ["a", 1]}, "input[1]"),
    "an unknown part": ({"model": GUARD, "input": [{"type": "x"}]}, "input[0].type"),
}


@pytest.mark.parametrize(("body", "param"), INVALID.values(), ids=INVALID)
async def test_invalid_fields_are_named(body, param):
    """An invalid field is a 400 that names it, before any upstream."""
    async with world() as it:
        status, _, answer = await it.post(body, PATH)
        assert (status, refusal(answer).param) == (400, param)
        assert it.emulator.requests == []
