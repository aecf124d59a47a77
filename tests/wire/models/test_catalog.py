"""The catalog of models: lookup, the operator's rows, and the package's file."""

import re
from collections import Counter
from datetime import date
from functools import cache

import pytest

from qproxy.bootstrap.models import build_catalog, package_catalog
from qproxy.config.accounts import ConfigError
from qproxy.ledger.prices import PRICE_CELLS
from qproxy.wire.models import CatalogError, ModelCatalog, ModelRow
from qproxy.wire.models.catalog import MAX_CACHED_NAMES
from qproxy.wire.models.spec import CELLS, version_order
from tests.source import MODULES, check_each, source

CATALOG = package_catalog()

# client's model name: (the row that applies, True if the name itself is known)
NAMES = {
    "an id": ("qwen4-max", "qwen4-max", True),
    "an id in another case": ("Qwen4-Max", "qwen4-max", True),
    "a listed snapshot": ("qwen3.7-max-2026-05-20", "qwen3.7-max", True),
    "a short snapshot": ("qwen3.8-max-0902", "qwen3.8-max", True),
    "a snapshot that is not listed": ("qwen-plus-2027-01-01", "qwen-plus", False),
    "the latest": ("qwen-flash-latest", "qwen-flash", False),
    "a publisher's name": ("Qwen/Qwen3-32B", "qwen3-235b-a22b", True),
    "a tag": ("qwen3:32b", "qwen3-235b-a22b", False),
    "newer than any": ("qwen5-max", "qwen4-max", False),
    "a newer minor version": ("qwen4.1-max-2027-03-01", "qwen4-max", False),
    "between two versions": ("qwen3.9-max", "qwen3.8-max", False),
    "by number, not by text": ("qwen3.10-flash", "qwen3.8-flash", False),
    "another vendor's newer one": ("glm-6", "glm-5.3", False),
    "a variant of a version": ("qwen3.7-plus-us", "qwen3.7-plus", False),
}


@pytest.mark.parametrize(("name", "row", "known"), NAMES.values(), ids=NAMES)
def test_a_name_matches_its_row(name, row, known):
    """An exact id, a snapshot, then a version in its line match; a newer name gets the newest known
    version."""
    found, expected = CATALOG.find(name), CATALOG.find(row)
    assert {cell: getattr(found, cell) for cell in CELLS} == {cell: getattr(expected, cell) for cell in CELLS}
    assert CATALOG.knows(name) is known


@pytest.mark.parametrize("name", ["llama-3", "gpt-4o", "", "qwen2-max", "/", "qwen", "x" * 10_000])
def test_an_unknown_name_has_no_row(name):
    """A name without similar rows, or with a version older than all, matches none."""
    assert CATALOG.find(name) is None
    assert CATALOG.get(name).id == name


def test_an_unknown_model_has_its_vendors_facts():
    """A model in no line gets the facts common to all models of its vendor."""
    spec = CATALOG.get("qwen-of-tomorrow")
    assert (spec.vendor, spec.efforts, spec.metadata) == ("qwen", [], True)


def test_prices_and_dates_are_never_inferred():
    """A newer model has no price and no dates of an older one, and its numbers are marked as inferred."""
    spec = CATALOG.get("qwen5-max")
    assert (spec.prices, spec.retires, spec.online) == (None, None, None)
    assert spec.output == 131_072
    assert not spec.knows("output")
    assert CATALOG.get("qwen4-max").knows("output")


def test_an_unknown_cell_comes_from_the_newest_version():
    """A row's unknown cell has the value of the newest version that knows it; a known one stays."""
    data = {
        "lines": [{"name": "max", "names": ["m{version}-max*"], "tasks": ["chat"]}],
        "models": [
            {"id": "m1-max", "tools": False, "output": 1},
            {"id": "m2-max", "tools": True, "context": 2},
            {"id": "m10-max", "batch": True},
        ],
    }
    catalog = ModelCatalog(data)
    assert (catalog.get("m10-max").tools, catalog.get("m10-max").output) == (True, 1)
    assert catalog.get("m1-max").tools is False
    assert catalog.get("m1-max").guessed == {"context", "batch"}
    assert catalog.get("m11-max").batch is True


def test_operators_override_a_row():
    """A cell that an operator sets applies to that name; other cells stay, and so do the row's other
    names."""
    rows = (ModelRow("qwen3.7-plus", output=1000), ModelRow("qwen3-32b", thinking="none"))
    catalog = build_catalog(rows)
    assert (catalog.get("qwen3.7-plus").output, catalog.get("qwen3.7-plus").thinking) == (1000, "on")
    assert catalog.get("qwen3-32b").thinking == "none"
    assert catalog.get("qwen3-14b").thinking == "on"


def test_operators_add_a_row():
    """A new id may be based on another one, and is listed if the operator sets it so."""
    catalog = build_catalog((ModelRow("house-model", like="qwen4-max", context=5, listed=True),))
    spec = catalog.get("House-Model")
    assert (spec.context, spec.efforts, spec.prices) == (5, CATALOG.get("qwen4-max").efforts, None)
    assert catalog.listed == ("house-model",)
    assert catalog.find("qwen4-max") == CATALOG.find("qwen4-max")


