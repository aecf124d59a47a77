"""Members for the processes of several machines, in a Valkey or Redis server (extra `redis`).

    address        the server's URL
    connection     one connection: pipelined commands, replies in order
    node           one server, whose connection is renewed when it breaks
    sentinel       the address of the primary that Sentinel knows
    client         the client of one server
    presence       what processes know of each other, and the schema of their data
    statistics     commands by outcome, for the metrics
    cluster        the client of several servers: slots and redirections
    reconnection   the pauses between two connections
    account_state  AccountStateStore: `account_copy` is one account, `account_fields` its form on the server
    model_lists    ModelListStore
    names          digests in keys
    server_clock   the server's time on this machine's clock
    subscriber     published messages, over a connection of its own
    script         Lua scripts, the files beside it
    exchange       one numbered exchange with `limits.lua`
    subject        the limits of one subject: credit in advance, rejections that hold, one exchange in flight
    subjects       all of one kind, and the policy while the server is away (`share`)
    outbox         what the server lacks when a process ends, for the next process
    rate_limits    RateLimitStore
    usage_limiter  UsageLimiter
    grants         GrantStore
    records        what owners have, deflated and sealed
    responses, conversations, response_runs   the stores of the Responses API
    memory, tool_rounds, reasoning   ToolRoundStore, ReasoningStore: small values that may be lost
    stores         opens the stores of what is sealed
    key_table, api_keys   ApiKeyStore
    credentials    CredentialStore
    login_sessions LoginSessions
    sealing        encryption of what the server must not read
    shared_state   all members of a process
    inventory      keys by kind, and records sealed with older keys, for `qproxy shared`
    monitor        metrics and the list of processes, for operators
    permissions    the commands that the server's user needs
    report         what `qproxy check` reads of a server

Only here is hiredis known; `cryptography` is known to `sealing`, and to `auth.encryption`.
"""
