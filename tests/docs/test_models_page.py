"""docs/models.md matches the catalog."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

from qproxy.bootstrap.models import build_catalog, package_catalog
from qproxy.config import load
from qproxy.wire.models import ModelRow
from qproxy.wire.models.table import models_table

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_has_every_model_and_explains_every_field():
    """The table of the page is the catalog's, with its date, and every field of a row is explained."""
    page = PAGE.read_text("utf-8")
    assert models_table(package_catalog()) in page
    assert f"As of {package_catalog().as_of}." in page
    for item in fields(ModelRow):
        assert f"`{item.name}`" in page, item.name


def test_the_example_is_a_configuration(tmp_path):
    """The rows of the page load, and take effect."""
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(tomllib.loads(example)["models"]) == 3
    (tmp_path / "e.toml").write_text(example)
    catalog = build_catalog(load(path=str(tmp_path / "e.toml"), environ={}).model_rows)
    assert catalog.get("qwen3.7-plus").output == 32_768
    assert catalog.get("house-model").encrypted_thinking is True
    assert catalog.get("qwen-max").successor == "qwen4-max"
