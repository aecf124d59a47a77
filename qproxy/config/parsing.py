"""Values of settings from TOML, variables and flags, validated against their types.

An unknown name or a wrong type raises ConfigError with its place and the name that was probably meant.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from qproxy.config.accounts import ConfigError
from qproxy.config.renames import check_name, check_value
from qproxy.config.settings import SETTINGS, TABLE_FIELDS, TABLES, TYPES

_SERVICE_LINK = re.compile(r"_SERVICE_(?:HOST|PORT)(?:_|$)|_PORT_[0-9]{1,5}_(?:TCP|UDP|SCTP)(?:_|$)")
"""Part of the names of the variables that Kubernetes sets in a Pod for each Service."""
_SERVICE_URLS = ("tcp://", "udp://", "sctp://")


def load_toml(path: str) -> dict[str, Any]:
    """Return the validated values of a TOML file. Raises ConfigError."""
    try:
        text = Path(path).read_text("utf-8-sig")
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not in UTF-8; save the file in this encoding.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: invalid TOML: {error}.") from None
    except RecursionError:
        raise ConfigError(f"{path}: invalid TOML: nested too deeply.") from None
    values: dict[str, Any] = {}
    for name, value in table.items():
        where = f"{path}, line {_line_number(text, name)}"
        if name in TABLE_FIELDS and (name not in SETTINGS or _is_tables(value)):
            field = TABLE_FIELDS[name]
            values[field] = _records(TABLES[field], value, f"{path}, [[{name}]]")
        else:
            values[name] = validate(_check_known(name, [*SETTINGS, *TABLE_FIELDS], where), value, where)
    return values


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _line_number(text: str, key: str) -> int:
    match = re.search(rf"^[ \t]*+(\[++[ \t]*+)?[\"']?{re.escape(key)}[\"']?[ \t]*+[=\].]", text, re.MULTILINE)
    return text.count("\n", 0, match.end() - 1) + 1 if match else 1


def _check_known(name: str, known: Iterable[str], where: str) -> str:
    names = list(known)
    if name in names:
        return name
    check_name(name, where)
    raise ConfigError(f"{where}: unknown setting {name!r}.{suggestion(name, names)}")


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return " Did you mean …?" with the closest of these names, "" if none is close."""
    close = difflib.get_close_matches(name, list(names), 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _records(kind: Any, entries: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(entries, list):
        raise ConfigError(f"{where}: expected an array of tables.")
    return tuple(_record(kind, entry, f"{where} {n + 1}") for n, entry in enumerate(entries))


def _record(kind: Any, entry: Any, where: str) -> Any:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: expected a table.")
    types, values = get_type_hints(kind), {}
    for name, value in entry.items():
        _check_known(name, types, where)
        check_value(name, value, where)
        values[name] = _coerce(types[name], value, f"{where}, {name}")
    for item in fields(kind):
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{where}: {item.name} is required.")
    return kind(**values)


OTHER_VARIABLES = ("config", "home", "key")
"""Variables that are not settings: QPROXY_KEY is the API key of the clients that `qproxy claude` and others
start."""


def read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of the QPROXY_* variables; lists are comma-separated, tables are `a=b,c=d`."""
    values = {}
    for variable, text in environ.items():
        name = variable.removeprefix("QPROXY_").lower()
        if not variable.startswith("QPROXY_") or name in OTHER_VARIABLES or _is_service_link(variable, text):
            continue
        _check_known(name, SETTINGS, variable)
        values[name] = parse(name, text, variable)
    return values


def _is_service_link(variable: str, text: str) -> bool:
    """Return whether Kubernetes set the variable, for a Service whose name starts with `qproxy`.

    A Pod gets QPROXY_PORT=tcp://10.0.0.1:8787, QPROXY_SERVICE_HOST, QPROXY_PORT_8787_TCP_ADDR and more,
    unless its `enableServiceLinks` is false (kubernetes.io/docs/concepts/services-networking/service,
    "Environment variables").
    """
    url = variable.endswith("_PORT") and text.startswith(_SERVICE_URLS)
    return url or _SERVICE_LINK.search(variable) is not None


def parse(name: str, text: str, where: str) -> Any:
    """Return a setting's value from the text of a variable or flag. Raises ConfigError."""
    kind = TYPES[name]
    origin = get_origin(kind)
    value: Any = text
    words = [word.strip() for word in text.split(",") if word.strip()]
    try:
        text.encode()  # bytes of an argument or variable that are not UTF-8 are lone surrogates
        if kind is bool:
            value = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
                text.lower()
            ]
        elif kind in (int, float):
            value = kind(text)
        elif origin is list:
            value = words
        elif origin is dict:
            pairs = [word.split("=", 1) for word in words]  # a word without "=" is a ValueError
            value = {key: _table_value(kind, item) for key, item in pairs}
        check_value(name, value, where)
    except (ValueError, KeyError):
        raise ConfigError(f"{where}: expected {describe_type(kind)}, got {text!r:.80}.") from None
    return _coerce(kind, value, where)


def _table_value(kind: Any, text: str) -> Any:
    """Return a value of a table from its text. Raises KeyError or ValueError."""
    if kind == dict[str, bool]:
        return parse_bool(text)
    return float(text) if kind == dict[str, float] else text


def parse_bool(text: str) -> bool:
    """Return the value of a switch in a table. Raises KeyError."""
    return {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}[text.lower()]


def validate(name: str, value: Any, where: str) -> Any:
    """Return a setting's value converted to its type. Raises ConfigError."""
    check_value(name, value, where)
    return _coerce(TYPES[name], value, f"{where}, {name}")


def _coerce(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind == dict[str, float] and isinstance(value, dict):
        return {key: _coerce(float, item, f"{where}, {key}") for key, item in value.items()}
    if not _is_instance(kind, value):
        raise ConfigError(f"{where}: expected {describe_type(kind)}, got {value!r:.80}.")
    if kind in (int, float) and value < 0:
        raise ConfigError(f"{where}: must not be negative.")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{where}: must be finite, got {value}.")
    return value


def _is_instance(kind: Any, value: Any) -> bool:
    if kind is Any:
        return True
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(_is_instance(arguments[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is_instance(arguments[1], item) for item in value.values())
    if arguments:  # X | None
        return any(_is_instance(item, value) for item in arguments)
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)


def describe_type(kind: Any) -> str:
    """Return the name of a setting's type, for error messages and documentation."""
    origin = get_origin(kind)
    if origin is Literal:
        return "one of " + ", ".join(get_args(kind))
    if origin in (Union, UnionType):  # X | None
        return describe_type(next(item for item in get_args(kind) if item is not NoneType))
    if origin is list:
        return "list of strings" if get_args(kind) == (str,) else "a list"
    if origin is dict:
        return {
            dict[str, bool]: "table of booleans",
            dict[str, str]: "table of strings",
            dict[str, float]: "table of numbers",
        }.get(kind, "table")
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return names[kind]
