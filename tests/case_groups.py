"""The cases of a pure function run as one test, which reports every failed case.

pytest sets up, reports and tears down each test for itself, which costs more than most cases of the tables
do. A parametrized test that is no coroutine and needs no fixture becomes one test for all its selected cases
(`test_name[39 cases]`); a failure is an ExceptionGroup whose members have their case's id. One case alone is
run by its id, as ever: `pytest "tests/wire/test_sse.py::test_fields[data]"`.
"""

import functools
import inspect
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Replace the cases of a pure function by a group of them."""
    items[:] = [item for _, same in groupby(items, _group) for item in _merge(list(same))]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Write how many cases the passed tests had."""
    passed = terminalreporter.getreports("passed")
    cases = sum(dict(report.user_properties).get("cases", 1) for report in passed)
    if cases > len(passed):
        terminalreporter.write_line(f"{cases} cases in {len(passed)} passed tests")


def _group(item: pytest.Item) -> object:
    """Return the key of an item's group, which is the item itself if it cannot be merged."""
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return item
    is_pure = (
        set(item.fixturenames) == set(item.callspec.params)
        and {mark.name for mark in item.own_markers} == {"parametrize"}
        and not any("indirect" in mark.kwargs for mark in item.own_markers)
        and not inspect.iscoroutinefunction(item.obj)
        and not hasattr(item.obj, "hypothesis")
    )
    return (item.parent, item.originalname) if is_pure else item


def _merge(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    first = items[0]
    if len(items) == 1 or not isinstance(first, pytest.Function):
        yield from items
        return

    @functools.wraps(first.obj)
    def run_all() -> None:
        failures = []
        for item in items:
            try:
                item.obj(**item.callspec.params)  # type: ignore[attr-defined]
            except Exception as error:
                error.add_note(f"in the case [{item.callspec.id}]")  # type: ignore[attr-defined]
                failures.append(error)
        if failures:
            raise ExceptionGroup(f"{len(failures)} of {len(items)} cases failed", failures)

    run_all.__signature__ = inspect.Signature()  # type: ignore[attr-defined]  # no argument is a fixture
    name = f"{first.originalname}[{len(items)} cases]"
    group = pytest.Function.from_parent(first.parent, name=name, callobj=run_all)
    group.user_properties.append(("cases", len(items)))
    yield group
