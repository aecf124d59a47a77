"""Stored responses, compaction and realtime sessions."""

from __future__ import annotations

from dataclasses import dataclass

from qproxy.config.setting import setting


@dataclass(frozen=True)
class ResponseSettings:
    """Stored responses and realtime sessions."""

    store_responses: bool = setting(
        True, "store responses, for previous_response_id and GET /v1/responses/{id}"
    )
    responses_file: str | None = setting(
        None, "file of the stored responses; default responses.sqlite3 in the data directory"
    )
    responses_max_age: float = setting(
        30 * 86400.0, "seconds after which an unused stored response is deleted"
    )
    responses_max_bytes: int = setting(
        1024**3, "maximum bytes of stored responses; the least recently used are deleted"
    )
    responses_socket_timeout: float = setting(
        3600.0,
        "maximum seconds for a WebSocket of /v1/responses, after which clients open another one; 0 is no "
        "limit",
    )
    responses_socket_max_bytes: int = setting(
        64 * 1024 * 1024,
        "maximum bytes of the conversations that one WebSocket of /v1/responses keeps in memory to continue "
        "them",
    )
    store_timeout: float = setting(5.0, "maximum seconds to store or load a response")
    max_background_responses: int = setting(
        100, "responses that each worker generates in the background at a time; further ones get a 429"
    )
    compact_on_overflow: bool = setting(
        False,
        "summarize a stored conversation (previous_response_id) that does not fit into the model's context, "
        "instead of a 400; the response then begins with a compaction item",
    )
    compaction_key_file: str | None = setting(
        None,
        "file with keys, one a line, to seal compaction items, created if missing; default compaction.key in "
        "the data directory, or the keys of shared_state_key_file",
    )
    realtime_timeout: float = setting(3600.0, "maximum seconds for a realtime session; 0 is no limit")
    realtime_idle_timeout: float = setting(
        600.0, "maximum seconds of silence from both ends of a realtime session; 0 is no limit"
    )
    realtime_ping_interval: float = setting(
        20.0, "seconds of silence before a realtime peer is pinged; 0 sends no pings"
    )
    realtime_max_message_bytes: int = setting(
        16 * 1024 * 1024, "maximum bytes of a realtime event, in either direction"
    )
    realtime_voices: dict[str, str] = setting(
        {},
        "voice names that clients may use, and Qwen's names for them; OpenAI's own names that are not "
        "listed are omitted",
    )
