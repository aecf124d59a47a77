"""How much at once, how fast and how often: algorithms that know no request, no account and no key.

token_bucket     an amount that fills up again over time
windows          spans of time that limits are counted in: five hours, a day, a week, a month
circuit_breaker  whether an upstream that keeps failing is asked at all
concurrency      how many requests run at once, and how many wait

All but `concurrency` are pure: whoever asks says what time it is.
"""
