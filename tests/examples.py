"""Numbers of random examples: few and always the same in the tests, many new ones in `scripts/fuzz`."""

import os

from hypothesis import HealthCheck, settings

FACTOR = int(os.environ.get("FUZZ_FACTOR", "0"))
"""Set by `scripts/fuzz`: how many times `count` examples are tried."""
SHARE = 5
"""The tests try one in so many: the examples are the same in every run, so more find nothing new."""
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]


def examples(count):
    """Return the Hypothesis settings for `count` examples, or a share of them unless fuzzing."""
    number = count * FACTOR if FACTOR else max(10, count // SHARE)
    return settings(derandomize=not FACTOR, deadline=None, max_examples=number, suppress_health_check=SLOW)