WRONG = {
    "like nobody": (ModelRow("a", like="nobody"),),
    "like itself": (ModelRow("a", like="a"),),
    "a circle": (ModelRow("a", like="b"), ModelRow("b", like="a")),
}


@pytest.mark.parametrize("rows", WRONG.values(), ids=WRONG)
def test_rejects_rows_without_a_base(rows):
    """A row based on an unknown id is rejected at startup by its name."""
    with pytest.raises(ConfigError, match=r"\[\[models\]\]: model 'a'"):
        build_catalog(rows)


@pytest.mark.parametrize("entry", [{"id": "a", "colour": "red"}, {"context": 1}])
def test_rejects_an_unknown_cell(entry):
    """A misspelled cell in a file is an error."""
    with pytest.raises(CatalogError):
        ModelCatalog({"models": [entry]})


SLIPS = {
    "a price": (ModelRow("a", prices=[{"inputs": 1}]), "no price 'inputs'"),
    "a date": (ModelRow("a", retires="10.10.2026"), "retires is no date"),
    "a price as text": (ModelRow("a", prices=[{"input": "1"}]), "prices, input: expected a number"),
    "a price below 0": (
        ModelRow("a", prices=[{"input": 1, "output": -1}]),
        "prices, output: expected a number",
    ),
    "a price of NaN": (ModelRow("a", prices=[{"input": float("nan")}]), "prices, input: expected a number"),
    "half of a price": (ModelRow("a", prices=[{"input": 1.0}]), "an input and an output"),
    "a tier as text": (ModelRow("a", prices=[{"max_prompt_tokens": "x"}]), "prices, max_prompt_tokens"),
    "a currency": (ModelRow("a", prices=[{"currency": 1}]), "prices, currency: expected a string"),
    "a size": (ModelRow("a", context=-1), "context: expected a number of at least 1, got -1"),
    "no name": (ModelRow(" "), "id: expected a name"),
    "itself as its successor": (
        ModelRow("a", retires="2026-10-10", successor="A"),
        "successor: expected another",
    ),
    "a version": (ModelRow("a", version="new"), "version: expected a number such as 3.8, got 'new'"),
}


@pytest.mark.parametrize(("row", "words"), SLIPS.values(), ids=SLIPS)
def test_rejects_invalid_cells(row, words):
    """An invalid cell is rejected at startup, by its name."""
    with pytest.raises(ConfigError, match=words):
        build_catalog((row,))


def test_rejects_two_rows_with_one_id():
    """Two rows with the same id are ambiguous."""
    with pytest.raises(ConfigError, match="two rows with the id 'A'"):
        build_catalog((ModelRow("a", context=5), ModelRow("A", context=6)))


def test_client_names_use_bounded_memory():
    """However many names clients invent, a bounded number is cached."""
    catalog = build_catalog((ModelRow("mine"),))
    for number in range(MAX_CACHED_NAMES * 2 + 5):
        catalog.get(f"name-{number}")
    assert max(len(catalog._found), len(catalog._strangers)) <= MAX_CACHED_NAMES


def test_only_names_of_rows_are_labels():
    """A label of metrics is the exact name of a row, so there are at most as many labels as rows."""
    for name in ("qwen4-max", "qwen3.7-max-2026-05-20", "qwen3-32b"):
        assert name in CATALOG
    for name in ("Qwen4-Max", "x/qwen4-max", "qwen5-max", "qwen-plus-latest-1", "y" * 1000):
        assert name not in CATALOG


def test_versions_are_numbers():
    """3.10 follows 3.8, and an underscore is a point."""
    assert version_order("3.8") < version_order("3.10") < version_order("4")
    assert version_order("2_5") == (2, 5)


def test_the_file_is_consistent():
    """Dates are valid, successors exist, and a model's numbers do not contradict each other."""
    date.fromisoformat(CATALOG.as_of)
    for spec in CATALOG.models():
        assert all(tier.keys() <= PRICE_CELLS for tier in spec.prices or ()), spec.id
        for day in (spec.online, spec.retires):
            assert day is None or date.fromisoformat(day)
        assert spec.successor is None or CATALOG.knows(spec.successor), spec.id
        assert spec.tasks, spec.id
        if spec.context and spec.input and spec.knows("context"):
            assert spec.input <= spec.context, spec.id
        assert not set(spec.effort_map or ()) & set(spec.efforts or ()), spec.id
        assert set((spec.effort_map or {}).values()) <= set(spec.efforts or ()), spec.id
    for names in CATALOG.defaults.values():
        assert all(CATALOG.knows(name) for name in ([names] if isinstance(names, str) else names))


MODEL_NAME = re.compile(
    r"\b(?:qwen|qwq|qvq|glm|kimi|deepseek|minimax|wan|gte|cosyvoice|paraformer)[-_a-z]{0,9}\d", re.IGNORECASE
)


@cache
def names_a_model(word):
    return CATALOG.find(word) is not None or MODEL_NAME.search(word) is not None


def test_no_module_contains_a_model_name():
    """A model's name, or a pattern of one, is in the catalog's file only."""

    def check(path):
        module = source(path)
        strings = Counter(text for _, text in module.strings) - Counter(module.statements)
        words = {word for text in strings for word in re.split(r"[\s\"'`(),;]+", text)}
        assert [word for word in words if len(word) > 3 and word[0] != "/" and names_a_model(word)] == []

    check_each(check, MODULES)
