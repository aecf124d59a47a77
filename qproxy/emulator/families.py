"""The services of the emulated Qwen beside text, by path: a row answers the requests to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator import (
    decisions,
    embeddings,
    images,
    multimodal_embeddings,
    rerank,
    speech,
    transcription,
)
from qproxy.emulator.faults import ScriptedReply, json_reply
from qproxy.wire.decisions import system_one
from qproxy.wire.dialects import embeddings as text_upstream
from qproxy.wire.dialects import multimodal_embeddings as multimodal_upstream
from qproxy.wire.rerank import upstream as rerank_upstream
from qproxy.wire.speech import upstream as speech_upstream

Respond: TypeAlias = Callable[[Any], ScriptedReply]
"""Given the request (`server.ReceivedRequest`), returns its reply. Raises ApiError."""


def json_service(respond: Callable[[Any], dict[str, Any]]) -> Respond:
    """Return a service that answers a JSON body with another one."""
    return lambda seen: json_reply(respond(seen.body))


SERVICES: dict[str, Respond] = {
    rerank_upstream.COMPATIBLE: json_service(rerank.compatible_response),
    rerank_upstream.NATIVE: json_service(rerank.native_response),
    text_upstream.SERVICE: json_service(embeddings.dashscope_response),
    multimodal_upstream.SERVICE: json_service(multimodal_embeddings.native_response),
    speech_upstream.SYNTHESIZER: speech.synthesizer,
    system_one.PATH: json_service(decisions.system_one),
    "/embeddings": json_service(multimodal_embeddings.compatible_response),
    "/audio/speech": speech.open_speech,
    "/audio/transcriptions": transcription.own_server,
    "/audio/translations": transcription.own_server,
    "/images/generations": images.open_images,
    "/images/edits": images.open_images,
    "/moderations": json_service(decisions.open_moderation),
    "/rerank": json_service(rerank.open_response),
}
"""By path below `/v1` or `/compatible-mode/v1`, or by the whole path."""
RESULTS: dict[str, Respond] = {speech.RESULT_PATH: speech.result, images.RESULT_PATH: images.result}
"""Files that answers link to, by path."""
NATIVE_TASKS: dict[str, Respond] = {
    "image": images.native,
    "speech": speech.qwen_tts,
    "transcription": transcription.generation,
}
"""Services at the path of native generation, by the task of their models."""
CHAT_TASKS: dict[str, Respond] = {"transcription": transcription.chat}
"""Services at the path of chat, by the task of their models."""


def for_task(services: dict[str, Respond], model: Any) -> Respond | None:
    """Return the service for a model's task, None for text."""
    tasks = package_catalog().get(str(model)).tasks or []
    return next((services[task] for task in tasks if task in services), None)
