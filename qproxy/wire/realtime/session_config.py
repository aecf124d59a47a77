"""The settings of a session between OpenAI's two shapes and Qwen's.

A client sends some of them (`session.update`) in the beta's flat shape or the current nested one;
`to_upstream_session` converts them for Qwen. Qwen reports all of them (`session.created`, `session.updated`);
`to_client_session` converts them back, with the client's names for the model, the voice and the tools.

Settings without a meaning for Qwen are dropped and named (`SessionUpdate.ignored`); unknown ones pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from qproxy.wire import tool_schemas
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON
from qproxy.wire.realtime.audio import RATES
from qproxy.wire.realtime.event_names import PCM, output_modalities

CLIENT_RATE = 24_000
"""Default sample rate of a client's audio."""
OPENAI_VOICES = frozenset(
    (
        "alloy",
        "ash",
        "ballad",
        "coral",
        "echo",
        "fable",
        "nova",
        "onyx",
        "sage",
        "shimmer",
        "verse",
        "marin",
        "cedar",
    )
)
"""Voices that Qwen rejects: without a configured replacement the model's default voice is used."""
SILENCE_MS = (200, 6000)
_ECHOES = frozenset(("id", "object", "type", "model", "expires_at", "client_secret"))
"""Settings that a client may echo without effect."""
_UNSUPPORTED = frozenset(
    (
        "include", "prompt", "reasoning", "tracing", "truncation", "parallel_tool_calls", "speed",
        "noise_reduction",
        "input_audio_noise_reduction",
    )
)  # fmt: skip


@dataclass(slots=True)
class SessionUpdate:
    """A client's changes to its session."""

    transcriber: str
    """The one model that Qwen transcribes a client's speech with."""
    session: dict[str, JSON] = field(default_factory=dict)
    """The settings for Qwen."""
    rate: int | None = None
    """The sample rate of the client's audio, if set."""
    ignored: list[str] = field(default_factory=list)
    tools: list[JSON] | None = None
    """OpenAI's nested shape; None if the update has no tools."""
    tool_choice: JSON = None
    voice: str | None = None
    """The client's name for it."""


def to_upstream_session(session: JSON, voices: Mapping[str, str], transcriber: str) -> SessionUpdate:
    """Convert a client's settings for Qwen; raise RequestError for an unsupported one."""
    if not isinstance(session, dict):
        _rejected("session", "expected an object.")
    if session.get("type") not in (None, "realtime"):
        _rejected("session.type", "this server only supports sessions of type 'realtime'.")
    wanted = SessionUpdate(transcriber)
    _parse_tools(session, wanted)
    for name, value in session.items():
        _parse_session(name, value, f"session.{name}", voices, wanted)
    return wanted


def _parse_session(
    name: str, value: JSON, path: str, voices: Mapping[str, str], wanted: SessionUpdate
) -> None:
    session = wanted.session
    if name in _ECHOES or name in ("tools", "tool_choice"):
        return
    if name in _UNSUPPORTED:
        if value is not None:
            wanted.ignored.append(path)
    elif name == "audio":
        _parse_audio(value, path, voices, wanted)
    elif name in ("modalities", "output_modalities"):
        session["modalities"] = modalities(value, path)
    elif name in ("max_output_tokens", "max_response_output_tokens"):
        if value is not None and value != "inf":
            session["max_tokens"] = value
    elif name == "voice":
        _parse_voice(value, path, voices, wanted)
    elif name in ("input_audio_format", "output_audio_format"):
        if value not in ("pcm16", "pcm", None):
            _rejected(path, "this server only supports pcm16.")
        session[name] = "pcm"
    elif name in ("transcription", "input_audio_transcription"):
        session["input_audio_transcription"] = _transcription(value, path, wanted)
    elif name == "turn_detection":
        session[name] = _turn_detection(value, path, wanted)
    else:
        session[name] = value


def _parse_audio(audio: JSON, path: str, voices: Mapping[str, str], wanted: SessionUpdate) -> None:
    """Parse the current API's nested audio settings."""
    for side in ("input", "output"):
        settings = audio.get(side) if isinstance(audio, dict) else None
        for name, value in (settings if isinstance(settings, dict) else {}).items():
            where = f"{path}.{side}.{name}"
            if name == "format":
                rate = _parse_format(value, where, RATES if side == "input" else (CLIENT_RATE,))
                wanted.session[f"{side}_audio_format"] = "pcm"
                wanted.rate = rate if side == "input" else wanted.rate
            else:
                _parse_session(name, value, where, voices, wanted)


def _parse_format(value: JSON, path: str, rates: tuple[int, ...]) -> int:
    kind = value.get("type", "audio/pcm") if isinstance(value, dict) else value
    rate = (value.get("rate") or CLIENT_RATE) if isinstance(value, dict) else CLIENT_RATE
    if kind not in ("audio/pcm", "pcm16", "pcm", None):
        _rejected(path, "this server only supports audio/pcm.")
    if rate not in rates:
        _rejected(f"{path}.rate", f"expected one of {', '.join(map(str, rates))}.")
    return int(rate)


