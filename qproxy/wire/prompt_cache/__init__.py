"""The choice of what a model's server keeps of a prompt, and for how long.

    prefixes   the prefixes of a request, each as a digest: no text is kept
    reuse      which prefixes come again, and how soon; what the implicit cache has read
    planner    what to mark, by that and by the prices: nothing, the beginning, or the whole prompt
    markers    breakpoints in messages: those of clients, and those that are planned

A server's implicit cache costs nothing and promises nothing. An explicit breakpoint costs more than the
tokens themselves when it is written and a fraction of them when it is read, so it pays only for prefixes that
come again within its life.
"""

from qproxy.wire.prompt_cache.planner import CachePlan, CachePlanner, CachePrices, Prospect, choose
from qproxy.wire.prompt_cache.prefixes import Prefixes, read_prefixes

__all__ = ["CachePlan", "CachePlanner", "CachePrices", "Prefixes", "Prospect", "choose", "read_prefixes"]
