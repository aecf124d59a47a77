"""This machine: the files that the settings name, who may read them, how many may be open, and the port.

Nothing is made or changed here; what a file holds is looked at only to see whether it can be used.
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
    """The data directory, the files with secrets and the databases."""
    found = [_directory(home)]
    found += [_secret(name, path) for name, path in _secrets(config, file)]
    found += [_database(name, path) for name, path in files.databases(config)]
    return found


def _secrets(config: Config, file: str | None) -> Iterator[tuple[str, Path]]:
    """Files that nobody else should read, by what they are."""
    written = [account.key for account in config.accounts if not (account.key_env or account.key_file)]
    if file is not None and (config.api_keys or config.admin_key or config.upstream_key or any(written)):
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
        text = f"{home} will be made" if writable else f"{home} is not there and cannot be made"
        advice = "" if writable else "set QPROXY_HOME to a directory that this user may write"
        return Finding(FILES, name, "ok" if writable else "failed", text, advice)
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        return Finding(FILES, name, "failed", f"{home} cannot be used by this user", "see its owner and mode")
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & GROUP_OR_OTHERS:
        return Finding(FILES, name, "warning", f"{home} is open to others ({mode:04o})", f"chmod 700 {home}")
    return Finding(FILES, name, "ok", f"{home} ({mode:04o})")


def _secret(name: str, path: Path) -> Finding:
    """A file that only its owner may read."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return Finding(FILES, name, "skipped", f"there is none ({path})")
    except OSError as error:
        return Finding(FILES, name, "failed", f"{path}: {error.strerror}", "see the modes of its directories")
    if not os.access(path, os.R_OK):
        return Finding(FILES, name, "failed", f"{path} cannot be read by this user", "see its owner and mode")
    if mode & GROUP_OR_OTHERS:
        return Finding(
            FILES, name, "failed", f"{path} can be read by others ({mode:04o})", f"chmod 600 {path}"
        )
    return Finding(FILES, name, "ok", f"{path} ({mode:04o})")


def _database(name: str, path: Path) -> Finding:
    """An SQLite file of ours: there or to be made, writable, and sound at its head."""
    if not path.exists():
        if _is_creatable(path):
            return Finding(FILES, name, "ok", f"{path} will be made")
        return Finding(FILES, name, "failed", f"{path} cannot be made", "see the owner of its directory")
    if not os.access(path, os.R_OK | os.W_OK) or not os.access(path.parent, os.W_OK):
        text = f"{path} cannot be written by this user"
        return Finding(FILES, name, "failed", text, "see its owner and mode, and its directory's")
    error = read_error(path)
    if error is not None:
        return Finding(FILES, name, "failed", f"{path}: {error}", "move it away; the server makes a new one")
    return Finding(FILES, name, "ok", f"{path} ({stat.S_IMODE(path.stat().st_mode):04o})")


def _is_creatable(path: Path) -> bool:
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    return os.access(existing, os.W_OK | os.X_OK)


def check_limits(config: Config) -> Finding:
    """How many files may be open."""
    wanted, allowed = file_limit(config)
    if allowed < wanted:
        text = f"{allowed} may be open; max_client_connections and max_requests may need {wanted}"
        return Finding(
            LIMITS, "open files", "warning", text, "raise the hard limit (LimitNOFILE=, ulimit -Hn)"
        )
    return Finding(LIMITS, "open files", "ok", f"{wanted} may be needed, and may be open")


async def check_port(config: Config, home: Path) -> Finding:
    """Whether the server could listen."""
    where = f"{config.host}, port {config.port}"
    if await trio.to_thread.run_sync(pidfile.is_serving, home, config.port):
        return Finding(LIMITS, "port", "ok", f"{where} is served by a qproxy of yours now")
    try:
        listeners = await trio.open_tcp_listeners(config.port, host=config.host)
    except OSError as error:
        cause: BaseException = error.__cause__ or error
        while isinstance(cause, BaseExceptionGroup):  # one error for each address
            cause = cause.exceptions[0]
        reason = getattr(cause, "strerror", None) or str(cause)
        return Finding(LIMITS, "port", "failed", f"{where}: {reason}", "stop what uses it, or set port")
    for listener in listeners:
        await listener.aclose()
    return Finding(LIMITS, "port", "ok", f"{where} is free")
