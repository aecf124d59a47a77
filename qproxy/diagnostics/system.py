"""Checks of this machine: the configured files and their permissions, the limit of open files, and the port.

Nothing is created or changed; the content of a file is only read to test that it is usable.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import trio

from qproxy.backends.local import files
from qproxy.config import Config
from qproxy.diagnostics.report import Finding
from qproxy.process.serve import file_limit
from qproxy.system import pidfile
from qproxy.system.sqlite import read_error

FILES, LIMITS = "files", "limits"
GROUP_OR_OTHERS = 0o077


def check_files(config: Config, home: Path, file: str | None) -> list[Finding]:
    """Check the data directory, the files with secrets and the databases."""
    found = [_directory(home)]
    found += [_secret(name, path) for name, path in _secrets(config, file)]
    for name, path in files.databases(config):
        if found[0].failed and path.is_relative_to(home):  # whose advice is enough
            found.append(Finding(FILES, name, "skipped", f"not tested ({path})"))
        else:
            found.append(_database(name, path))
    return found


def _secrets(config: Config, file: str | None) -> Iterator[tuple[str, Path]]:
    """Yield the name and the path of each file that only its owner should be able to read."""
    inline_keys = [account.key for account in config.accounts if not (account.key_env or account.key_file)]
    if file is not None and (config.api_keys or config.admin_key or config.upstream_key or any(inline_keys)):
        yield "configuration file", Path(file)
    for account in config.accounts:
        if account.key_file is not None:
            yield f"key of {account.name}", Path(account.key_file).expanduser()
    yield from files.secret_files(config)
    if config.keyfile is not None:
        yield "TLS key", Path(config.keyfile)


def _directory(home: Path) -> Finding:
    name = "data directory"
    if not home.exists():
        writable = _is_creatable(home)
        text = f"{home} will be created" if writable else f"{home} does not exist and cannot be created"
        advice = "" if writable else "set QPROXY_HOME to a directory that this user can write"
        return Finding(FILES, name, "ok" if writable else "failed", text, advice)
    if not home.is_dir():
        return Finding(FILES, name, "failed", f"{home} is not a directory", "set QPROXY_HOME to a directory")
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        return Finding(FILES, name, "failed", f"{home} is not accessible", "check its owner and mode")
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & GROUP_OR_OTHERS:
        return Finding(
            FILES, name, "warning", f"{home} is accessible by others ({mode:04o})", f"chmod 700 {home}"
        )
    return Finding(FILES, name, "ok", f"{home} ({mode:04o})")


def _secret(name: str, path: Path) -> Finding:
    """Check that only the owner of a file can read it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return Finding(FILES, name, "skipped", f"none ({path})")
    except OSError as error:
        return Finding(
            FILES, name, "failed", f"{path}: {error.strerror}", "check the modes of its directories"
        )
    if not os.access(path, os.R_OK):
        return Finding(FILES, name, "failed", f"{path} is not readable", "check its owner and mode")
    if mode & GROUP_OR_OTHERS:
        return Finding(
            FILES, name, "failed", f"{path} is readable by others ({mode:04o})", f"chmod 600 {path}"
        )
    return Finding(FILES, name, "ok", f"{path} ({mode:04o})")


def _database(name: str, path: Path) -> Finding:
    """Check that an SQLite file exists or can be created, is writable and is a database."""
    if not path.exists():
        if _is_creatable(path):
            return Finding(FILES, name, "ok", f"{path} will be created")
        return Finding(FILES, name, "failed", f"{path} cannot be created", "check the owner of its directory")
    if path.is_dir():
        return Finding(FILES, name, "failed", f"{path} is a directory", "name a file in it")
    if not os.access(path, os.R_OK | os.W_OK) or not os.access(path.parent, os.W_OK):
        text = f"{path} is not writable"
        return Finding(FILES, name, "failed", text, "check the owner and mode of the file and its directory")
    error = read_error(path)
    if error is not None:
        return Finding(
            FILES, name, "failed", f"{path}: {error}", "move it away; the server will create a new one"
        )
    return Finding(FILES, name, "ok", f"{path} ({stat.S_IMODE(path.stat().st_mode):04o})")


def _is_creatable(path: Path) -> bool:
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    return os.access(existing, os.W_OK | os.X_OK)


def check_limits(config: Config) -> Finding:
    """Check the limit of open files."""
    wanted, allowed = file_limit(config)
    if allowed < wanted:
        text = f"the limit is {allowed}; max_client_connections + max_requests need {wanted}"
        return Finding(
            LIMITS, "open files", "warning", text, "raise the hard limit (LimitNOFILE=, ulimit -Hn)"
        )
    return Finding(LIMITS, "open files", "ok", f"{wanted} needed and allowed")


async def check_port(config: Config, home: Path) -> Finding:
    """Check that the server can listen on its address."""
    where = f"{config.host}, port {config.port}"
    if await trio.to_thread.run_sync(pidfile.is_serving, home, config.port):
        return Finding(LIMITS, "port", "ok", f"{where}: a qproxy server is running")
    try:
        listeners = await trio.open_tcp_listeners(config.port, host=config.host)
    except OSError as error:
        cause: BaseException = error.__cause__ or error
        while isinstance(cause, BaseExceptionGroup):  # one error for each address
            cause = cause.exceptions[0]
        reason = getattr(cause, "strerror", None) or str(cause)
        return Finding(
            LIMITS, "port", "failed", f"{where}: {reason}", "stop the process that uses it, or set port"
        )
    for listener in listeners:
        await listener.aclose()
    return Finding(LIMITS, "port", "ok", f"{where} is free")
