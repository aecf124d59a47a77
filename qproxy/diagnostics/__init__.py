"""The doctor: what is wrong with this machine, these settings and these accounts, and what to do about it.

report        one line of a report, and what a script makes of the whole
system        files and their permissions, limits, the port
tools         the sandbox, MCP servers and tools
network       the way to a server: DNS, proxy, TLS, clock
http_probe    an answer as it came
probes        the few tiny things that are asked, and of which model
accounts      one account, asked as a client of ours would ask it
conformance   any OpenAI-compatible server, asked directly, its answers held to OpenAI's contract (`wire.conformance`)
run           all of it, side by side and within a time limit

The idea: the doctor uses the parts of the server (`bootstrap.build_server`, `transport`, `relay`, `bootstrap.tools`), so what it
sees is what the server will see; it writes nothing, but for a token of a signed-in account that had to be renewed.
A check never raises: what goes wrong is its finding.
"""

from qproxy.diagnostics.report import Finding, exit_code, fields, lines
from qproxy.diagnostics.run import check_url, run_checks

__all__ = ["Finding", "check_url", "exit_code", "fields", "lines", "run_checks"]
