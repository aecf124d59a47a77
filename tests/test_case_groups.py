"""Cases of pure functions become one test, of which every failure is reported; other tests stay as they
are."""

import pytest

pytest_plugins = ["pytester"]

MODULE = """
import pytest

@pytest.mark.parametrize("limit", [2, 3])
@pytest.mark.parametrize("number", [1, 2, 3], ids=["one", "two", "three"])
def test_pure(number, limit):
    assert number < limit

@pytest.mark.parametrize("number", [1, 2])
def test_with_a_fixture(number, tmp_path):
    assert number

@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.filterwarnings("ignore"))])
def test_with_a_mark(number):
    assert number

def test_alone():
    pass
"""


@pytest.fixture
def run(pytester):
    """Return a function that runs pytest on the module."""
    pytester.makeconftest("from tests.case_groups import *")
    pytester.makepyfile(test_it=MODULE)
    return lambda *arguments: pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)


def test_all_failures_of_a_group_are_reported(run):
    """Each failed case is named, after which the others have run."""
    result = run()
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["*3 of 6 cases failed*"])
    for case in ("two-2", "three-2", "three-3"):
        result.stdout.fnmatch_lines([f"*in the case [[]{case}]"])
    result.stdout.no_fnmatch_line("*in the case [[]one-*")
    result.stdout.fnmatch_lines(["FAILED test_it.py::test_pure[[]6 cases]*"])


def test_selected_cases(run):
    """The cases that -k selects are a group, and a case of which only the id is given runs alone."""
    run("-k", "one and not alone", "-v").stdout.fnmatch_lines(["*::test_pure[[]2 cases] PASSED*"])
    run("-v", "test_it.py::test_pure[one-3]").stdout.fnmatch_lines(["*::test_pure[[]one-3] PASSED*"])
    run("-k", "one and not alone").stdout.fnmatch_lines(["2 cases in 1 passed tests"])
