"""Pictures of the emulated Qwen: PNG files of one color, of the size that was asked for.

The color follows the text. With Model Studio's refusals: no text, too many pictures either way, a size that
is out of bounds or written with an x, and a text that its filter does not like.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib
from typing import Any
from urllib.parse import urlencode

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator.errors import ApiError
from qproxy.emulator.faults import ScriptedReply, json_reply

RESULT_PATH = "/results/image.png"
DEFAULT_SIZE = "1024*1024"
FORBIDDEN = "forbidden"
"""The word that the emulated content filter refuses."""


def png(text: str, width: int, height: int) -> bytes:
    """A picture in the color of the text."""
    color = struct.pack(">I", zlib.crc32(text.encode("utf-8", "surrogatepass")))[:3]
    rows = (b"\0" + color * width) * height
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows, 1)),
            (b"IEND", b""),
        )
    )


def _refuse(message: str, code: str = "InvalidParameter") -> ApiError:
    return ApiError(400, message, code)


def native(seen: Any) -> ScriptedReply:
    """The answer of the native service."""
    body = seen.body
    limits = package_catalog().get(body["model"]).limits or {}
    (message,) = body["input"]["messages"]
    parameters = body.get("parameters") or {}
    images = [part["image"] for part in message["content"] if "image" in part]
    (text,) = (part["text"] for part in message["content"] if "text" in part)
    n, size = parameters.get("n", 1), parameters.get("size", DEFAULT_SIZE)
    if FORBIDDEN in text:
        raise _refuse("Input data may contain inappropriate content.", "DataInspectionFailed")
    if len(images) > limits.get("inputs", 3):
        raise _refuse("too many input images")
    if type(n) is not int or not 1 <= n <= limits.get("images", 6):
        raise _refuse("n is out of range")
    match = re.fullmatch(r"(\d+)\*(\d+)", size)
    if match is None:
        raise _refuse(f"size {size} must match WIDTH*HEIGHT")
    width, height = map(int, match.groups())
    low, high = limits.get("min_side", 512) ** 2, limits.get("max_side", 2048) ** 2
    if not low <= width * height <= high or not 1 / 8 <= width / height <= 8:
        raise _refuse(f"size {size} is out of range")
    host = seen.headers.get("host", "127.0.0.1")
    links = [
        f"http://{host}{RESULT_PATH}?{urlencode({'text': text, 'w': width, 'h': height, 'n': number})}"
        for number in range(n)
    ]
    choices = [
        {"finish_reason": "stop", "message": {"role": "assistant", "content": [{"image": link}]}}
        for link in links
    ]
    usage = {"image_count": n, "width": width, "height": height}
    return json_reply({"output": {"choices": choices}, "usage": usage, "request_id": "emu-1"})


def result(seen: Any) -> ScriptedReply:
    """The file that an answer links to."""
    query = seen.query
    data = png(query.get("text", ""), int(query.get("w", 16)), int(query.get("h", 16)))
    return ScriptedReply((data,), content_type="image/png")


def open_images(seen: Any) -> ScriptedReply:
    """The answer of an own server: the picture itself."""
    text = str(seen.body.get("prompt") if isinstance(seen.body, dict) else "")
    return json_reply({"created": 1, "data": [{"b64_json": base64.b64encode(png(text, 8, 8)).decode()}]})
