"""Settings and hooks of all tests."""

import logging

from hypothesis import settings

from tests.examples import examples

settings.register_profile("qproxy", examples(100))
settings.load_profile("qproxy")


def pytest_runtest_teardown() -> None:
    """Take back what a test has configured: a handler would write to its closed stream in the next tests.

    A hook instead of a fixture, which would cost each of ten thousand tests its set-up.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(handler)
    root.setLevel(logging.WARNING)
