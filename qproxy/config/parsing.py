"""Values of settings from TOML, variables and flags, each checked against its type.

What is unknown or of the wrong type is refused with the place where it stands and what was probably meant.
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
"""In the name of a variable that tells a Pod of a Service."""
_SERVICE_URLS = ("tcp://", "udp://", "sctp://")


def load_toml(path: str) -> dict[str, Any]:
    """The values of a TOML file, checked."""
    try:
        text = Path(path).read_text("utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from None
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
    near = difflib.get_close_matches(name, names, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{where}: there is no setting {name!r}.{hint}")


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
            raise ConfigError(f"{where}: it needs a {item.name}.")
    return kind(**values)


OTHER_VARIABLES = ("config", "home", "key")
"""Variables that are not settings: QPROXY_KEY is the API key of the clients that `qproxy claude` and others start."""


def read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The values of QPROXY_* variables; lists are comma-separated, tables `a=b,c=d`."""
    values = {}
    for variable, text in environ.items():
        name = variable.removeprefix("QPROXY_").lower()
        if not variable.startswith("QPROXY_") or name in OTHER_VARIABLES or _is_service_link(variable, text):
            continue
        _check_known(name, SETTINGS, variable)
        values[name] = parse(name, text, variable)
    return values


def _is_service_link(variable: str, text: str) -> bool:
    """Return whether Kubernetes has set the variable, to tell of a Service whose name begins with `qproxy`.

    A Pod gets QPROXY_PORT=tcp://10.0.0.1:8787, QPROXY_SERVICE_HOST, QPROXY_PORT_8787_TCP_ADDR and more, unless its
    `enableServiceLinks` is false (kubernetes.io/docs/concepts/services-networking/service, "Environment variables").
    """
    url = variable.endswith("_PORT") and text.startswith(_SERVICE_URLS)
    return url or _SERVICE_LINK.search(variable) is not None


def parse(name: str, text: str, where: str) -> Any:
    """A setting's value from the words of a variable or flag."""
    kind = TYPES[name]
    origin = get_origin(kind)
    value: Any = text
    listed = [word.strip() for word in text.split(",") if word.strip()]
    try:
        if kind is bool:
            value = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
                text.lower()
            ]
        elif kind in (int, float):
            value = kind(text)
        elif origin is list:
            value = listed
        elif origin is dict:
            pairs = [word.partition("=")[::2] for word in listed]
            value = {key: parse_bool(item) if kind == dict[str, bool] else item for key, item in pairs}
        check_value(name, value, where)
    except (ValueError, KeyError):
        raise ConfigError(f"{where}: {text!r} is not {describe_type(kind)}.") from None
    return _coerce(kind, value, where)


def parse_bool(text: str) -> bool:
    return {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}[text.lower()]


def validate(name: str, value: Any, where: str) -> Any:
    """A setting's value if it has the setting's type."""
    check_value(name, value, where)
    return _coerce(TYPES[name], value, f"{where}, {name}")


def _coerce(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not _is_instance(kind, value):
        raise ConfigError(f"{where}: expected {describe_type(kind)}, but it is {value!r:.80}.")
    if kind in (int, float) and value < 0:
        raise ConfigError(f"{where}: it cannot be negative.")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{where}: it cannot be {value}.")
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
    origin = get_origin(kind)
    if origin is Literal:
        return "one of " + ", ".join(get_args(kind))
    if origin in (Union, UnionType):  # X | None
        return describe_type(next(item for item in get_args(kind) if item is not NoneType))
    if origin is list:
        return "a list of strings" if get_args(kind) == (str,) else "a list"
    if origin is dict:
        return {dict[str, bool]: "a table of true and false", dict[str, str]: "a table of strings"}.get(
            kind, "a table"
        )
    names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
    return names[kind]
