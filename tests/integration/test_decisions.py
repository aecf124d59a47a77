"""Typed questions in OpenAI's and Model Studio's form, to the decision model and to chat models."""

import math

import pytest
from openai.types import Decision

from qproxy.emulator.faults import json_reply
from tests.helpers import accounts, world
from tests.openai_types import refusal

MODEL = "qwen3-32b"
STATE = "The invoice is wrong: the invoice has a refund twice."
QUESTIONS = [
    {"type": "predicate", "instructions": "invoice refund", "name": "money"},
    {
        "type": "choice",
        "instructions": "Which team?",
        "choices": [{"value": "invoice", "description": "money"}, {"value": "parcel"}, {"value": True}],
    },
    {
        "type": "score",
        "instructions": "How bad?",
        "levels": [{"label": "fine"}, {"label": "wrong", "description": "x"}],
    },
]
BODY = {"input": STATE, "questions": QUESTIONS}
MODELS = ["decision-model-preview", MODEL]


@pytest.mark.parametrize("model", MODELS)
async def test_openais_form(model):
    """Every kind of question is answered in order with probabilities that add up to 1, by either kind of
    model."""
    async with world() as it:
        status, _, body = await it.post({**BODY, "model": model}, "/v1/decisions")
        assert status == 200, body
        Decision.model_validate(body, strict=True)
        predicate, choice, score = body["answers"]
        assert predicate["name"] == "money"
        assert predicate["probability"] > 0.5
        assert choice["choice"] == "invoice"
        assert [one["value"] for one in choice["probabilities"]] == ["invoice", "parcel", True]
        levels = score["probabilities"]
        assert [(one["label"], one["value"]) for one in levels] == [("fine", 0), ("wrong", 1)]
        assert score["score"] == pytest.approx(levels[1]["probability"])
        for answer in (choice, score):
            shares = [one["probability"] for one in answer["probabilities"]]
            assert sum(shares) == pytest.approx(1, abs=1e-4)
            assert answer["confidence"] == max(shares)
        usage = body["usage"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0
        paths = {seen.path for seen in it.emulator.requests}
        assert paths == {"/compatible-mode/v1/systemone" if model == MODELS[0] else "/v1/chat/completions"}
        assert it.sound()


SYSTEM_ONE = {
    "state": {"ticket": STATE},
    "questions": {
        "team": {"type": "choice", "instructions": "Which team?", "criteria": {"invoice": "x", "parcel": ""}},
        "page": {"type": "noul", "criteria": {"true": "invoice refund", "false": "no"}},
        "grade": {"type": "score", "criteria": ["fine", "wrong"]},
    },
}


@pytest.mark.parametrize("model", MODELS)
async def test_the_form_of_model_studio(model):
    """The answers have the questions' ids, their kinds, and the legend of the levels."""
    async with world() as it:
        status, _, body = await it.post({**SYSTEM_ONE, "model": model}, "/v1/systemone")
        assert status == 200, body
        answers = body["answers"]
        assert list(answers) == ["team", "page", "grade"]
        assert answers["team"]["choice"] == "invoice"
        assert set(answers["team"]["probabilities"]) == {"invoice", "parcel"}
        assert answers["page"]["noul"] == answers["page"]["probabilities"]["true"]
        assert answers["grade"]["legend"] == {"0": "fine", "1": "wrong"}
        assert body["latency_ms"] >= 0


async def test_a_question_in_the_models_own_form_is_sent_as_it_is():
    """Fields and kinds that are not known pass in both directions."""
    question = {"type": "ranking", "weights": [1, 2]}
    answer = {"type": "ranking", "order": [1, 0]}
    async with world() as it:
        it.emulator.script(json_reply({"answers": {"a": answer}}))
        body = {"model": MODELS[0], "state": [], "questions": {"a": question}, "seed": 1}
        _, _, got = await it.post(body, "/v1/systemone")
        assert got["answers"] == {"a": answer}
        sent = it.emulator.requests[0].body
        assert (sent["questions"], sent["seed"]) == ({"a": question}, 1)


async def test_an_own_server_gets_the_models_own_form():
    """An account of another provider is asked below its own base URL."""
    async with world(accounts=accounts("one", kind="openai_compatible")) as it:
        status, _, _ = await it.post({**SYSTEM_ONE, "model": MODELS[0]}, "/v1/systemone")
        assert (status, it.emulator.requests[0].path) == (200, "/v1/systemone")


async def test_what_a_chat_model_is_asked():
    """One request a question: no thinking, the state first, pictures as parts, and a bounded answer."""
    content = [
        {"type": "input_text", "text": "Look:"},
        {"type": "input_image", "image_url": "https://a.test/x.png", "detail": "low"},
    ]
    items = [
        {"role": "user", "content": content},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "done"},
    ]
    async with world() as it:
        status, _, _ = await it.post({**BODY, "model": MODEL, "input": items}, "/v1/decisions")
        assert status == 200
        assert len(it.emulator.requests) == 3
        sent = it.emulator.requests[0].body
        assert (sent["enable_thinking"], sent["logprobs"], sent["top_logprobs"]) == (False, True, 5)
        parts = sent["messages"][1]["content"]
        assert {"type": "image_url", "image_url": {"url": "https://a.test/x.png", "detail": "low"}} in parts
        texts = [part["text"] for part in parts if part["type"] == "text"]
        assert texts[0] == "<state>"
        assert "[call of f] {}" in texts
        assert "tool:" in texts
        assert texts[-1].endswith("Answer with the letter alone.")


