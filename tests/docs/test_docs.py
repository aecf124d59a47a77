"""The README and docs/ match the code: each names exactly the other's items."""

import ast
import re
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import qproxy
from qproxy import cli
from qproxy.bootstrap.app import build_server
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.emulator import demo
from tests.helpers import accounts

PACKAGE = Path(qproxy.__file__).parent
ROOT = PACKAGE.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH")


def rows(text, title):
    """Return the rows of the table under a heading, as lists of cells."""
    section = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_readme_is_short():
    """The README has fewer than 150 lines."""
    assert README.count("\n") < 150


def test_the_readmes_transcript_is_the_output_of_the_demo():
    """They are equal except for ports and times; if no tool can run, up to the demo's note about it."""
    output: list[str] = []
    assert demo.run(0, True, output.append) == 0
    printed = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8787", "\n".join(output))
    printed = re.sub(r"\b\d+ ms\b", "30 ms", printed)
    shown = README.partition("$ qproxy demo --once\n")[2].partition("\n```")[0]
    printed, _, missing = printed.partition(f"\n{demo.NO_TOOL}")
    assert shown
    assert printed == (shown.partition("\n> What is '")[0] if missing else shown)


def test_the_demo_prints_the_bytes_of_the_responses():
    """With `raw` the lines of the streams are printed; without it they are not."""
    lines: dict[bool, list[str]] = {False: [], True: []}
    for raw, printed in lines.items():
        assert demo.run(0, True, printed.append, raw=raw) == 0
    assert not any("data:" in line for line in lines[False])
    assert sum(line.startswith("  data: {") for line in lines[True]) > 5
    assert [line for line in lines[True] if line.startswith("  data: [DONE]")]


def test_the_kinds_of_accounts_are_in_their_page():
    """The table of docs/accounts.md names the values of `kind`."""
    table = (ROOT / "docs" / "accounts.md").read_text().partition("| kind |")[2].partition("\n\n")[0]
    kinds = get_args(get_type_hints(AccountConfig)["kind"])
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(kinds)


def test_every_command_is_in_the_readme():
    """The README has each command with its help text."""
    documented = {cells[0].strip("`").removeprefix("qproxy "): cells[1] for cells in rows(README, "Commands")}
    assert documented == {name: cli.resolve_command(name).HELP for name in cli.COMMANDS}


def documented_routes():
    """Yield (method, path) of every endpoint in the README, without /v1."""
    for cells in rows(README, "Endpoints"):
        methods: list[str] = []
        has_path = False
        for word in chain.from_iterable(code.split() for code in re.findall(r"`([^`]*)`", cells[0])):
            if word in METHODS:
                methods = [word] if has_path else [*methods, word]
                has_path = False
            else:
                has_path = True
                yield from ((method, word.removeprefix("/v1")) for method in methods)


def test_every_endpoint_is_in_the_readme():
    """The README has no other endpoint; a path that ends in … stands for all paths below it."""
    server = build_server(Config(accounts=accounts("one"), store_responses=False))
    existing = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", route.path))
        for family in server.route_groups
        for route in family.routes()
        for method in route.methods
    }
    documented = set(documented_routes())
    below = tuple(path.removesuffix("…") for _, path in documented if path.endswith("…"))
    assert {route for route in existing - documented if not (below and route[1].startswith(below))} == set()
    assert {route for route in documented - existing if not route[1].endswith("…")} == set()


