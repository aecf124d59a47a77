"""`POST /v1/completions`: OpenAI's legacy completions, which editors and evaluation programs use.

Here: the request's fields as a `Turn` with a `CompletionPrompt`; events as `text_completion` chunks; the fold of the same
events as a whole answer.  Not here: which way a prompt goes to a model (`dialects.openai`).

A turn is made, and nothing else, so that accounts, rules, streams and errors are those of a chat.  The prompt is also
the one user message of the turn: that is all a chat model can be given.  `suffix` becomes Qwen-coder's marker words in
the prompt on either way, because the servers that have completions take them there and refuse the field.  `echo`,
`best_of` and the running numbers of the choices are made here.

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
    """The turn that a request body asks for; RequestError names the field that is wrong."""
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
    """The texts of `prompt`: one, or an array of them."""
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
            "prompt", f"at most {MAX_PROMPTS} prompts in one request, but there are {len(value)}."
        )
    return tuple(_prompt(item, f"prompt[{number}]", may_be_empty) for number, item in enumerate(value))


def _prompt(value: JSON, path: str, may_be_empty: bool) -> str:
    if not validation.string(value, path) and not may_be_empty:
        validation.wrong_value(path, "the prompt is empty.")
    return str(value)


def _token_ids() -> NoReturn:
    raise RequestError(
        "'prompt' holds token ids of a GPT model, which mean nothing to Qwen: send the text itself. "
        "(Evaluation programs call this tokenized_requests=False.)",
        param="prompt",
        code="unsupported_value",
    )


def _suffix(prefix: str, suffix: str) -> str:
    """Fill in the middle, in the words that Qwen's coder models were trained on."""
    return f"<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>"


def _params(fields: dict[str, JSON]) -> dict[str, JSON]:
    """What is passed on, in a chat's words."""
    params = {name: value for name, value in fields.items() if name not in _NOT_PARAMS}
    count, best_of, probabilities = fields.get("n", 1), fields.get("best_of"), fields.get("logprobs")
    if best_of is not None and best_of < count:
        validation.wrong_value("best_of", f"it must be at least n, which is {count}.")
    if best_of is not None and best_of > count:
        if fields.get("stream"):
            validation.wrong_value("best_of", "what is streamed cannot be chosen afterwards.")
        count, params["logprobs"] = best_of, True
    if probabilities is not None:
        if fields.get("echo"):
            message = "The probabilities of the prompt itself are not to be had: leave out echo or logprobs."
            raise RequestError(message, param="logprobs", code="unsupported_value")
        params |= {"logprobs": True, "top_logprobs": probabilities}
    if "n" in fields or count > 1:
        params["n"] = count
    return params


class Encoder:
    """Events in, server-sent events out."""

    content_type = "text/event-stream"

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._offsets: dict[int, int] = {}
        """Of each choice that has begun, the characters said."""
        self._usage: Usage | None = None
        self._finished = False

    def feed(self, event: Event) -> list[bytes]:
        """The chunks that say `event`."""
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
        """The usage chunk when it was asked for, and the end; nothing after a failure."""
        if self._finished:
            return []
        self._finished = True
        out = []
        if self._turn.include_usage:
            usage = usage_object(self._usage or Usage())
            out.append(sse.encode(json_codec.dumps({**_envelope(self._turn), "choices": [], "usage": usage})))
        return [*out, b"data: [DONE]\n\n"]

    def error_event(self, error: QproxyError) -> bytes:
        """The one frame that says that a stream which has begun cannot go on."""
        self._finished = True
        return sse.encode(json_codec.dumps(openai_errors.error_body(error)))

    def _start_choice(self, choice: int) -> list[bytes]:
        """With `echo` a choice begins with its prompt."""
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
    """What `echo` puts in front of a choice."""
    prompt = _completion_prompt(turn)
    return prompt.echo[choice // turn.params.get("n", 1)] if prompt.echo else ""


def _reason(reason: str) -> str:
    """A model that calls a tool although it was offered none has stopped, in the words of completions."""
    return "stop" if reason == "tool_calls" else reason


def _entries(logprobs: JSON) -> list[JSON]:
    """The tokens of a chat's `logprobs`."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [entry for entry in content if isinstance(entry, dict)] if isinstance(content, list) else []


def legacy_logprobs(entries: list[JSON], offset: int) -> JSON:
    """A chat's probabilities in the older shape; null for none."""
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
    """OpenAI's number for a token that is not among the likely ones stands in for none."""
    return logprob if isinstance(logprob, int | float) else -9999.0


class _Choice:
    """What the events of one choice add up to."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.entries: list[JSON] = []
        self.reason = "stop"

    @property
    def score(self) -> float:
        """The mean log probability of a token, by which `best_of` chooses; without any, order decides."""
        known = [entry["logprob"] for entry in self.entries if isinstance(entry.get("logprob"), int | float)]
        return sum(known) / len(known) if known else 0.0


def response(turn: Turn, events: Iterable[Event]) -> dict[str, Any]:
    """The `text_completion` that the events add up to; raises the error of a `StreamFailed`."""
    choices: dict[int, _Choice] = {}
    usage = Usage()
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
    """(our number, its own number, choice): of each prompt's choices the best ones."""
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
