"""One request for decisions: to a decision model at once, or to a chat model by one small request each.

A decision model takes all questions in one request and generates no text. A chat model reads the state again
for each question, mostly from its prompt cache; the requests are sent in parallel.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from qproxy.accounts import Account
from qproxy.relay.exchange import exchange, read_json, reject_ignored
from qproxy.relay.fan_out import merge_records, run_bounded
from qproxy.relay.relay import Relay
from qproxy.telemetry import RelayRecord, ResponseTokens
from qproxy.transport import UpstreamResponse
from qproxy.wire import json_codec
from qproxy.wire.decisions import Answer, DecisionInput, Question, chat, system_one
from qproxy.wire.decisions.question import parts_of
from qproxy.wire.dialects import UpstreamTarget
from qproxy.wire.dialects.deltas import parse_usage
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON, Usage
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.token_estimate import text_bytes
from qproxy.wire.token_ratios import PromptSize
from qproxy.wire.tool_rounds import add_usage

PARALLEL_QUESTIONS = 8
OPENAI_PARAMS = ("prompt_cache_key", "prompt_cache_options", "safety_identifier")
"""Parameters of OpenAI's that a decision model does not have."""


def is_decision_model(relay: Relay, model: str) -> bool:
    """Return whether a model answers questions without generating text."""
    return relay.policy.catalog.get(relay.names.route(model).served).is_for("decision")


def size_of(relay: Relay, request: DecisionInput) -> PromptSize:
    """Return the size of all prompts: a chat model reads the state with every question."""
    state = images = 0
    for part in parts_of(request.state):
        is_image = isinstance(part, dict) and part.get("type") == "input_image"
        images += is_image
        state += 0 if is_image else _bytes(part)
    times = 1 if is_decision_model(relay, request.model) else len(request.questions)
    return PromptSize(state * times + sum(map(_question_bytes, request.questions)), images * times)


def _bytes(part: JSON) -> int:
    return text_bytes(part) if isinstance(part, str) else len(json_codec.dumps(part))


def _question_bytes(question: Question) -> int:
    options = sum(text_bytes(option.name) + text_bytes(option.description) for option in question.options)
    return text_bytes(question.instructions) + options


async def decide(
    relay: Relay, request: DecisionInput, record: RelayRecord, *, id: str, created: int
) -> tuple[list[Answer], Usage]:
    """Return the answers in the order of the questions, and the tokens used. Raises QproxyError."""
    record.model = request.model
    if is_decision_model(relay, request.model):
        return await _ask_decision_model(relay, request, record)
    return await _ask_chat_model(relay, request, record, id, created)


async def _ask_decision_model(
    relay: Relay, request: DecisionInput, record: RelayRecord
) -> tuple[list[Answer], Usage]:
    ignored = tuple(name for name in OPENAI_PARAMS if name in request.params)
    reject_ignored(relay, record, ignored)
    params = {name: value for name, value in request.params.items() if name not in ignored}
    sent = DecisionInput(request.model, request.state, request.questions, params)

    def build(account: Account, target: UpstreamTarget) -> HTTPRequest:
        return system_one.upstream_request(sent, target)

    async def read(response: UpstreamResponse, account: Account) -> tuple[list[Answer], Usage | None]:
        data = await read_json(response, account)
        usage = data.get("usage")
        counted = parse_usage(usage) if isinstance(usage, dict) else None
        return system_one.parse_response(data, request.questions), counted

    estimate = relay.token_ratios.estimate(relay.names.route(request.model).served, size_of(relay, request))
    async with AsyncExitStack() as stack:
        answers, usage = await exchange(
            relay, record, stack, model=request.model, task="decision", build=build, read=read
        )
    record.responses.append(ResponseTokens(estimate, usage=usage))
    record.usage = usage
    return answers, usage or Usage()


async def _ask_chat_model(
    relay: Relay, request: DecisionInput, record: RelayRecord, id: str, created: int
) -> tuple[list[Answer], Usage]:
    """Return the answers of a model that can be asked for log probabilities."""
    _check_logprobs(relay, request.model)
    for question in request.questions:
        chat.check(question)
    answers: list[Answer] = [Answer(None)] * len(request.questions)
    usage: Usage | None = None

    async def ask(number: int) -> None:
        nonlocal usage
        question, part = request.questions[number], RelayRecord()
        turn = chat.turn(request, question, id=f"{id}-{number}", created=created)
        try:
            async with AsyncExitStack() as stack:
                stream = await relay.open(turn, part, stack)
                answers[number] = chat.answer(question, await stream.read_all())
        finally:
            merge_records(record, part)
        usage = add_usage(usage, part.usage) if usage and part.usage else part.usage or usage

    await run_bounded(ask, len(request.questions), PARALLEL_QUESTIONS)
    record.usage = usage
    return answers, usage or Usage()


def _check_logprobs(relay: Relay, model: str) -> None:
    """Raise RequestError for a model that is known to have no log probabilities of a short answer."""
    served = relay.names.route(model).served
    spec = relay.policy.catalog.get(served)
    on_own_server = any(
        account.provider_family != "dashscope" and account.supports(served)
        for account in relay.accounts.accounts
    )
    if spec.thinking == "only" or (spec.logprobs is False and not on_own_server):
        message = f"The model {model!r} gives no log probabilities of a short answer; use a model that does."
        raise RequestError(message, param="model", code="invalid_value")
