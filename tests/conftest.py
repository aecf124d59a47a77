"""Settings and hooks of all tests."""

import gc
import logging
import os
import sys

from hypothesis import settings

from tests.case_groups import pytest_collection_modifyitems, pytest_terminal_summary  # noqa: F401 - hooks
from tests.examples import examples

sys.dont_write_bytecode = False  # compiled once, not anew by every worker and by a hundred child processes:
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a third of what a start costs

settings.register_profile("qproxy", examples(100))
settings.load_profile("qproxy")

gc.disable()  # until the tests are collected: a million objects that stay


def pytest_collection_finish() -> None:
    """Keep the garbage collector from visiting modules and test items again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_runtest_teardown() -> None:
    """Take back what a test has configured: a handler would write to its closed stream in the next tests.

    A hook instead of a fixture, which would cost each of ten thousand tests its set-up.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(handler)
    root.setLevel(logging.WARNING)
