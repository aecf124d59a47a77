"""OpenAI's `POST /v1/decisions`: predicates, choices and scores, in order.

Items of the input become messages, as the Responses API has them. Source: openai-python 3.57.
"""

from __future__ import annotations

from collections.abc import Sequence

from qproxy.wire.decisions.question import (
    MAX_OPTIONS,
    MAX_QUESTIONS,
    PREDICATE,
    Answer,
    DecisionInput,
    Option,
    Question,
)
from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.request_schemas import NAME, object_schema
from qproxy.wire.events import JSON, Usage

FIELDS = {
    "prompt_cache_key": validation.string,
    "prompt_cache_options": validation.object_,
    "safety_identifier": validation.string,
}
SCHEMA: JSON = object_schema(
    ["model", "input", "questions"],
    {
        "model": NAME,
        "input": {"type": ["string", "array"], "items": {"type": "object"}},
        "questions": {"type": "array", "items": {"type": "object"}, "minItems": 1, "maxItems": MAX_QUESTIONS},
    },
    validation.properties(FIELDS),
)
TYPES = ("predicate", "choice", "score")
_OUTPUTS = ("function_call_output", "custom_tool_call_output")
_CALLS = ("function_call", "custom_tool_call")


def decode(body: JSON) -> DecisionInput:
    """Return the validated request. Raises RequestError naming the invalid field."""
    body = validation.body(body)
    model = validation.require_model(body, None)
    fields = validation.check_fields(body, FIELDS)
    for required in ("input", "questions"):
        if required not in fields:
            validation.missing(required)
    questions = validation.array(fields["questions"], "questions")
    if not 1 <= len(questions) <= MAX_QUESTIONS:
        validation.wrong_value("questions", f"expected 1 to {MAX_QUESTIONS} questions.")
    known = ("model", "input", "questions")
    return DecisionInput(
        model,
        _state(fields["input"]),
        [_question(item, number) for number, item in enumerate(questions)],
        {name: value for name, value in fields.items() if name not in known},
    )


def _state(value: JSON) -> JSON:
    if isinstance(value, str):
        return value
    items = validation.array(value, "input")
    return [_item(validation.object_(item, f"input[{n}]"), f"input[{n}]") for n, item in enumerate(items)]


def _item(item: dict[str, JSON], path: str) -> JSON:
    """Return an item of the input as a message; calls and their outputs too."""
    kind = item.get("type", "message")
    if kind == "message":
        role = validation.one_of(("user", "developer", "system", "assistant"))(
            item.get("role"), f"{path}.role"
        )
        return {"role": role, "content": _content(item.get("content"), f"{path}.content")}
    if kind in _CALLS:
        name = validation.string(item.get("name"), f"{path}.name")
        text = validation.string(item.get("arguments", item.get("input")), f"{path}.arguments")
        return {"role": "assistant", "content": f"[call of {name}] {text}"}
    if kind in _OUTPUTS:
        return {"role": "tool", "content": _content(item.get("output"), f"{path}.output")}
    return validation.wrong_value(f"{path}.type", f"{str(kind)[:80]!r} is not a known item type.")


def _content(value: JSON, path: str) -> JSON:
    """Return a text, or content parts where some are images."""
    if isinstance(value, str):
        return value
    parts = [
        _part(validation.object_(part, f"{path}[{n}]"), f"{path}[{n}]")
        for n, part in enumerate(validation.array(value, path))
    ]
    if all(isinstance(part, str) for part in parts):
        return "\n".join(parts)
    return [{"type": "input_text", "text": part} if isinstance(part, str) else part for part in parts]


def _part(part: dict[str, JSON], path: str) -> JSON:
    kind = part.get("type")
    if kind == "input_image":
        return {
            "type": kind,
            "image_url": validation.string(part.get("image_url"), f"{path}.image_url"),
            **({"detail": part["detail"]} if part.get("detail") else {}),
        }
    text = part.get("refusal") if kind == "refusal" else part.get("text")
    return validation.string(text, f"{path}.text")


def _question(value: JSON, number: int) -> Question:
    path = f"questions[{number}]"
    question = validation.check_fields(validation.object_(value, path), {})
    kind = validation.one_of(TYPES)(question.get("type"), f"{path}.type")
    instructions = _content(question.get("instructions"), f"{path}.instructions")
    if not isinstance(instructions, str):
        validation.wrong_value(f"{path}.instructions", "images are not supported here; put them into input.")
    name = question.get("name")
    return Question(
        f"q{number}",
        kind,
        instructions,
        _options(kind, question, path),
        None if name is None else validation.identifier(name, f"{path}.name"),
    )


def _options(kind: str, question: dict[str, JSON], path: str) -> tuple[Option, ...]:
    if kind == "predicate":
        return PREDICATE
    field, least = ("choices", 1) if kind == "choice" else ("levels", 2)
    path = f"{path}.{field}"
    items = validation.array(question.get(field), path)
    if not least <= len(items) <= MAX_OPTIONS:
        validation.wrong_value(path, f"expected {least} to {MAX_OPTIONS} entries, but got {len(items)}.")
    taken: set[str] = set()
    options = []
    for number, item in enumerate(items):
        item, place = validation.object_(item, f"{path}[{number}]"), f"{path}[{number}]"
        if kind == "score":
            name = validation.string(item.get("label"), f"{place}.label")
            value: JSON = number
        else:
            value = item.get("value")
            if not isinstance(value, str | bool):
                validation.wrong_type(f"{place}.value", "a string or a boolean", value)
            name = value if isinstance(value, str) else str(value).lower()
        while name in taken:  # True and "true" are two choices, and levels may share a label
            name += "'"
        taken.add(name)
        text = validation.string(item.get("description") or "", f"{place}.description")
        options.append(Option(name, value, text))
    return tuple(options)


def response(request: DecisionInput, answers: Sequence[Answer], usage: Usage) -> JSON:
    """Return the body: the answers in the order of the questions."""
    return {
        "model": request.model,
        "answers": [
            _answer(question, answer) for question, answer in zip(request.questions, answers, strict=True)
        ],
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cache_write_tokens": sum(usage.cache_writes),
                "cached_tokens": usage.cached_tokens,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.total_tokens,
        },
    }


def _answer(question: Question, answer: Answer) -> JSON:
    named = {"name": question.name}
    if answer.probabilities is None:
        return {"type": "refusal", **named}
    if question.kind == "predicate":
        return {"type": "predicate", "probability": answer.probabilities[0], **named}
    rows = zip(question.options, answer.probabilities, strict=True)
    if question.kind == "choice":
        return {
            "type": "choice",
            "choice": question.options[answer.best()].value,
            "confidence": answer.certainty(),
            "probabilities": [{"value": option.value, "probability": share} for option, share in rows],
            **named,
        }
    return {
        "type": "score",
        "score": answer.score(),
        "confidence": answer.certainty(),
        "probabilities": [
            {"label": option.name.rstrip("'"), "value": option.value, "probability": share}
            for option, share in rows
        ],
        **named,
    }
