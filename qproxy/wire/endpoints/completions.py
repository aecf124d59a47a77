"""`POST /v1/completions`: OpenAI's legacy completions, which editors and evaluation programs use.

This module decodes a request into a `Turn` with a `CompletionPrompt`, encodes events as `text_completion`
chunks and folds the same events into a whole response. `dialects.openai` decides how a prompt is sent to a
model.

The result is an ordinary turn, so accounts, rules, streams and errors are those of a chat. The prompt is also
the only user message of the turn, for chat models. `suffix` becomes Qwen-coder's marker tokens in the prompt
in both cases, because servers that support completions accept them there and reject the field. `echo`,
`best_of` and the indices of the choices are implemented here.

OpenAPI `CreateCompletionRequest`, `CreateCompletionResponse`; fill in the middle: the Qwen2.5-Coder report.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from qproxy.wire import json_codec, sse
from qproxy.wire.endpoints import openai_errors, validation
from qproxy.wire.endpoints.chat_completion import usage_object
from qproxy.wire.errors import QproxyError, RequestError
from qproxy.wire.events import (
    JSON,
    ChoiceFinished,
    CompletionPrompt,
    Event,
    RefusalDelta,
    StreamFailed,
    TextDelta,
    Turn,
    Usage,
)
from qproxy.wire.raw_json import RawBody

MAX_PROMPTS = 256
FIELDS = {
    "temperature": validation.number(0, 2),
    "top_p": validation.number(0, 1),
    "presence_penalty": validation.number(-2, 2),
    "frequency_penalty": validation.number(-2, 2),
    "max_tokens": validation.integer(1),
    "n": validation.integer(1, 128),
    "best_of": validation.integer(1, 20),
    "seed": validation.integer(-(2**63)),
    "logprobs": validation.integer(0, 5),
    "echo": validation.boolean,
    "suffix": validation.string,
    "stream": validation.boolean,
    "stream_options": validation.object_,
    "stop": validation.stop_sequences,
    "logit_bias": validation.object_,
    "user": validation.identifier,
}
_NOT_PARAMS = frozenset(
    ("model", "prompt", "suffix", "echo", "n", "best_of", "logprobs", "stream", "stream_options")
)


def decode(
    body: JSON,
    *,
    id: str,
    created: int,
    request_id: str = "",
    default_model: str | None,
    max_messages: int,
) -> Turn:
    """Return the turn of a request body. Raises RequestError naming the invalid field."""
    body = validation.body(body)
    model = validation.require_model(body, default_model)
    fields = validation.check_fields(body, FIELDS)
    if "prompt" not in fields:
        validation.missing("prompt")
    suffix, stream = fields.get("suffix"), fields.get("stream", False)
    shown = _prompts(fields["prompt"], may_be_empty=bool(suffix))
    prompts = tuple(_suffix(prompt, suffix) if suffix else prompt for prompt in shown)
    options = fields.get("stream_options") or {}
    return Turn(
        id=id,
        created=created,
        request_id=request_id,
        model=model,
        messages=[{"role": "user", "content": prompt} for prompt in prompts],
        params=_params(fields),
        stream=stream,
        include_usage=bool(options.get("include_usage")) and stream,
        completion=CompletionPrompt(
            prompts=prompts,
            echo=shown if fields.get("echo") else (),
            choices=fields.get("n", 1),
            logprobs=fields.get("logprobs") is not None,
        ),
        raw_fields=body.raw_fields if isinstance(body, RawBody) else None,
    )


def _prompts(value: JSON, *, may_be_empty: bool) -> tuple[str, ...]:
    """Return the texts of `prompt`, a string or an array of strings."""
    if isinstance(value, str):
        return (_prompt(value, "prompt", may_be_empty),)
    if not isinstance(value, list):
        validation.wrong_type("prompt", "a string or an array of strings", value)
    if not value:
        validation.wrong_value("prompt", "the array is empty; send at least one prompt.")
    if validation.token_ids(value):
        _token_ids()
    if len(value) > MAX_PROMPTS:
        validation.wrong_value(
            "prompt", f"expected at most {MAX_PROMPTS} prompts per request, but got {len(value)}."
        )
    return tuple(_prompt(item, f"prompt[{number}]", may_be_empty) for number, item in enumerate(value))


def _prompt(value: JSON, path: str, may_be_empty: bool) -> str:
    if not validation.string(value, path) and not may_be_empty:
        validation.wrong_value(path, "the prompt is empty.")
    return str(value)


def _token_ids() -> NoReturn:
    raise RequestError(
        "'prompt' holds token ids of a GPT model, which Qwen cannot read: send the text itself. "
        "(Evaluation programs call this tokenized_requests=False.)",
        param="prompt",
        code="unsupported_value",
    )


def _suffix(prefix: str, suffix: str) -> str:
    """Return a fill-in-the-middle prompt with the tokens that Qwen's coder models were trained on."""
    return f"<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>"


