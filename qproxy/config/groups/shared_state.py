"""The server that several machines share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qproxy.config.setting import setting


@dataclass(frozen=True)
class SharedStateSettings:
    """The server that several machines share."""

    shared_state: str | None = setting(
        None,
        "URL of a Valkey or Redis server (redis://, rediss://, unix://, redis+sentinel://, redis+cluster://) "
        "for what several machines share: API keys, limits, budgets, responses; requires the extra `redis`",
        secret="url",
    )
    shared_state_password_file: str | None = setting(None, "file with the password for shared_state")
    shared_state_key_file: str | None = setting(None, "file with keys, one a line, to encrypt what is shared")
    shared_state_prefix: str = setting("q", "prefix of the keys that this installation has in shared_state")
    shared_state_policy: Literal["share", "closed", "open"] = setting(
        "share", "while shared_state cannot be used: a share of the limits, 503 (closed), no limits (open)"
    )
    shared_state_timeout: float = setting(0.25, "maximum seconds that a request waits for shared_state")
    shared_state_connect_timeout: float = setting(1.0, "maximum seconds without a reply of shared_state")
    shared_state_outbox: str | None = setting(
        None,
        "directory of what shared_state lacks when qproxy ends, for the next start; default shared-state in "
        "the data directory",
    )
    shared_response_max_bytes: int = setting(
        1024 * 1024, "maximum bytes of one response in shared_state, deflated and encrypted"
    )
