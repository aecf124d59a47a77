"""Pictures at Model Studio and at own servers.

    Model Studio   `POST /api/v1/services/aigc/multimodal-generation/generation`: one message of pictures and
                   a text; the response links to PNG files
    own servers    `POST {base}/images/generations` and `/images/edits`, OpenAI's own

Source: Model Studio's qwen-image pages.
"""

from __future__ import annotations

from collections.abc import Mapping

from qproxy.wire import json_codec
from qproxy.wire.dialects import UpstreamTarget, dashscope
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import JSON
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.images.request import ImageInput

SERVICE = "/api/v1/services/aigc/multimodal-generation/generation"
_ACCEPT = (b"accept", b"application/json")
FAST, CAREFUL = frozenset(("low",)), frozenset(("high", "xhigh", "max", "hd"))


def studio_request(
    request: ImageInput, n: int, size: tuple[int, int] | None, target: UpstreamTarget
) -> HTTPRequest:
    """Return the request for `n` pictures."""
    content: list[JSON] = [{"image": image} for image in request.images]
    content.append({"text": request.prompt})
    parameters: dict[str, JSON] = {"n": n, **_quality(request, target), **request.params}
    if size is not None:
        parameters["size"] = f"{size[0]}*{size[1]}"
    body = {
        "model": target.model,
        "input": {"messages": [{"role": "user", "content": content}]},
        "parameters": parameters,
    }
    url = dashscope.api_root(target.base_url) + SERVICE
    return HTTPRequest("POST", url, target.with_authorization(_ACCEPT), json_codec.dumps(body))


def _quality(request: ImageInput, target: UpstreamTarget) -> dict[str, JSON]:
    """Return what a quality is in Model Studio's words: whether the prompt is extended, and thought over."""
    thinks = "3." in target.model
    if request.quality in FAST:
        return {"prompt_extend": False, **({"enable_thinking": False} if thinks else {})}
    if request.quality in CAREFUL:
        return {"prompt_extend": True, **({"enable_thinking": True} if thinks else {})}
    return {}


def open_request(body: Mapping[str, JSON], target: UpstreamTarget) -> HTTPRequest:
    """Return the request of a text to an own server."""
    data = json_codec.dumps({**body, "model": target.model})
    return HTTPRequest(
        "POST", f"{target.base_url}/images/generations", target.with_authorization(_ACCEPT), data
    )


def parse_links(data: dict[str, JSON]) -> list[str]:
    """Return the links to the pictures of a response. Raises UpstreamError without any."""
    output = data.get("output")
    choices = output.get("choices") if isinstance(output, dict) else None
    links = [link for choice in choices for link in _links(choice)] if isinstance(choices, list) else []
    if not links:
        raise UpstreamError("The upstream returned no picture.", code="upstream_invalid_response")
    return links


def _links(choice: JSON) -> list[str]:
    message = choice.get("message") if isinstance(choice, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else []
    return [part["image"] for part in parts if isinstance(part, dict) and isinstance(part.get("image"), str)]
