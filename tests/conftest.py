"""Settings and fixtures of all tests."""

import logging

import pytest
from hypothesis import settings

from tests.examples import examples

settings.register_profile("qproxy", examples(100))
settings.load_profile("qproxy")


@pytest.fixture(autouse=True)
def root_logger():
    """Take back what a test has configured: a handler would write to its closed stream in the next tests."""
    root = logging.getLogger()
    level = root.level
    yield
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(handler)
    root.setLevel(level)
