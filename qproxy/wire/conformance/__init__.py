"""OpenAI's contract as a checker: what of it an answer breaks, and what that does to a client.

rules     the contract's rules by name, and a breach of one
events    what every stream of events must obey (the promise of `qproxy.wire`)
chat      answers of `/chat/completions`, streamed and whole, read into events and checked
bodies    lists of models, embeddings and errors

Here: judging.  Not here: mending (`tool_calls`), which accepts whatever can be understood.  A reader of this package takes a
server at its word, as an SDK does.  `qproxy check` asks servers and has their answers judged here; our own tests hold
qproxy to the very same rules.
"""

from qproxy.wire.conformance.events import violations
from qproxy.wire.conformance.rules import RULES, Violation

__all__ = ["RULES", "Violation", "violations"]
