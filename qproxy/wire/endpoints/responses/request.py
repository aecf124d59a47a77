"""`POST /v1/responses`: the request's fields as a `Turn`, and those that the response repeats
(`ResponsesRequest`).

The turn has the whole conversation: the stored items of earlier responses (`before`), then this request's
items. Instructions are this request's own; those of earlier ones are not carried over, as at OpenAI.

Fields that a Qwen model does not support are left out and named. Fields whose omission would change the
meaning are rejected (`prompt`).

OpenAPI `CreateResponse`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from qproxy.wire.endpoints import chat, validation
from qproxy.wire.endpoints.responses import approvals, context, conversation, request_changes, tools
from qproxy.wire.endpoints.responses import input_items as items
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON, Turn

# OpenAI's fields that are passed on under the same name in both APIs.
PASSED_PARAMS = (
    "temperature", "top_p", "parallel_tool_calls", "user", "safety_identifier", "service_tier",
    "prompt_cache_key",
    "presence_penalty", "frequency_penalty", "seed", "stop",
)  # fmt: skip
# Fields that are kept here, or have no effect.
READ_PARAMS = frozenset((
    "model", "input", "instructions", "tools", "tool_choice", "stream", "stream_options", "store", "include",
    "metadata", "previous_response_id", "text", "reasoning", "max_output_tokens", "top_logprobs",
    "background", "background_options", "conversation",
    "truncation", "max_tool_calls", "context_management",
))  # fmt: skip
INCLUDES = frozenset((
    "reasoning.encrypted_content", "message.output_text.logprobs",
    "message.input_image.image_url",  # always there
    # Parts of items that no response has.
    "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "computer_call_output.output.image_url", "code_interpreter_call.outputs",
))  # fmt: skip
"""Values of `include`; others are named."""
FLEX_WINDOWS = ("2h", "8h")
"""Values of `background_options.completion_window` that let a response wait for a lower price."""
REJECTED_PARAMS = {
    "prompt": "Stored prompts are not supported: send instructions and input.",
}


def metadata(value: JSON, path: str) -> JSON:
    pairs = validation.string_map(value, path)
    if len(pairs) > 16:
        validation.wrong_value(path, f"expected at most 16 pairs, but got {len(pairs)}.")
    for key, text in pairs.items():
        if len(key) > 64:
            validation.wrong_value(f"{path}.{key[:64]}", "a key has at most 64 characters.")
        if len(validation.string(text, f"{path}.{key}")) > 512:
            validation.wrong_value(f"{path}.{key}", "a value has at most 512 characters.")
    return value


def _conversation(value: JSON, path: str) -> str:
    """Return the id of a conversation, which may be in an object."""
    if not isinstance(value, dict):
        return validation.identifier(value, path)
    if value.get("id") is None:
        validation.missing(f"{path}.id")
    return validation.identifier(value["id"], f"{path}.id")


def _reasoning(value: JSON, path: str) -> JSON:
    summary = validation.object_(value, path).get("summary")
    if summary is not None:
        validation.one_of(("auto", "concise", "detailed"))(summary, f"{path}.summary")
    return value


def _include(value: JSON, path: str) -> JSON:
    for number, name in enumerate(validation.array(value, path)):
        validation.string(name, f"{path}[{number}]")
    return value


validation.with_schema(_include, type="array", items={"type": "string"})
validation.with_schema(
    metadata, type="object", maxProperties=16, additionalProperties={"type": "string", "maxLength": 512}
)
validation.with_schema(_conversation, type=["string", "object"])
validation.with_schema(_reasoning, type="object")


def _background_options(value: JSON, param: str) -> JSON:
    """Return the options of a response in the background."""
    options = validation.object_(value, param)
    if options.get("completion_window") is not None:
        check = validation.one_of(("soonest", *FLEX_WINDOWS))
        check(options["completion_window"], f"{param}.completion_window")
    return options


validation.with_schema(_background_options, type="object")
FIELDS = {
    "temperature": validation.number(0, 2),
    "top_p": validation.number(0, 1),
    "max_output_tokens": validation.integer(1),
    "max_tool_calls": validation.integer(1),
    "top_logprobs": validation.integer(0, 20),
    "parallel_tool_calls": validation.boolean,
    "stream": validation.boolean,
    "store": validation.boolean,
    "background": validation.boolean,
    "background_options": _background_options,
    "instructions": validation.string,
    "previous_response_id": validation.identifier,
    "conversation": _conversation,
    "include": _include,
    "metadata": metadata,
    "text": validation.object_,
    "reasoning": _reasoning,
    "truncation": validation.one_of(("auto", "disabled")),
    "context_management": context.context_management,
    "stop": validation.stop_sequences,
    "user": validation.identifier,
    "safety_identifier": validation.identifier,
    "prompt_cache_key": validation.identifier,
    "service_tier": validation.identifier,
}


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """The fields of a request beside its turn."""

    echo: dict[str, JSON]
    """The fields of the response object that repeat the request."""
    items: list[JSON]
    """The request's own input, canonical."""
    store: bool
    include_encrypted: bool
    """Whether the client requests reasoning as `encrypted_content` too."""
    include_sources: bool
    """Whether the client requests the results of a web search as its item's `sources`."""
    searches: bool
    """Whether the client requests a web search."""
    logprobs: bool
    namespaces: dict[str, tuple[str, str]]
    """Group and tool name by the name that is offered to the model."""

    streams: bool
    """Whether the client requests the events; those of a response in the background are generated anyway."""
    messages: Sequence[JSON] = ()
    """The client's own messages of the whole conversation, for a compaction alone, which returns them."""

    @property
    def background(self) -> bool:
        """Is true if the response is generated apart from the client's connection."""
        return bool(self.echo["background"])

    @property
    def previous(self) -> str | None:
        """The id of the response that this one continues."""
        previous: str | None = self.echo["previous_response_id"]
        return previous

    @property
    def conversation(self) -> str | None:
        """The id of the conversation that this response continues and extends."""
        return None if self.echo["conversation"] is None else str(self.echo["conversation"]["id"])


