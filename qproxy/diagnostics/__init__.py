"""Checks of this machine, the settings and the accounts, with advice for each failure.

report        findings, and the report for people and programs
system        files and their permissions, limits, the port
databases     the databases that several machines share
tools         the sandbox, MCP servers and tools
network       the route to a server: DNS, proxy, TLS, clock
http_probe    a whole HTTP response
probes        the small test requests, and the choice of a model for them
accounts      one account, through the server's relay
conformance   any OpenAI-compatible server, directly, against OpenAI's contract (`wire.conformance`)
run           all checks, concurrently and with a timeout

The checks use the server's own parts (`bootstrap`, `transport`, `relay`), so they see what the server will
see. They write nothing, except a refreshed token of an oauth account. A check never raises: a failure is its
finding.
"""

from qproxy.diagnostics.report import Finding, exit_code, fields, lines
from qproxy.diagnostics.run import check_url, run_checks

__all__ = ["Finding", "check_url", "exit_code", "fields", "lines", "run_checks"]
