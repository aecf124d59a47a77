"""One request from end to end: which account is asked, how often, and what becomes of the answer.

    relay            a turn to an account and back, once the first event of its response is there
    policy           the operator's decisions about it
    chat_attempt     what one turn does with one account; here `wire` meets Trio
    retry            where and how often it is attempted
    event_stream     the answer, pulled event by event
    multi_prompt     several prompts of one request
    embeddings       batches of texts; `fan_out` runs such things side by side
    realtime         a realtime session between a client and an upstream
    model_directory  which models the accounts offer

Answers in rounds, where the model calls this server's tools, reads their results, and goes on:

    tool_loop        one answer over several rounds, pulled like an answer of one; the tools run between two of them
    tool_rounds      the hidden calls of answers that ended with the client's own
    tool_runtime     what a request is equipped with; put together anew by a reload

What of a round the client sees, and what the model is told next, is pure: `wire.tool_rounds`.
"""

from qproxy.relay.tool_loop import ToolLoop
from qproxy.relay.tool_rounds import ToolRoundStore
from qproxy.relay.tool_runtime import ToolRuntime

__all__ = ["ToolLoop", "ToolRoundStore", "ToolRuntime"]
