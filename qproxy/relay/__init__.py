"""Answers in rounds: the model calls this server's tools, reads their results, and goes on.

    rounds     one answer over several rounds, pulled like an answer of one; the tools run between two of them
    memory     the hidden calls of answers that ended with the client's own
    workshop   what a request is equipped with; put together anew by a reload

What of a round the client sees, and what the model is told next, is pure: `wire.rounds`.  A request that gets no tool
of this server's never comes here.
"""

from qproxy.relay.tool_history import ToolRoundCache
from qproxy.relay.tool_loop import ToolLoop
from qproxy.relay.tool_runtime import ToolRuntime

__all__ = ["ToolRoundCache", "ToolLoop", "ToolRuntime"]
