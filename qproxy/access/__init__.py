"""Access to the server and its limits: API keys, rate limits, budgets, wrong secrets.

    api_keys        API keys, and the interface of their store
    usage_limiter   the interface of rate limits and budgets together, as the server uses it
    rate_limits     rate limits of keys, and the interface of the store of levels
    budgets         budgets of keys, compared with the usage ledger
    secret_limiter  limits on wrong secrets per address
    grants          the interface of the store of accepted secrets and sessions
    client_address  whose address a request comes from

Where shared state lives is `backends`; how a request proves its key is `server.authentication`.
"""
