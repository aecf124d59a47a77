"""The headers of a request that add to its body: its session, and betas with an equivalent at Qwen's servers.

    x-claude-code-session-id                 the session, where `metadata.user_id` has none
    anthropic-beta: fine-grained-tool-…      `tool_stream`: arguments are streamed as the model writes them

Every other beta is harmless, and so is every version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qproxy.wire.events import Turn

SESSION_HEADER = "x-claude-code-session-id"
STREAMED_ARGUMENTS = "fine-grained-tool-streaming-"
"""The beta's name, without its date."""


def apply_headers(turn: Turn, header: Callable[[str], str | None]) -> Turn:
    """Return the turn with what its request's headers ask for; the body takes precedence."""
    session = turn.session or header(SESSION_HEADER) or ""
    params = turn.params
    if turn.stream and turn.tools and "tool_stream" not in params and _wants_streamed_arguments(header):
        params = {**params, "tool_stream": True}
    unchanged = session == turn.session and params is turn.params
    return turn if unchanged else replace(turn, session=session, params=params)


def _wants_streamed_arguments(header: Callable[[str], str | None]) -> bool:
    betas = (header("anthropic-beta") or "").split(",")
    return any(beta.strip().startswith(STREAMED_ARGUMENTS) for beta in betas)