def _params(fields: dict[str, JSON]) -> dict[str, JSON]:
    """Return the parameters that are passed on, under chat's names."""
    params = {name: value for name, value in fields.items() if name not in _NOT_PARAMS}
    count, best_of, probabilities = fields.get("n", 1), fields.get("best_of"), fields.get("logprobs")
    if best_of is not None and best_of < count:
        validation.wrong_value("best_of", f"must be at least n ({count}).")
    if best_of is not None and best_of > count:
        if fields.get("stream"):
            validation.wrong_value("best_of", "best_of is not supported in a stream.")
        count, params["logprobs"] = best_of, True
    if probabilities is not None:
        if fields.get("echo"):
            message = "Log probabilities for the prompt are not available: leave out echo or logprobs."
            raise RequestError(message, param="logprobs", code="unsupported_value")
        params |= {"logprobs": True, "top_logprobs": probabilities}
    if "n" in fields or count > 1:
        params["n"] = count
    return params


class Encoder:
    """An encoder from events to server-sent events."""

    content_type = "text/event-stream"

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._offsets: dict[int, int] = {}
        """Characters sent of each started choice."""
        self._usage: Usage | None = None
        self._finished = False

    def feed(self, event: Event) -> list[bytes]:
        """Return the chunks for an event."""
        match event:
            case TextDelta(text, choice, logprobs):
                return [*self._start_choice(choice), self._chunk(choice, text, logprobs=logprobs)]
            case RefusalDelta(text, choice):
                return [*self._start_choice(choice), self._chunk(choice, text)]
            case ChoiceFinished(reason, choice):
                return [*self._start_choice(choice), self._chunk(choice, "", _reason(reason))]
            case Usage():
                self._usage = event
            case StreamFailed(error):
                return [self.error_event(error)]
        return []

    def close(self) -> list[bytes]:
        """Return the usage chunk, if requested, and the end of the stream; nothing after a failure."""
        if self._finished:
            return []
        self._finished = True
        out = []
        if self._turn.include_usage:
            usage = usage_object(self._usage)
            out.append(sse.encode(json_codec.dumps({**_envelope(self._turn), "choices": [], "usage": usage})))
        return [*out, b"data: [DONE]\n\n"]

    def error_event(self, error: QproxyError) -> bytes:
        """Return the frame that reports a failure of a started stream."""
        self._finished = True
        return sse.encode(json_codec.dumps(openai_errors.error_body(error)))

    def _start_choice(self, choice: int) -> list[bytes]:
        """Start a choice: with `echo` it begins with its prompt."""
        if choice in self._offsets:
            return []
        self._offsets[choice] = 0
        shown = _echoed(self._turn, choice)
        return [self._chunk(choice, shown)] if shown else []

    def _chunk(self, choice: int, text: str, reason: str | None = None, logprobs: JSON = None) -> bytes:
        offset = self._offsets[choice]
        self._offsets[choice] += len(text)
        wanted = _completion_prompt(self._turn).logprobs
        body = {
            **_envelope(self._turn),
            "choices": [
                {
                    "text": text,
                    "index": choice,
                    "logprobs": legacy_logprobs(_entries(logprobs), offset) if wanted else None,
                    "finish_reason": reason,
                }
            ],
        }
        if self._turn.include_usage:
            body["usage"] = None
        return sse.encode(json_codec.dumps(body))


