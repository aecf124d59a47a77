"""Kill a process at every system call that writes a credential file, and print counts of the results.

    python -m tests.auth.crash_injection DIRECTORY

A child performs the file operations of a refresh or a login (lock, read, prepare, publish, unlock) and kills
itself with SIGKILL at its nth call: before it, after it, or, for a write, in the middle. Then the parent
checks that the file is the old one or the new one, complete and private, and that the next process can lock
and write.
"""

import json
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qproxy.backends.local.credential_file import CredentialFile
from qproxy.backends.local.credential_lock import FileLock
from qproxy.wire.credential_format import TokenSet

OLD = TokenSet("a1", "r1", "Bearer", 1_760_000_000_000, "portal.qwen.ai", {"note": "kept"})
NEW = TokenSet("a2" * 500, "r2" * 500, "Bearer", 1_760_000_100_000, "portal.qwen.ai", {"note": "kept"})
LAST = TokenSet("a3", "r3", "Bearer", 1_760_000_200_000)
CALLS = (
    "open", "write", "read", "close", "fsync", "ftruncate", "lseek", "rename", "unlink", "mkdir", "listdir",
    "lstat",
    "fstat", "link", "chmod",
)  # fmt: skip
POINTS = ("before", "after", "within")
SCENARIOS = ("first sign-in", "refresh", "refresh after a death", "shared", "shared, stale lock")


class CrashPoint:
    """Kills this process at its nth system call."""

    def __init__(self, number: int, point: str) -> None:
        self.left = number
        self.point = point
        for name in CALLS:
            setattr(os, name, self.crashing(name, getattr(os, name)))

    def crashing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **more: Any) -> Any:
            self.left -= 1
            if self.left:
                return call(*arguments, **more)
            if self.point == "within" and name == "write":
                call(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            elif self.point == "after":
                call(*arguments, **more)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("still alive")

        return wrapper


def refresh(file: CredentialFile, lock: FileLock) -> None:
    """Perform the file operations of a refresh, without the network request in between."""
    if not lock.acquire():
        raise AssertionError("the lock is held")
    file.load()
    draft = file.prepare_write()
    draft.commit(NEW)
    draft.discard()
    lock.release()


def prepare(folder: Path, scenario: str) -> tuple[CredentialFile, FileLock]:
    """Prepare the credential file and its lock as a scenario starts."""
    shared = scenario.startswith("shared")
    file = CredentialFile(folder / "me" / "oauth_creds.json", shared=shared)
    if scenario != "first sign-in":
        file.save(OLD)
    if scenario == "refresh after a death":
        file.prepare_write()
    if scenario == "shared, stale lock":
        lock = file.path.with_suffix(".lock")
        lock.write_text("theirs")
        os.utime(lock, (time.time() - 60,) * 2)
    file.make_directory()
    return file, FileLock(file.path, shared=shared)


def crashes(folder: Path, scenario: str, point: str) -> Iterator[tuple[int, CredentialFile, bool]]:
    """Yield the file after a crash at each call in turn; the last child completes and does not count."""
    for number in range(1, 200):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        file, lock = prepare(folder, scenario)
        child = os.fork()
        if not child:
            CrashPoint(number, point)
            refresh(file, lock)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        yield number, file, killed
        if not killed:
            return


def can_be_used_again(file: CredentialFile) -> bool:
    """Return True if the next process can lock and write, after qwen-code's time limit for a dead lock
    holder."""
    lock = FileLock(file.path, shared=True, wall_clock=lambda: time.time() + 60)
    if not lock.acquire():
        return False
    file.save(LAST)
    lock.release()
    names = {path.name for path in file.path.parent.iterdir()}
    return file.load() == LAST and not any(name.startswith(".") for name in names)


def main(root: Path) -> dict[str, Any]:
    """Run every scenario, point and call."""
    found: dict[str, Any] = {
        "kills": 0,
        "old": 0,
        "new": 0,
        "none": 0,
        "spoilt": [],
        "loose": [],
        "stuck": [],
    }
    for scenario in SCENARIOS:
        for point in POINTS:
            for number, file, killed in crashes(root / "disk", scenario, point):
                found["kills"] += killed
                where, tokens = f"{scenario}: {point} call {number}", file.load()
                word = {OLD.access_token: "old", NEW.access_token: "new"}.get(
                    tokens.access_token if tokens else ""
                )
                if tokens not in (OLD, NEW) and not (
                    tokens is None and scenario == "first sign-in" and not file.path.exists()
                ):
                    found["spoilt"].append(where)
                found[word or "none"] += 1
                for path in file.path.parent.iterdir():
                    if stat.S_IMODE(path.stat().st_mode) & 0o077 and ".lock" not in path.name:
                        found["loose"].append(f"{where}: {path.name}")
                if not can_be_used_again(file):
                    found["stuck"].append(where)
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
