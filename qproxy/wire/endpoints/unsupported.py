"""Paths of OpenAI's API that this server does not serve, and what serves their purpose here.

Source: the resources of openai 3.57 (Python). A path that is in no row and no route is unknown.
"""

from __future__ import annotations

from qproxy.wire.errors import RequestError

UNSUPPORTED = {
    "/agents": "Agents run in your program: openai-agents works with /v1/responses and /v1/conversations.",
    "/assistants": "OpenAI has replaced it: use /v1/responses with /v1/conversations.",
    "/audio/voice_consents": "Model Studio clones voices with its own console and SDK.",
    "/audio/voices": "Model Studio clones voices with its own console; /v1/audio/speech takes their ids.",
    "/chatkit": "It is a service of OpenAI's own: use /v1/responses.",
    "/containers": "Code runs in your program, or in the server's own tools (`qproxy help tools`).",
    "/content_provenance_checks": "Qwen has no such service.",
    "/evals": "Evaluate with a program of your own, on /v1/chat/completions and /v1/batches.",
    "/fine_tuning": "Model Studio tunes models with its own console; /v1/models lists them afterwards.",
    "/graders": "Grade with /v1/decisions or /v1/chat/completions.",
    "/live": "Realtime sessions are served at /v1/realtime.",
    "/organization": "Keys, usage and limits are those of `qproxy keys`, `qproxy usage` and /dashboard.",
    "/projects": "Keys, usage and limits are those of `qproxy keys`, `qproxy usage` and /dashboard.",
    "/realtime/calls": "Calls over SIP and WebRTC are not served: use a WebSocket at /v1/realtime.",
    "/realtime/sessions": "OpenAI has replaced it: use /v1/realtime/client_secrets.",
    "/realtime/transcription_sessions": "OpenAI has replaced it: use /v1/realtime/client_secrets.",
    "/realtime/translations": "Translate with /v1/realtime or /v1/audio/translations.",
    "/safety": "It is a service of OpenAI's own.",
    "/skills": "The tools of the server are described by `qproxy help tools`.",
    "/threads": "OpenAI has replaced it: use /v1/responses with /v1/conversations.",
    "/vaults": "It is a service of OpenAI's own.",
    "/vector_stores": "Search in your program, with /v1/embeddings and /v1/rerank.",
    "/videos": "Qwen's and Wan's videos are tasks of Model Studio's own API.",
    "/webhook_endpoints": "Poll the response or batch instead.",
    "/webhook_event_types": "Poll the response or batch instead.",
}
"""By path below `/v1`, with everything below it."""


def unsupported_endpoint(method: str, path: str) -> RequestError | None:
    """Return the error for a path of OpenAI's API that is not served; None for an unknown path."""
    below = path.removeprefix("/v1").rstrip("/")
    for served_by, reason in UNSUPPORTED.items():
        if below == served_by or below.startswith(f"{served_by}/"):
            message = f"{method} {path} is not served. {reason}"
            return RequestError(message, status=404, code="unsupported_endpoint")
    return None
