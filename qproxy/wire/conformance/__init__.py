"""A checker of OpenAI's contract and of Anthropic's: the rules that a response breaks, and the cost for a
client.

rules     the rules of the contract by name, and a violation of one
events    the rules for every stream of events (the contract in `qproxy.wire`)
chat      responses of `/chat/completions`, streamed and whole, read into events and checked
bodies    lists of models, embeddings and errors
anthropic answers of `/messages`, streamed and whole, added up and checked by rules of their own

This package judges and repairs nothing (`tool_calls` does): it reads a response literally, as an SDK does.
`qproxy check` has the responses of servers checked here; qproxy's own tests hold qproxy to the same rules.
"""

from qproxy.wire.conformance.events import violations
from qproxy.wire.conformance.rules import RULES, Violation

__all__ = ["RULES", "Violation", "violations"]
