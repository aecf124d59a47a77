"""The routes that make pictures: of a text, of pictures and a text, and variations.

The pictures of an own server are passed on; those of Model Studio are links, or are downloaded.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Iterator
from functools import partial

from qproxy.relay.exchange import PassedResponse, is_only_on_own_servers
from qproxy.relay.images import make_images, open_own_images
from qproxy.server import request_context
from qproxy.server.form_data import FormData, UploadedFile, read_form
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.in_flight import InFlightRequest
from qproxy.server.request_body import read_json
from qproxy.server.sound_body import SoundBody
from qproxy.server.state import Route, ServerState, StateHolder
from qproxy.server.usage_limits import reserve_usage
from qproxy.transport import UpstreamResponse
from qproxy.wire import images, json_codec
from qproxy.wire.endpoints import OPENAI, validation
from qproxy.wire.errors import RequestError
from qproxy.wire.form_data import boundary_of
from qproxy.wire.images.request import VARIATION_PROMPT, ImageInput
from qproxy.wire.token_estimate import text_bytes
from qproxy.wire.token_ratios import PromptSize

MAX_INPUT = 10 * 1024 * 1024
"""Bytes of a picture that Model Studio takes."""
STREAM_TYPE = "text/event-stream; charset=utf-8"


class ImageRoutes:
    """Make pictures."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        route = partial(Route, methods=("POST",), api=OPENAI, operation="image_generation", fast_path=True)
        yield route("/images/generations", view=self._generate, schema=images.GENERATION_SCHEMA, streams=True)
        edit = partial(self._edit, "/images/edits")
        yield route("/images/edits", view=edit, schema=images.EDIT_SCHEMA, streams=True)
        vary = partial(self._edit, "/images/variations")
        yield route("/images/variations", view=vary, schema=images.VARIATION_SCHEMA)

    async def _generate(self) -> HTTPResponse:
        state, in_flight = self._begin()
        with in_flight.deadline_scope():
            body = await read_json(state.request_limits, state.body_logger)
            model = validation.require_model(validation.body(body), None)
            if is_only_on_own_servers(state.relay, model, "image"):
                prompt = body.get("prompt")
                await _reserve(state, model, prompt if isinstance(prompt, str) else "")
                record, stack = request_context.record().relay, request_context.stack()
                fields = {name: value for name, value in body.items() if value is not None}
                response = await open_own_images(state.relay, record, stack, model=model, body=fields)
                return _pass_on(response, in_flight)
            return await _studio_images(state, images.decode_generation(body))

    async def _edit(self, path: str) -> HTTPResponse:
        state, in_flight = self._begin()
        with in_flight.deadline_scope():
            form = await read_form(state.request_limits)
            model = form.text("model") or ""
            if model and is_only_on_own_servers(state.relay, model, "image"):
                await _reserve(state, model, form.text("prompt") or "")
                record, stack = request_context.record(), request_context.stack()
                response = await open_own_images(
                    state.relay,
                    record.relay,
                    stack,
                    model=model,
                    form=form.parts(),
                    path=path,
                    boundary=boundary_of(record.id),
                )
                return _pass_on(response, in_flight)
            return await _studio_images(state, await _decode_form(form, path))

    def _begin(self) -> tuple[ServerState, InFlightRequest]:
        state = self._server.state
        limits = state.request_limits
        in_flight = state.in_flight.add(
            request_context.stack(), limits.client_request_timeout, "client_request_timeout"
        )
        return state, in_flight


async def _reserve(state: ServerState, model: str, prompt: str) -> None:
    await reserve_usage(state, model, PromptSize(text_bytes(prompt)))
    request_context.stack().callback(await state.concurrency.acquire())


async def _decode_form(form: FormData, path: str) -> ImageInput:
    if form.uploads("mask"):
        message = "Unsupported value for 'mask': describe in the prompt what is to be changed."
        raise RequestError(message, param="mask", code="unsupported_value")
    values = {name: value for name, value in form.fields if name not in ("model", "image", "image[]")}
    pictures = [await _data_uri(file) for file in form.uploads("image")]
    prompt = VARIATION_PROMPT if path.endswith("variations") else None
    return images.decode_form(form.text("model"), values, pictures, prompt=prompt)


async def _data_uri(file: UploadedFile) -> str:
    if file.length > MAX_INPUT:
        message = f"Invalid value for 'image': expected at most {MAX_INPUT:,} bytes, but got {file.length:,}."
        raise RequestError(message, status=413, param="image", code="request_too_large")
    kind = file.content_type or "image/png"
    return f"data:{kind};base64,{b64encode(await file.read()).decode()}"


async def _studio_images(state: ServerState, request: ImageInput) -> HTTPResponse:
    """Return the pictures of a model of Model Studio."""
    record = request_context.record()
    await _reserve(state, request.model, request.prompt)
    made = await make_images(state.relay, request, record.relay)
    record.first_byte = record.response_started = record.seconds
    created = int(time.time())
    if not request.stream:
        return json_response(images.response(request, made, created))
    events = [images.event(request, made, number, created) for number in range(len(made.files))]
    body = b"".join(_frame(str(item["type"]), json_codec.dumps(item)) for item in events)
    return HTTPResponse(body, content_type=STREAM_TYPE, headers={"cache-control": "no-cache"})


def _frame(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def _pass_on(response: UpstreamResponse, in_flight: InFlightRequest) -> HTTPResponse:
    """Return an own server's response as it is."""
    record, passed = request_context.record(), PassedResponse(response)
    record.first_byte = record.seconds
    body = SoundBody(passed, record, in_flight, request_context.nursery(), b"")
    return HTTPResponse(body, content_type=passed.content_type)
