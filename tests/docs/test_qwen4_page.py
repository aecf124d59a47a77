"""docs/qwen4.md names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_row_names_tests_that_exist():
    """Each feature has a test with the name on the page."""
    page = (ROOT / "docs/qwen4.md").read_text(encoding="utf-8")
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_[a-z0-9_]++)\(", path.read_text(encoding="utf-8"))
    }
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert rows
    for row in rows:
        names = set(re.findall(r"`(test_[a-z0-9_]++)`", row))
        assert names, row
        assert names <= defined, names - defined