def request_of(turn: Turn) -> ResponsesRequest:
    """Return the `ResponsesRequest` that `decode` attached to the turn."""
    assert isinstance(turn.endpoint_state, ResponsesRequest)
    return turn.endpoint_state


def referenced_ids(body: JSON) -> tuple[str | None, list[str]]:
    """Return the id of the response that a request continues, and the ids of the items it references."""
    if not isinstance(body, dict):
        return None, []
    previous = body.get("previous_response_id")
    return previous if items.is_id(previous) else None, items.referenced_ids(body.get("input"))


def conversation_id(body: JSON) -> str | None:
    """Return the id of the conversation that a request continues."""
    value = body.get("conversation") if isinstance(body, dict) else None
    id_ = value.get("id") if isinstance(value, dict) else value
    return id_ if items.is_id(id_) else None


def no_seal(value: str) -> None:
    """Unseal no content: for a server without a key."""


def decode(
    body: JSON,
    *,
    id: str,
    created: int,
    request_id: str = "",
    default_model: str | None,
    max_messages: int,
    qwen_params: Collection[str],
    before: Sequence[JSON] = (),
    known: Mapping[str, JSON] | None = None,
    keeps: bool = False,
    unseal: Callable[[str], str | None] = no_seal,
) -> Turn:
    """Return the turn of a request body. Raises RequestError naming the invalid field.

    `qwen_params` pass, other unknown fields are dropped and named. `before` are the items of the responses
    that it continues, `known` those that it may reference; `keeps` is whether responses are stored; `unseal`
    returns the text of a compaction item, None if this server did not seal it.
    """
    body = validation.body(body)
    model = validation.require_model(body, default_model)
    fields = validation.check_fields(body, FIELDS)
    _reject(fields, keeps)
    if "input" not in fields:
        validation.missing("input")
    own, dropped = items.parse_items(
        fields["input"],
        response=id,
        known=known or {},
        before={item["id"] for item in before},
        unseal=unseal,
    )
    stored_in = "conversation" if "conversation" in fields else "previous_response_id"
    whole = [*before, *own]
    messages, settings = conversation.parse_conversation(
        whole, partial(items.check_sealed, unseal=unseal, path=stored_in)
    )
    fields = request_changes.apply_updates(fields, settings)
    offered = request_changes.parse_all_tools(fields, settings)
    if fields.get("instructions"):
        messages.insert(0, {"role": "system", "content": fields["instructions"]})
    _check_length(messages, max_messages)
    params = _params(fields, qwen_params)
    if offered.web_search is not None:
        params |= tools.search_params(offered, params)
    return Turn(
        id=id,
        created=created,
        request_id=request_id,
        model=model,
        messages=messages,
        tools=offered.declared.tools,
        tool_choice=offered.declared.tool_choice,
        params=params,
        stream=fields.get("stream", False) or fields.get("background", False),
        store=fields.get("store") is not False,
        separates_rounds=True,
        summarize_reasoning=(fields.get("reasoning") or {}).get("summary") is not None,
        server_tools=offered.declared.server_tools,
        approved_calls=approvals.approved_calls(whole, own),
        listed_servers=approvals.listed_servers(whole),
        max_tool_calls=fields.get("max_tool_calls"),
        context=context.context_policy(fields, settings),
        web_search=offered.web_search_request,
        ignored=(*_ignored(fields, qwen_params), *dropped, *offered.ignored),
        endpoint_state=_endpoint_state(fields, offered, own, params, keeps),
    )


def _endpoint_state(
    fields: Mapping[str, JSON],
    offered: tools.ResponsesTools,
    own: list[JSON],
    params: Mapping[str, JSON],
    keeps: bool,
) -> ResponsesRequest:
    """Return what the encoder needs of the request beside its turn."""
    return ResponsesRequest(
        echo=_echo(fields, offered, keeps),
        items=own,
        store=keeps and fields.get("store", True),
        include_encrypted="reasoning.encrypted_content" in fields.get("include", ()),
        include_sources="web_search_call.action.sources" in fields.get("include", ()),
        searches=offered.web_search is not None,
        logprobs="logprobs" in params,
        namespaces=offered.namespaces,
        streams=fields.get("stream", False),
    )


