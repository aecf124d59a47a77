"""The doctor: what is wrong with this machine, these settings and these accounts, and what to do about it.

findings    one line of a report, and what a script makes of the whole
machine     files and their permissions, limits, the port
workshop    the sandbox, MCP servers and tools
way         the way to a server: DNS, proxy, TLS, clock
replies     an answer as it came
questions   the few tiny things that are asked, and of which model
accounts    one account, asked as a client of ours would ask it
probing     any OpenAI-compatible server, asked directly, its answers held to OpenAI's contract (`wire.contract`)
examining   all of it, side by side and within a time limit

The idea: the doctor uses the parts of the server (`serving.assemble`, `transport`, `relay`, `toolmaking`), so what it
sees is what the server will see; it writes nothing, but for a token of a signed-in account that had to be renewed.
A check never raises: what goes wrong is its finding.
"""

from qproxy.diagnostics.report import Finding, exit_code, fields, lines
from qproxy.diagnostics.run import check_url, run_checks

__all__ = ["Finding", "run_checks", "exit_code", "fields", "lines", "check_url"]
