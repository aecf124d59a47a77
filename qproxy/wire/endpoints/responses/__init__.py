"""`/v1/responses`: OpenAI's Responses API for upstreams that do not implement it.

    request    body → input_items, content_parts, tools, request → items → conversation → Turn
    response   events → output.ResponseOutput → items and their changes → encoder.Encoder → bytes or an object

An *item* is the Responses API's unit of a conversation: a message, a call, a call's output, a reasoning item.
A client's items are first made *canonical* (every message typed, every content a list of parts, every item
with an id): so they are stored, listed and sent to the model, and a stored response needs no second parser.

    content_parts  content parts: canonical, and as chat's content
    input_items    the items of an input: canonical, and the table of their types
    tool_items     calls of tools that OpenAI defines, and their results
    conversation   canonical items as chat messages
    conversations  bodies of requests about conversations, and the conversation object
    namespaces     tools in groups
    tools          tools and tool_choice
    request_changes  items that change the request they stand in
    context        the treatment of a conversation that is too long
    related_requests  requests for a compaction alone, and for a count of tokens
    request        the fields as a turn (`decode`), and those that the response repeats (`ResponsesRequest`)
    output_items   the kinds of output items while they grow
    output         events as output items, and what happens to them on the way
    objects        the response object, usage, errors, ids, pages of items
    frame_log      the frames of a stream, to send them again
    stored_events  the end of a stream that is read from stored events
    encoder        what happens as server-sent events; the same as a whole response
    socket_events  the messages of a WebSocket

OpenAPI `CreateResponse`, `InputItem`, `Response`, `ResponseStreamEvent`.
"""

from qproxy.wire.endpoints.responses.encoder import (
    Encoder,
    compaction_response,
    queued_response,
    response,
)
from qproxy.wire.endpoints.responses.frame_log import FrameLog
from qproxy.wire.endpoints.responses.input_items import include_fields
from qproxy.wire.endpoints.responses.objects import (
    is_active,
    list_page,
    response_of,
    response_root,
    starting_after,
    with_error,
)
from qproxy.wire.endpoints.responses.related_requests import decode_compaction, decode_count
from qproxy.wire.endpoints.responses.request import (
    ResponsesRequest,
    conversation_id,
    decode,
    referenced_ids,
    request_of,
)

__all__ = [
    "Encoder",
    "FrameLog",
    "ResponsesRequest",
    "compaction_response",
    "conversation_id",
    "decode",
    "decode_compaction",
    "decode_count",
    "include_fields",
    "is_active",
    "list_page",
    "queued_response",
    "referenced_ids",
    "request_of",
    "response",
    "response_of",
    "response_root",
    "starting_after",
    "with_error",
]
