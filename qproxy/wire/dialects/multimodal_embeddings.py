"""Requests for embeddings of contents: to Model Studio's multimodal service in both of its dialects, for the
compatible one has none, and to own servers with the client's own fields.

    qwen3-vl     an element a part; `enable_fusion` makes one vector of a request's elements
    tongyi 2026  an element a vector, whose keys are its parts

Source: Model Studio's page multimodal-embedding-api. The responses are those of embeddings of texts.
"""

from __future__ import annotations

from qproxy.wire import json_codec
from qproxy.wire.dialects import dashscope
from qproxy.wire.dialects.target import UpstreamTarget
from qproxy.wire.events import JSON
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.models import ModelSpec
from qproxy.wire.multimodal_embeddings import Content, MultimodalInput

SERVICE = "/api/v1/services/embeddings/multimodal-embedding/multimodal-embedding"
PARAMETERS = {
    "dimensions": "dimension",
    "dimension": "dimension",
    "instruct": "instruct",
    "fps": "fps",
    "res_level": "res_level",
    "max_video_frames": "max_video_frames",
}
"""Model Studio's names of fields; `output_type` can only be the default."""
_ACCEPT = (b"accept", b"application/json")


def ignored_fields(request: MultimodalInput) -> tuple[str, ...]:
    """Return the fields that Model Studio does not know."""
    return tuple(sorted({*request.params, *request.ignored} - PARAMETERS.keys() - {"output_type"}))


def studio_request(request: MultimodalInput, spec: ModelSpec, target: UpstreamTarget) -> HTTPRequest:
    """Return the request to Model Studio for a batch within the model's limits."""
    parameters: dict[str, JSON] = {} if request.instruction is None else {"instruct": request.instruction}
    for name, value in request.params.items():
        if name in PARAMETERS:
            parameters[PARAMETERS[name]] = value
    if spec.fusion == "object":
        elements = [_fused(content) for content in request.contents]
    else:
        elements = [{part.kind: part.value} for content in request.contents for part in content.parts]
        if len(elements) > len(request.contents):
            parameters["enable_fusion"] = True
    body = {"model": target.model, "input": {"contents": elements}, "parameters": parameters}
    return _post(dashscope.api_root(target.base_url) + SERVICE, body, target)


def _fused(content: Content) -> dict[str, JSON]:
    """Return one element of all parts of a content."""
    element: dict[str, JSON] = {part.kind: part.value for part in content.parts}
    if content.count("text") > 1:
        element["text"] = "\n".join(part.value for part in content.parts if part.kind == "text")
    if content.count("image") > 1:
        del element["image"]
        element["multi_images"] = [part.value for part in content.parts if part.kind == "image"]
    return element


def own_request(request: MultimodalInput, target: UpstreamTarget) -> HTTPRequest:
    """Return the request to an own server, of the client's fields."""
    sources = [content.source for content in request.contents]
    name = "messages" if request.form == "messages" else "input"
    value = sources if request.form == "array" else sources[0]
    body = {**request.params, "model": target.model, name: value, "encoding_format": "float"}
    return _post(f"{target.base_url}/embeddings", body, target)


def _post(url: str, body: JSON, target: UpstreamTarget) -> HTTPRequest:
    return HTTPRequest("POST", url, target.with_authorization(_ACCEPT), json_codec.dumps(body))
