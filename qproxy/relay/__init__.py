"""One request from end to end: the choice of an account, attempts, and the response.

    relay            a turn to an account and back, once the first event of its response is there
    policy           the operator's decisions about it
    chat_attempt     one attempt of a turn with one account; here `wire` meets Trio
    account_probe    small requests to failing accounts, until one succeeds
    retry            where and how often it is attempted
    event_stream     the response, pulled event by event
    multi_prompt     several prompts of one request
    embeddings       batches of texts; `fan_out` runs them in parallel
    realtime         a realtime session between a client and an upstream
    model_directory  which models the accounts offer
    prompt_caching   placement of the breakpoints of prompt caches
    affinity         which conversation a turn belongs to, so that it keeps its account
    tokenizers       tokens of a prompt, counted by an own server

Responses in rounds, where the model calls this server's tools, reads their results, and continues:

    tool_loop        one response over several rounds, pulled like a response of one; the tools run in between
    tool_rounds      the hidden calls of responses that ended with the client's own
    tool_runtime     the tools of a request; rebuilt by a reload

The events of a round for the client, and the next messages for the model, are pure: `wire.tool_rounds`.
"""

from qproxy.relay.tool_loop import ToolLoop
from qproxy.relay.tool_rounds import ToolRoundStore
from qproxy.relay.tool_runtime import ToolRuntime

__all__ = ["ToolLoop", "ToolRoundStore", "ToolRuntime"]
