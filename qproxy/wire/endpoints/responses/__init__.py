"""`/v1/responses`: OpenAI's Responses API, in and out, for servers that have none.

    body ─ input_items → items ─ conversation → Turn                events ─ output.ResponseOutput → items and happenings
           content_parts, tools, request                                     encoder.Encoder → bytes; response → object

An *item* is the Responses API's unit of a conversation: a message, a call, a call's output, a thought.  What a client
sends is first made *canonical* (every message typed, every content a list of parts, every item with an id): so it is
stored, listed and sent to the model, and what a stored response says needs no second reader.

    content_parts  content parts: canonical, and as chat's content
    input_items    the items of an input: canonical
    conversation   canonical items as chat messages
    namespaces     tools in groups
    tools          tools and tool_choice
    request        the fields, and the turn that they ask for (`decode`); what of it an answer repeats (`ResponsesRequest`)
    output_items   the kinds of output items while they grow
    output         events as output items, and what happens to them on the way
    objects        the response object, usage, errors, ids, pages of items
    encoder        what happens as server-sent events; the same as a whole response

OpenAPI `CreateResponse`, `InputItem`, `Response`, `ResponseStreamEvent`.
"""

from qproxy.wire.endpoints.responses.encoder import Encoder, response
from qproxy.wire.endpoints.responses.objects import list_page, response_of
from qproxy.wire.endpoints.responses.request import ResponsesRequest, decode, referenced_ids, request_of

__all__ = [
    "Encoder",
    "ResponsesRequest",
    "decode",
    "list_page",
    "referenced_ids",
    "request_of",
    "response",
    "response_of",
]
