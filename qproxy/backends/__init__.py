"""Storage of the state that several processes share. Callers import Protocols only, each beside its callers.

    factory    `open_backends(config)`: one member of each Protocol
    credentials   tokens of accounts, by the settings
    ledgers    the usage ledger of the settings
    sealing    what seals texts for clients
    stores     what clients sent and got: responses, conversations, tool rounds, reasoning
    shared_commands   shared state for commands
    api_keys   whether there are API keys, for checks before anything is opened
    backup     a backup of the data directory: its files and its manifest
    ledger_thread, ledger_queries   what ledgers of all kinds of databases have in common
    local      members for the processes of one machine: files, SQLite, memory
    postgres   members for several machines: the ledger
    redis      members for several machines: API keys, limits, grants, what clients sent and got

    Protocol                              local member             what its callers share
    access.api_keys.ApiKeyStore           FileApiKeys              API keys (`RedisApiKeys`, `StaticApiKeys`)
    access.usage_limiter.UsageLimiter     LocalUsageLimiter        rate limits, budgets (`RedisUsageLimiter`)
    access.rate_limits.RateLimitStore     File-, MemoryRateLimits  levels of limits per minute; wrong secrets
    access.grants.GrantStore              SqliteGrants             dashboard sessions, accepted secrets
    accounts.shared_state.AccountStateStore  SqliteAccountState    states of accounts (`RedisAccountState`)
    auth.credential_store.CredentialStore FileCredentials          tokens of accounts (`RedisCredentials`)
    auth.login_sessions.LoginSessions     LocalLoginSessions       logins in progress
    server.response_store.ResponseStore   SqliteResponseStore      stored responses
    server.conversation_store.ConversationStore  SqliteConversations  conversations
    server.response_runs.ResponseRunStore SqliteResponseRuns       runs of responses, and their events
    relay.tool_rounds.ToolRoundStore      MemoryToolRounds         hidden tool rounds
    ledger.UsageLedger                    SqliteUsageLedger        usage (`PostgresUsageLedger` for a URL)
    telemetry.audit.AuditLog              FileAuditLog             changes of keys, accounts and settings

SQL, the formats of these files and their locks are known in `local` and `postgres` alone. The embedded
members of limits wait for nothing: `reserve` is asynchronous for members that are elsewhere, and costs no
checkpoint here.
"""
