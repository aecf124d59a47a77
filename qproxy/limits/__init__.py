"""Limiting algorithms: how many at once, how fast, how much. They know no request, no account and no key.

    token_bucket     amounts by unit that refill over a minute
    windows          windows that usage is counted in: five hours, a day, a week, a month
    circuit_breaker  whether an upstream that keeps failing is used at all
    concurrency      how many requests run at once, and how many wait

All but `concurrency` are pure: callers pass the time.
"""