def _completion_prompt(turn: Turn) -> CompletionPrompt:
    assert turn.completion is not None
    return turn.completion


def _envelope(turn: Turn) -> dict[str, Any]:
    return {"id": turn.id, "object": "text_completion", "created": turn.created, "model": turn.model}


def _echoed(turn: Turn, choice: int) -> str:
    """Return the text that `echo` puts in front of a choice."""
    prompt = _completion_prompt(turn)
    return prompt.echo[choice // turn.params.get("n", 1)] if prompt.echo else ""


def _reason(reason: str) -> str:
    """Return the finish reason of a completion: `stop` for a model that called a tool that was not
    offered."""
    return "stop" if reason == "tool_calls" else reason


def _entries(logprobs: JSON) -> list[JSON]:
    """Return the tokens of a chat's `logprobs`."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [entry for entry in content if isinstance(entry, dict)] if isinstance(content, list) else []


def legacy_logprobs(entries: list[JSON], offset: int) -> JSON:
    """Return a chat's log probabilities in the older shape; null for none."""
    if not entries:
        return None
    tokens = [str(entry.get("token", "")) for entry in entries]
    starts = [offset + sum(map(len, tokens[:number])) for number in range(len(tokens))]
    tops = [
        {str(one.get("token", "")): _number(one.get("logprob")) for one in entry.get("top_logprobs") or ()}
        for entry in entries
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [_number(entry.get("logprob")) for entry in entries],
        "top_logprobs": tops,
        "text_offset": starts,
    }


def _number(logprob: JSON) -> float:
    """Return a log probability; OpenAI's number for an unlikely token replaces a missing one."""
    return logprob if isinstance(logprob, int | float) else -9999.0


class _Choice:
    """The accumulated events of one choice."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.entries: list[JSON] = []
        self.reason = "stop"

    @property
    def score(self) -> float:
        """Return the mean log probability per token, by which `best_of` chooses; without any, the order
        decides."""
        known = [entry["logprob"] for entry in self.entries if isinstance(entry.get("logprob"), int | float)]
        return sum(known) / len(known) if known else 0.0


def response(turn: Turn, events: Iterable[Event]) -> dict[str, Any]:
    """Return the `text_completion` of some events. Raises the error of a `StreamFailed`."""
    choices: dict[int, _Choice] = {}
    usage: Usage | None = None
    for event in events:
        if isinstance(event, Usage):
            usage = event
        elif isinstance(event, StreamFailed):
            raise event.error
        elif isinstance(event, TextDelta | RefusalDelta):
            choice = choices.setdefault(event.choice, _Choice())
            choice.text.append(event.text)
            choice.entries += _entries(event.logprobs) if isinstance(event, TextDelta) else []
        elif isinstance(event, ChoiceFinished):
            choices.setdefault(event.choice, _Choice()).reason = _reason(event.reason)
    objects = [_object(turn, *chosen) for chosen in _best_choices(turn, choices)]
    return {**_envelope(turn), "choices": objects, "usage": usage_object(usage)}


def _best_choices(turn: Turn, choices: dict[int, _Choice]) -> Iterator[tuple[int, int, _Choice]]:
    """Return (index, original index, choice) of the best choices of each prompt."""
    completion, count = _completion_prompt(turn), turn.params.get("n", 1)
    for prompt in range(len(completion.prompts)):
        own = [number for number in sorted(choices) if number // count == prompt]
        if count > completion.choices:
            own.sort(key=lambda number: -choices[number].score)
        for rank, number in enumerate(own[: completion.choices]):
            yield prompt * completion.choices + rank, number, choices[number]


def _object(turn: Turn, index: int, number: int, choice: _Choice) -> dict[str, Any]:
    return {
        "text": _echoed(turn, number) + "".join(choice.text),
        "index": index,
        "logprobs": legacy_logprobs(choice.entries, 0) if _completion_prompt(turn).logprobs else None,
        "finish_reason": choice.reason,
    }
