"""Settings are declared once: outside `qproxy.config` no parameter has a default for one."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import qproxy
from qproxy.bootstrap import accounts, app, auth, limits, reload, state, telemetry, tools, transport
from qproxy.config import SETTINGS

OTHER_MEANINGS = {
    "aliases": "further names of one model in its row of the catalog",
    "models": "a column of several tables and records",
    "rules": "a column of several tables and records",
}
"""Settings whose names have other meanings as well."""
EXCEPTIONS = {
    "qproxy.emulator.server.Emulator.serve(port)": "the emulator's own port",
    "qproxy.server.app._Rule(host)": "a column of Werkzeug's rules",
}
FLAGS = ("qproxy.wire.tool_calls.ModelProfile",)
"""Constructors that get a flag of one model, which a setting's patterns decide."""
BOOTSTRAP = (accounts, app, auth, limits, reload, state, telemetry, tools, transport)


def modules():
    for info in pkgutil.walk_packages(qproxy.__path__, "qproxy."):
        if not info.name.startswith("qproxy.config") and not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


def functions():
    """Yield (name, function) for every function, method and class defined in qproxy."""
    for module in modules():
        for name, item in vars(module).items():
            if getattr(item, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(item) or inspect.isclass(item):
                yield f"{module.__name__}.{name}", item
            if inspect.isclass(item):
                for method, member in vars(item).items():
                    member = getattr(member, "__func__", member)
                    if inspect.isfunction(member):
                        yield f"{module.__name__}.{name}.{method}", member


def defaults(function: Callable[..., Any]):
    """Return the names of the parameters that have a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a class without a signature of its own
        return []
    return [p.name for p in parameters if p.default is not inspect.Parameter.empty]


def test_no_default_has_the_name_of_a_setting():
    """No function, method or class attribute declares a setting again."""
    names = set(SETTINGS) - set(OTHER_MEANINGS)
    found = {
        f"{where}({name})" for where, function in functions() for name in defaults(function) if name in names
    }
    attributes = {
        f"{where}({name})"
        for where, item in functions()
        if inspect.isclass(item)
        for name in names & set(vars(item))
        if isinstance(vars(item)[name], int | float | str | bool)
    }
    assert found | attributes == set(EXCEPTIONS)


def test_parameters_for_settings_are_required():
    """Every parameter that `bootstrap` passes a setting to is required, whatever its name."""
    found = []
    for module in BOOTSTRAP:
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text("utf-8"))):
            if isinstance(node, ast.Call):
                found += [f"{module.__name__}, line {node.lineno}: {p}" for p in optional(node, vars(module))]
    assert not found


def optional(call: ast.Call, names: dict[str, Any]):
    """Return the parameters with defaults to which a call of a qproxy function passes a setting."""
    function = resolve(call.func, names)
    if not callable(function) or (inspect.isclass(function) and issubclass(function, Exception)):
        return []
    if f"{function.__module__}.{function.__qualname__}" in FLAGS:
        return []
    if not str(function.__module__).startswith("qproxy.") or "bootstrap" in str(function.__module__):
        return []
    parameters = list(inspect.signature(function).parameters.values())
    passed = [(parameters[n], argument) for n, argument in enumerate(call.args) if n < len(parameters)]
    named = {p.name: p for p in parameters}
    passed += [(named[k.arg], k.value) for k in call.keywords if k.arg in named]
    return [p.name for p, value in passed if reads_setting(value) and p.default not in (p.empty, MISSING)]


def reads_setting(node: ast.AST):
    return any(
        isinstance(part, ast.Attribute)
        and isinstance(part.value, ast.Name)
        and part.value.id == "config"
        and part.attr in SETTINGS
        for part in ast.walk(node)
    )


def resolve(node: ast.AST, names: dict[str, Any]):
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr(resolve(node.value, names), node.attr, None)
    return None