def modalities(value: JSON, path: str) -> list[str]:
    """Return Qwen's modalities: text alone, or audio with its text."""
    if not isinstance(value, list) or not value or any(kind not in ("text", "audio") for kind in value):
        _rejected(path, 'expected ["text"] or ["audio"].')
    return ["text", "audio"] if "audio" in value else ["text"]


def _parse_voice(value: JSON, path: str, voices: Mapping[str, str], wanted: SessionUpdate) -> None:
    name = value.get("id") if isinstance(value, dict) else value
    if not isinstance(name, str):
        if value is not None:
            _rejected(path, "expected the name of a voice.")
        return
    if name in voices:
        wanted.session["voice"] = voices[name]
    elif name not in OPENAI_VOICES:
        wanted.session["voice"] = name
    else:
        wanted.ignored.append(path)
    wanted.voice = name


def _transcription(value: JSON, path: str, wanted: SessionUpdate) -> JSON:
    if not isinstance(value, dict):
        return None
    if value.get("prompt"):
        wanted.ignored.append(f"{path}.prompt")
    return {
        **{key: kept for key, kept in value.items() if key not in ("model", "prompt")},
        "model": wanted.transcriber,
    }


def _turn_detection(value: JSON, path: str, wanted: SessionUpdate) -> JSON:
    if not isinstance(value, dict):
        return None
    kept = {key: inner for key, inner in value.items() if inner is not None}
    for name in ("eagerness", "idle_timeout_ms"):
        if kept.pop(name, "auto") != "auto":
            wanted.ignored.append(f"{path}.{name}")
    silence = kept.get("silence_duration_ms")
    if isinstance(silence, int | float):
        kept["silence_duration_ms"] = max(SILENCE_MS[0], min(SILENCE_MS[1], int(silence)))
    return kept


def _parse_tools(session: Mapping[str, JSON], wanted: SessionUpdate) -> None:
    choice = session.get("tool_choice")
    if session.get("tools") is not None:
        try:
            declared = tool_schemas.parse_tools({"tools": session["tools"]})
        except RequestError as error:
            error.param = f"session.{error.param}"
            raise
        if declared.server_tools:
            _rejected(f"session.{declared.server_tools[0].path}", "server tools do not run in a session.")
        wanted.tools = declared.tools
        wanted.ignored += [f"session.{path}" for path in declared.ignored]
    if choice is not None:
        wanted.tool_choice = choice
        if choice not in ("auto", "none"):
            wanted.ignored.append("session.tool_choice")


def _rejected(path: str, message: str) -> NoReturn:
    raise RequestError(f"Invalid value for '{path}': {message}", param=path, code="invalid_value")


@dataclass(slots=True)
class SessionSettings:
    """The client's names and settings, for reporting its session."""

    model: str
    is_ga: bool
    """Whether the client uses the current API rather than the beta."""
    transcriber: str = ""
    voice: str | None = None
    rate: int = CLIENT_RATE
    tools: list[JSON] = field(default_factory=list)
    tool_choice: JSON = "auto"

    def callable_tools(self) -> list[JSON]:
        """Return the tools that the model may call: Qwen's sessions have no `tool_choice`."""
        return [] if self.tool_choice == "none" else self.tools


def to_client_session(session: Mapping[str, JSON], message: SessionSettings) -> dict[str, JSON]:
    """Convert Qwen's settings to the client's API."""
    known = dict(session)
    kinds = known.pop("modalities", ["text", "audio"])
    voice = message.voice or known.pop("voice", None)
    limit = known.pop("max_tokens", None) or known.pop("max_response_output_tokens", None) or "inf"
    transcription, detection = known.pop("input_audio_transcription", None), known.pop("turn_detection", None)
    for name in ("input_audio_format", "output_audio_format", "tools", "tool_choice", "voice", "model"):
        known.pop(name, None)
    tools: list[JSON] = [
        {"type": "function", **tool["function"]} for tool in message.tools if "function" in tool
    ]
    ours = {
        **known,
        "object": "realtime.session",
        "model": message.model,
        "tools": tools,
        "tool_choice": message.tool_choice,
    }
    if not message.is_ga:
        return {
            **ours,
            "modalities": kinds,
            "voice": voice,
            "input_audio_format": "pcm16",
            "output_audio_format": "pcm16",
            "input_audio_transcription": transcription,
            "turn_detection": detection,
            "max_response_output_tokens": limit,
        }
    hearing: dict[str, Any] = {
        "format": {**PCM, "rate": message.rate},
        "transcription": transcription,
        "turn_detection": detection,
    }
    return {
        **ours,
        "type": "realtime",
        "output_modalities": output_modalities(kinds),
        "audio": {"input": hearing, "output": {"format": dict(PCM), "voice": voice, "speed": 1.0}},
        "max_output_tokens": limit,
    }
