"""An emulated Qwen, for people without an account, for tests, and for developing against.

server             `Emulator`: HTTP over any Trio stream
chat               chat responses (pure); `completions` and `embeddings` the same for those
native             the same chat responses in DashScope's native form (pure)
thinking           efforts, summaries, and ciphertext that must come back unchanged (pure)
omni_audio         audio of omni models in a chat: input and output (pure)
prompt_cache       the context cache: prefixes that are written and read
unverified         what the documentation leaves open, each point with a switch
realtime_session   realtime responses (pure)
realtime           a realtime session, and what may go wrong with one
schema_values      arguments that fit a tool's schema (pure)
faults             what it does wrong on demand
identity           its identity server: device flow, page in the browser, rotating refresh tokens
demo               `qproxy demo`: a question with a tool call, the whole way
"""

from qproxy.emulator.faults import (
    FAULTS,
    CloseConnection,
    PauseStep,
    RawBytes,
    RepeatSteps,
    ResetConnection,
    ScriptedReply,
    non_http,
)
from qproxy.emulator.identity import IdentityServer
from qproxy.emulator.server import Emulator, ReceivedRequest

__all__ = [
    "FAULTS",
    "CloseConnection",
    "Emulator",
    "IdentityServer",
    "PauseStep",
    "RawBytes",
    "ReceivedRequest",
    "RepeatSteps",
    "ResetConnection",
    "ScriptedReply",
    "non_http",
]
