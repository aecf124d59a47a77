"""From a `Config` to a running server; the only package that knows both the settings and the parts.

app        build_server, create_app, serve
state      all parts, wired together, as one `ServerState`
reload     the state for other settings, with the parts that a reload keeps
limits     groups of settings as the records that the parts take
accounts   accounts from their tables, and their credential sources from `auth`
auth       credential sources with a login
transport  connections to upstreams: limits, proxy, certificates
tools      the tools that the server runs, with their sandbox policies
telemetry  usage ledger, prices, traces, body log
"""