def reply(*tokens, text="A"):
    """Return a chat response with the log probabilities of its first token."""
    tops = [{"token": token, "logprob": math.log(share), "bytes": None} for token, share in tokens]
    entry = {"token": text, "logprob": -0.1, "bytes": None, "top_logprobs": tops}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
        "logprobs": {"content": [entry]} if tokens else None,
    }
    return json_reply(
        {"id": "x", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice]}
    )


ONE = {"model": MODEL, "input": "x", "questions": [QUESTIONS[0]]}


async def test_spellings_of_a_letter_are_one_option():
    """Probabilities of the same letter are added, and those of other tokens are left out."""
    async with world() as it:
        it.emulator.script(reply(("A", 0.4), (" a", 0.2), ("B", 0.2), ("Maybe", 0.1)))
        _, _, body = await it.post(ONE, "/v1/decisions")
        assert body["answers"][0]["probability"] == pytest.approx(0.75)


async def test_a_model_that_chooses_nothing_has_refused():
    """An answer without a letter is a refusal, never an even distribution."""
    async with world() as it:
        it.emulator.script(reply(("Sorry", 0.9), text="Sorry"))
        _, _, body = await it.post(ONE, "/v1/decisions")
        assert body["answers"] == [{"type": "refusal", "name": "money"}]
        Decision.model_validate(body, strict=True)


async def test_a_model_without_log_probabilities_is_an_error():
    """A probability that nobody measured is never made up."""
    async with world() as it:
        it.emulator.script(*[reply()] * 3)
        status, _, body = await it.post(ONE, "/v1/decisions")
        assert (status, refusal(body).code) == (502, "upstream_invalid_response")


async def test_models_without_log_probabilities_are_rejected_before_any_request():
    """Model Studio's own models have none, which their data states; own servers have them for every model."""
    body = {**ONE, "model": "qwen3.7-plus"}
    async with world() as it:
        status, _, answer = await it.post(body, "/v1/decisions")
        assert (status, refusal(answer).param, it.emulator.requests) == (400, "model", [])
    async with world(accounts=accounts("one", kind="openai_compatible")) as it:
        status, _, _ = await it.post(body, "/v1/decisions")
        assert status == 200


MANY = {"type": "choice", "instructions": "x", "choices": [{"value": str(n)} for n in range(27)]}
INVALID = {
    "no questions": ({"model": MODEL, "input": "x", "questions": []}, "questions"),
    "an unknown kind": ({**ONE, "questions": [{"type": "x", "instructions": ""}]}, "questions[0].type"),
    "a choice that is a number": (
        {**ONE, "questions": [{**MANY, "choices": [{"value": 1}]}]}, "questions[0].choices[0].value",
    ),
    "one level": (
        {**ONE, "questions": [{"type": "score", "instructions": "", "levels": [{"label": "a"}]}]},
        "questions[0].levels",
    ),
    "more options than letters": ({**ONE, "questions": [MANY]}, "questions"),
    "an unknown item": ({**ONE, "input": [{"type": "x"}]}, "input[0].type"),
    "no model": ({"input": "x", "questions": [QUESTIONS[0]]}, "model"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "param"), INVALID.values(), ids=INVALID)
async def test_invalid_fields_are_named(body, param):
    """An invalid field is a 400 that names it, before any upstream."""
    async with world() as it:
        status, _, answer = await it.post(body, "/v1/decisions")
        assert (status, refusal(answer).param) == (400, param)
        assert it.emulator.requests == []


BROKEN = {
    "no answers": {},
    "another question": {"answers": {"q9": {"type": "noul", "noul": 0.5}}},
    "no probability": {"answers": {"q0": {"type": "noul"}}},
    "more than 1": {"answers": {"q0": {"type": "noul", "noul": 2}}},
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
async def test_an_unusable_response_is_an_error(answer):
    """Probabilities are never guessed."""
    async with world() as it:
        it.emulator.script(*[json_reply(answer)] * 3)
        status, _, body = await it.post({**ONE, "model": MODELS[0]}, "/v1/decisions")
        assert status >= 400
        refusal(body)


async def test_fields_that_the_decision_model_does_not_know_are_named():
    """OpenAI's own are dropped with a header, others pass."""
    async with world() as it:
        body = {**ONE, "model": MODELS[0], "safety_identifier": "u", "seed": 1}
        _, headers, _ = await it.post(body, "/v1/decisions")
        assert headers["x-qproxy-ignored-params"] == "safety_identifier"
        assert it.emulator.requests[0].body["seed"] == 1
