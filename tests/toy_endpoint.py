"""An endpoint of a fictional API: all of it is in this module, and `TOY` is its row.

Its requests are `{"ask", "live", "model"}`, its responses lines of text, its errors `{"fault": ...}`; it has
its own headers, its own key header, its own keep-alive and its own end of a stream.
"""

import json

from qproxy.wire.endpoints import Api, Endpoint
from qproxy.wire.errors import RequestError
from qproxy.wire.events import StreamFailed, TextDelta, Turn

PATH = "/toy/answers"
SCHEMA = {"type": "object", "required": ["ask"], "properties": {"ask": {"type": "string"}}}
ERROR_SCHEMA = {"type": "object", "required": ["fault"], "properties": {"fault": {"type": "object"}}}


def error_body(error, request_id):
    """Return a fault with the request's id in it."""
    return {"fault": {"kind": error.code or error.type, "text": error.message, "request": request_id}}


def error_status(error):
    """Return 529 for an overloaded server, as one real API does."""
    return 529 if error.status == 503 else error.status


def retry_headers(error):
    """Return the seconds to wait, with a fraction."""
    return {} if error.retry_after is None else {"toy-wait": f"{error.retry_after:.1f}"}


def rate_limit_headers(limits, wall_clock):
    """Return the remaining units, and the Unix time of the reset."""
    left = {f"toy-left-{limit.unit}": str(limit.remaining) for limit in limits}
    return left | {f"toy-back-{limit.unit}": f"{wall_clock + limit.reset_seconds:.0f}" for limit in limits}


def model_list(models, query):
    """Return the ids."""
    return {"toys": [model.id for model in models]}


def model_object(model):
    """Return the id."""
    return {"toy": model.id}


def decode(body, *, id, created, request_id="", default_model=None, max_messages=0):
    """Return the turn that a body asks for."""
    if not isinstance(body.get("ask"), str):
        raise RequestError("ask what?", param="ask", code="no_ask")
    messages = [{"role": "user", "content": body["ask"]}]
    return Turn(id, created, body["model"], messages, stream=body.get("live", False), request_id=request_id)


class Encoder:
    """Writes `+text` for text, `=end` at the end, `!fault` for a failure."""

    def __init__(self, turn):
        self._turn = turn
        self._failed = False

    def feed(self, event):
        if isinstance(event, StreamFailed):
            return [self.error_event(event.error)]
        return [f"+{event.text}\n".encode()] if isinstance(event, TextDelta) else []

    def close(self):
        return [] if self._failed else [f"=end {self._turn.id[:4]}\n".encode()]

    def error_event(self, error):
        self._failed = True
        return b"!" + json.dumps(error_body(error, self._turn.request_id)).encode() + b"\n"


def response(turn, events):
    """Return the text; raise the error of a failure."""
    for event in events:
        if isinstance(event, StreamFailed):
            raise event.error
    return {"id": turn.id, "said": "".join(event.text for event in events if isinstance(event, TextDelta))}


TOY_API = Api(
    name="Toy",
    error_body=error_body,
    error_schema=ERROR_SCHEMA,
    error_status=error_status,
    retry_headers=retry_headers,
    rate_limit_headers=rate_limit_headers,
    request_id_headers=("toy-request", "x-request-id"),
    processing_ms_header="toy-ms",
    exposed_headers=("toy-request", "toy-ms"),
    api_key_headers=("x-toy-key",),
    keep_alive=b"~\n",
    model_list=model_list,
    model_object=model_object,
    path_prefixes=("/toy",),
    marker_headers=("toy-version",),
)
TOY = Endpoint(
    path=PATH,
    api=TOY_API,
    id_prefix="toy-",
    decode=decode,
    encoder=Encoder,
    response=response,
    schema=SCHEMA,
    operation="toy_talk",
)
