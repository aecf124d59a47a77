"""`/v1/responses`: OpenAI's Responses API, in and out, for servers that have none.

    body ─ items.read → items ─ conversation.messages → Turn        events ─ output.Output → items and happenings
           parts, tools, request                                             encoder.Encoder → bytes; whole → object

An *item* is the Responses API's unit of a conversation: a message, a call, a call's output, a thought.  What a client
sends is first made *canonical* (every message typed, every content a list of parts, every item with an id): so it is
stored, listed and sent to the model, and what a stored response says needs no second reader.

    parts         content parts: canonical, and as chat's content
    items         the items of an input: canonical
    conversation  canonical items as chat messages
    namespaces    tools in groups
    tools         tools and tool_choice
    request       the fields, and the turn that they ask for (`decode`); what of it an answer repeats (`Asked`)
    open_items    the kinds of output items while they grow
    output        events as output items, and what happens to them on the way
    objects       the response object, usage, errors, ids, pages of items
    encoder       what happens as server-sent events; the same as a whole response

OpenAPI `CreateResponse`, `InputItem`, `Response`, `ResponseStreamEvent`.
"""

from qproxy.wire.endpoints.responses.encoder import Encoder, response
from qproxy.wire.endpoints.responses.objects import list_page, response_of
from qproxy.wire.endpoints.responses.request import ResponsesRequest, decode, referenced_ids, request_of

__all__ = [
    "ResponsesRequest",
    "Encoder",
    "request_of",
    "decode",
    "list_page",
    "referenced_ids",
    "response_of",
    "response",
]
