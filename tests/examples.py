"""Numbers of random examples: few and fixed in the tests, many new ones in `scripts/fuzz`."""

import os

from hypothesis import HealthCheck, settings

FACTOR = int(os.environ.get("FUZZ_FACTOR", "0"))
"""A multiplier for `count`, set by `scripts/fuzz`."""
SHARE = 5
"""The tests run one of SHARE examples: they are the same in every run, so that more find nothing new."""
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]


def examples(count):
    """Return the Hypothesis settings for `count` examples, or a share of them unless fuzzing."""
    number = count * FACTOR if FACTOR else max(10, count // SHARE)
    return settings(derandomize=not FACTOR, deadline=None, max_examples=number, suppress_health_check=SLOW)
