"""Model Studio's System One: `POST {compat}/systemone`, of clients and of its decision model.

One body has a state and questions by id: `choice` (one of several), `noul` (yes or no) and `score` (a level).
A question that a client wrote in this form is sent as it is, and its answer returned as it is; so questions
of kinds that are not known pass too. Source: dashscope 2.0.2, `v2/resources/decision.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qproxy.wire import json_codec
from qproxy.wire.decisions.question import (
    MAX_OPTIONS,
    MAX_QUESTIONS,
    PREDICATE,
    Answer,
    DecisionInput,
    Option,
    Question,
)
from qproxy.wire.dialects import UpstreamTarget, dashscope
from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.request_schemas import NAME, object_schema
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import JSON, Usage
from qproxy.wire.http_request import HTTPRequest

PATH = "/systemone"
SCHEMA: JSON = object_schema(
    ["model", "state", "questions"],
    {
        "model": NAME,
        "state": {"type": ["string", "object", "array"]},
        "questions": {"type": "object", "additionalProperties": {"type": "object"}, "minProperties": 1},
    },
)
KINDS = {"noul": "predicate", "choice": "choice", "score": "score"}
_NAMES = {kind: name for name, kind in KINDS.items()}


def decode(body: JSON) -> DecisionInput:
    """Return the validated request. Raises RequestError naming the invalid field."""
    body = validation.body(body)
    model = validation.require_model(body, None)
    fields = validation.check_fields(body, {"questions": validation.string_map})
    for required in ("state", "questions"):
        if required not in fields:
            validation.missing(required)
    if not isinstance(fields["state"], str | dict | list):
        validation.wrong_type("state", "a string, an object or an array", fields["state"])
    if not 1 <= len(fields["questions"]) <= MAX_QUESTIONS:
        validation.wrong_value("questions", f"expected 1 to {MAX_QUESTIONS} questions.")
    known = ("model", "state", "questions")
    return DecisionInput(
        model,
        fields["state"],
        [_question(id, value) for id, value in fields["questions"].items()],
        {name: value for name, value in fields.items() if name not in known},
    )


def _question(id: str, value: JSON) -> Question:
    path = f"questions.{id[:64]}"
    question = validation.check_fields(validation.object_(value, path), {"instructions": validation.string})
    kind = validation.string(question.get("type"), f"{path}.type")
    kind = KINDS.get(kind, kind)
    options = _options(kind, question.get("criteria"), f"{path}.criteria")
    return Question(id, kind, question.get("instructions", ""), options, id, value)


def _options(kind: str, criteria: JSON, path: str) -> tuple[Option, ...]:
    if kind == "predicate":
        texts = validation.string_map(criteria, path) if criteria is not None else {}
        return tuple(Option(one.name, one.value, str(texts.get(one.name) or "")) for one in PREDICATE)
    if kind == "choice":
        names = validation.string_map(criteria, path)
        _check_count(names, 1, path)
        return tuple(Option(name, name, str(text or "")) for name, text in names.items())
    if kind == "score":
        levels = validation.array(criteria, path)
        _check_count(levels, 2, path)
        return tuple(
            Option(str(number), number, validation.string(text, f"{path}[{number}]"))
            for number, text in enumerate(levels)
        )
    return ()


def _check_count(options: Sequence[JSON] | dict[str, JSON], least: int, path: str) -> None:
    if not least <= len(options) <= MAX_OPTIONS:
        validation.wrong_value(path, f"expected {least} to {MAX_OPTIONS} entries, but got {len(options)}.")


def upstream_request(request: DecisionInput, target: UpstreamTarget) -> HTTPRequest:
    """Return the request to a decision model."""
    base = target.base_url
    if target.family == "dashscope":
        base = f"{dashscope.api_root(base)}/compatible-mode/v1"
    body = {
        **request.params,
        "model": target.model,
        "state": request.state,
        "questions": {question.id: _upstream_question(question) for question in request.questions},
    }
    fields = target.with_authorization((b"accept", b"application/json"))
    return HTTPRequest("POST", base + PATH, fields, json_codec.dumps(body))


def _upstream_question(question: Question) -> JSON:
    if question.system_one is not None:
        return question.system_one
    body: dict[str, JSON] = {"type": _NAMES[question.kind], "instructions": question.instructions}
    if question.kind == "choice":
        body["criteria"] = {option.name: option.description for option in question.options}
    elif question.kind == "score":
        body["criteria"] = [
            f"{option.name}: {option.description}" if option.description else option.name
            for option in question.options
        ]
    return body


def parse_response(data: dict[str, JSON], questions: Sequence[Question]) -> list[Answer]:
    """Return the answers in the order of the questions. Raises UpstreamError for one that is missing or has
    no valid probabilities."""
    answers = data.get("answers")
    if not isinstance(answers, dict):
        raise _invalid("no answers")
    return [_parse_answer(question, answers.get(question.id)) for question in questions]


def _parse_answer(question: Question, answer: JSON) -> Answer:
    if not isinstance(answer, dict):
        raise _invalid(f"no answer to {question.id[:64]!r}")
    if question.kind not in _NAMES:
        return Answer(None, system_one=answer)
    given = answer.get("probabilities")
    given = given if isinstance(given, dict) else {}
    if question.kind == "predicate" and "true" not in given:
        yes = _share(answer.get("noul"))
        shares: list[float | None] = [yes, None if yes is None else 1 - yes]
    elif question.kind == "score":
        shares = [_share(given.get(str(number))) for number in range(len(question.options))]
    else:
        shares = [_share(given.get(option.name)) for option in question.options]
    found = tuple(share for share in shares if share is not None)
    if len(found) != len(shares):
        raise _invalid(f"no probability of each option of {question.id[:64]!r}")
    return Answer(found, _share(answer.get("confidence")), answer)


def _share(value: JSON) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value) if 0 <= value <= 1 else None


def _invalid(what: str) -> UpstreamError:
    return UpstreamError(f"The upstream returned {what}.", code="upstream_invalid_response")


def response(request: DecisionInput, answers: Sequence[Answer], usage: Usage, milliseconds: float) -> JSON:
    """Return the body: the answers by the questions' ids."""
    return {
        "model": request.model,
        "answers": {
            question.id: _answer(question, answer)
            for question, answer in zip(request.questions, answers, strict=True)
        },
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
        "latency_ms": round(milliseconds, 1),
    }


def _answer(question: Question, answer: Answer) -> JSON:
    if answer.system_one is not None:
        return answer.system_one
    if answer.probabilities is None:
        return {"type": "refusal"}
    names = [option.name for option in question.options]
    shares = dict(zip(names, answer.probabilities, strict=True))
    if question.kind == "predicate":
        return {"type": "noul", "noul": answer.probabilities[0], "probabilities": shares}
    if question.kind == "choice":
        value: dict[str, JSON] = {"choice": names[answer.best()]}
    else:
        value = {"score": answer.score(), "legend": {one.name: one.description for one in question.options}}
    return {
        "type": question.kind,
        **value,
        "probabilities": shares,
        "confidence": answer.certainty(),
    }