def _reject(fields: Mapping[str, JSON], keeps: bool) -> None:
    for name, message in REJECTED_PARAMS.items():
        if fields.get(name):
            raise RequestError(message, param=name, code="unsupported_parameter")
    if fields.get("background_options", {}).get("completion_window") in FLEX_WINDOWS and not fields.get(
        "background"
    ):
        message = (
            "Invalid value for 'background_options': a completion_window requires 'background' to be true."
        )
        raise RequestError(message, param="background_options", code="invalid_value")
    if fields.get("background") and not keeps:
        message = "This server stores no responses (store_responses), and runs none in the background."
        raise RequestError(message, param="background", code="unsupported_parameter")
    if fields.get("background") and fields.get("store") is False:
        message = "Invalid value for 'background': a response in the background requires 'store' to be true."
        raise RequestError(message, param="background", code="invalid_value")
    if "conversation" in fields and "previous_response_id" in fields:
        message = "Mutually exclusive parameters: send only one of 'previous_response_id' and 'conversation'."
        raise RequestError(message, param="conversation", code="mutually_exclusive_parameters")


def _check_length(messages: Sequence[JSON], limit: int) -> None:
    if not messages:
        message = "Invalid 'input': it contains no message for the model."
        raise RequestError(message, param="input", code="empty_array")
    if len(messages) > limit:
        message = f"Invalid 'input': {len(messages)} messages, the limit is {limit}."
        raise RequestError(message, param="input", code="array_above_max_length")


def _ignored(fields: Mapping[str, JSON], qwen_params: Collection[str]) -> list[str]:
    kept = (READ_PARAMS, PASSED_PARAMS, REJECTED_PARAMS, qwen_params)
    names = [name for name in fields if not any(name in known for known in kept)]
    include = enumerate(fields.get("include", ()))
    return names + [f"include[{number}]" for number, value in include if value not in INCLUDES]


def _params(fields: Mapping[str, JSON], qwen_params: Collection[str]) -> dict[str, JSON]:
    """Return chat's parameters, renamed where chat has another name."""
    params = {name: fields[name] for name in fields if name in PASSED_PARAMS or name in qwen_params}
    if "max_output_tokens" in fields:
        params["max_completion_tokens"] = fields["max_output_tokens"]
    effort = fields.get("reasoning", {}).get("effort")
    if effort is not None:
        params["reasoning_effort"] = validation.one_of(chat.EFFORTS)(effort, "reasoning.effort")
    text = fields.get("text", {})
    if text.get("verbosity") is not None:
        params["verbosity"] = validation.one_of(("low", "medium", "high"))(
            text["verbosity"], "text.verbosity"
        )
    if text.get("format") is not None:
        params |= _response_format(text["format"])
    if fields.get("top_logprobs") or "message.output_text.logprobs" in fields.get("include", ()):
        params["logprobs"] = True
        params["top_logprobs"] = fields.get("top_logprobs", 0)
    window = fields.get("background_options", {}).get("completion_window")
    if window in FLEX_WINDOWS and fields.get("service_tier", "auto") == "auto":
        params["service_tier"] = "flex"
    return params


def _response_format(value: JSON) -> dict[str, JSON]:
    """Return `text.format` as chat's `response_format`, the schema nested."""
    form = validation.object_(value, "text.format")
    kind = validation.one_of(("text", "json_object", "json_schema"))(form.get("type"), "text.format.type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"response_format": {"type": kind}}
    validation.object_(form.get("schema"), "text.format.schema")
    schema = {key: form[key] for key in ("description", "schema", "strict") if form.get(key) is not None}
    name = validation.identifier(form.get("name"), "text.format.name")
    return {"response_format": {"type": kind, "json_schema": {"name": name, **schema}}}


def _echo(fields: Mapping[str, JSON], offered: tools.ResponsesTools, keeps: bool) -> dict[str, JSON]:
    text, reasoning = fields.get("text", {}), fields.get("reasoning", {})
    conversation = fields.get("conversation")
    return {
        "background": fields.get("background", False),
        "conversation": None if conversation is None else {"id": conversation},
        "instructions": fields.get("instructions"),
        "max_output_tokens": fields.get("max_output_tokens"),
        "max_tool_calls": fields.get("max_tool_calls"),
        "metadata": fields.get("metadata", {}),
        "parallel_tool_calls": fields.get("parallel_tool_calls", True),
        "previous_response_id": fields.get("previous_response_id"),
        "prompt_cache_key": fields.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": fields.get("safety_identifier"),
        "service_tier": "default",
        "store": keeps and fields.get("store", True),
        "temperature": fields.get("temperature"),
        "text": {
            "format": text.get("format") or {"type": "text"},
            "verbosity": text.get("verbosity") or "medium",
        },
        "tool_choice": offered.choice_echo,
        "tools": offered.echo,
        "top_logprobs": fields.get("top_logprobs", 0),
        "top_p": fields.get("top_p"),
        "truncation": fields.get("truncation", "disabled"),
        "user": fields.get("user"),
    }
