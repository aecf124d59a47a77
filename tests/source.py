"""The source of the package's modules, each parsed once for all tests that compare it with a rule.

`check_each` runs a check on every item of a table in one test: it reports every failure, with its item.
"""

import ast
import io
import tokenize
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import qproxy

PACKAGE = Path(qproxy.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def name(path: Path) -> str:
    """Return a module's path in the package."""
    return str(path.relative_to(PACKAGE))


@dataclass
class Source:
    """What a module's text consists of."""

    text: str
    imported: list[tuple[str, list[str]]] = field(default_factory=list)
    """The modules of its imports, each with the names that are imported from it."""
    called: set[str] = field(default_factory=set)
    """Names that it calls."""
    read: set[str] = field(default_factory=set)
    """Attributes of names that it reads, as `name.attribute`."""
    strings: list[tuple[int, str]] = field(default_factory=list)
    """String constants, each with its line."""
    statements: list[str] = field(default_factory=list)
    """Constants that are statements: docstrings of anything."""
    docstrings: list[tuple[int, str]] = field(default_factory=list)
    """The docstrings of the module (the first one), its classes and functions, each with its line."""

    def comments(self) -> list[tuple[int, str]]:
        """Return the comments, each with its line."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]

    def add(self, node: ast.AST) -> None:
        """Collect what a node of the syntax tree has."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            self.strings.append((node.lineno, node.value))
        elif isinstance(node, ast.Import):
            self.imported += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            self.imported.append((node.module or "", [alias.name for alias in node.names]))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            self.called.add(node.func.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            self.read.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            self.statements.append(str(node.value.value))
        elif isinstance(node, DOCUMENTED):
            self.docstrings.append((getattr(node, "lineno", 1), ast.get_docstring(node) or ""))


@cache
def source(path: Path) -> Source:
    """Return what a module consists of."""
    text = path.read_text("utf-8")
    found = Source(text)
    for node in ast.walk(ast.parse(text)):
        found.add(node)
    return found


def check_each(check: Callable[..., None], cases: Iterable[Any] | Mapping[str, Any]) -> None:
    """Call `check` with every case; raise an ExceptionGroup of all failures, each with its case's name."""
    items = cases.items() if isinstance(cases, Mapping) else ((str(case), case) for case in cases)
    failures = []
    for title, case in items:
        try:
            check(*case) if isinstance(case, tuple) else check(case)
        except Exception as error:
            error.add_note(f"in the case: {title}")
            failures.append(error)
    if failures:
        raise ExceptionGroup(f"{len(failures)} cases failed", failures)