def test_every_package_is_in_the_readme():
    """Each package and module of qproxy is in the tree once, and the tree has no other."""
    existing = {
        path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    tree = README.partition("## Where things live")[2].partition("```\n")[2].partition("```")[0]
    documented = re.findall(
        r"[\w.]+", " ".join(line.strip().partition("  ")[0] for line in tree.splitlines())
    )
    assert set(documented) == existing
    assert len(documented) == len(set(documented))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_targets(page):
    """Each relative link of a page leads to an existing file."""
    links = re.findall(r"(?<!!)\[[^]]*\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_index():
    """docs/README.md names each page of docs/."""
    index = (ROOT / "docs" / "README.md").read_text()
    assert [
        page.name
        for page in (ROOT / "docs").glob("*.md")
        if page.name != "README.md" and f"({page.name})" not in index
    ] == []


def test_every_example_is_named():
    """A page of docs/ names each program in docs/examples."""
    pages = "\n".join(page.read_text() for page in PAGES)
    examples = [path.name for path in (ROOT / "docs" / "examples").glob("*_*.py")]
    assert [name for name in examples if f"examples/{name}" not in pages] == []


def test_the_design_names_existing_files():
    """Every file, folder and table in docs/design.md exists."""
    page = (ROOT / "docs" / "design.md").read_text()
    places = re.findall(r"`((?:qproxy/|tests/)?[\w/]+(?:\.py|/))`", page)
    assert len(places) > 20
    assert [
        place
        for place in places
        if not any((base / place).exists() for base in (ROOT, PACKAGE, PACKAGE / "wire"))
    ] == []
    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    assert [
        name
        for name in re.findall(r"`([A-Z]{4,})`", page)
        if not re.search(rf"^{name}\b", source, re.MULTILINE)
    ] == []


@cache
def errors_of_clients():
    """Return the modules that have a client's error codes, each with the nodes of its syntax tree."""
    paths = [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in ("emulator", "cli", "diagnostics")
        and re.search(r"\bcode\b|ErrorPattern", path.read_text())
    ]
    return [(path, list(ast.walk(ast.parse(path.read_text())))) for path in paths]


def codes():
    """Yield every error code that a client may receive, as the source has them."""
    for path, nodes in errors_of_clients():
        for node in nodes:
            if isinstance(node, ast.keyword) and node.arg == "code":
                yield node.value
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "code":
                yield node.value
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "ErrorPattern"
                and path.name == "error_mapping.py"
            ):
                yield from node.args[3:4]


def test_every_error_code_is_documented():
    """docs/errors.md names each code, and no other."""
    existing = {
        node.value for node in codes() if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    page = (ROOT / "docs" / "errors.md").read_text()
    cells = [line.strip("|").split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    documented = set(re.findall(r"`(\w+)`", " ".join(cells)))
    assert len(existing) > 30
    assert documented == existing


def statuses():
    """Return each error code in the source with its status, if one call has both."""
    defaults = {"RequestError": 400, "OverloadedError": 503, "UpstreamError": 502, "QproxyError": 500}
    for _, nodes in errors_of_clients():
        for node in nodes:
            if not isinstance(node, ast.Call):
                continue
            name, given = getattr(node.func, "id", ""), {item.arg: item.value for item in node.keywords}
            code: Any = node.args[3] if name == "ErrorPattern" and len(node.args) > 3 else given.get("code")
            status: Any = node.args[1] if name == "ErrorPattern" else given.get("status")
            value = defaults.get(name) if status is None else getattr(status, "value", None)
            if isinstance(code, ast.Constant) and isinstance(code.value, str) and value is not None:
                yield code.value, value


def test_statuses_of_error_codes():
    """docs/errors.md has the statuses with which each code is raised."""
    raised: dict[str, set[int]] = {}
    for code, status in statuses():
        raised.setdefault(code, set()).add(status)
    assert len(raised) > 40
    documented: dict[str, set[int]] = {}
    for line in (ROOT / "docs" / "errors.md").read_text().splitlines():
        if line.startswith("| `"):
            names, numbers = (re.findall(r"\w+", cell) for cell in line.strip("|").split(" | ")[:2])
            each = zip(names, numbers, strict=True) if len(names) == len(numbers) else ()
            documented.update({name: set(map(int, numbers)) for name in names})
            documented.update({name: {int(number)} for name, number in each})
    assert {code: documented[code] for code in raised} == raised
