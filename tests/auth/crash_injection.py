"""`kill -9` at every system call of a credential file's life, and what is left afterwards: run me, I print
counts.

    python -m tests.auth.crash_injection DIRECTORY

A child does what the keeper or a sign-in does to the disk (lock, read, draft, publish, unlock) and kills
itself at its nth call: before it, after it, or, for a write, in the middle. Then the parent looks: is the
file the old one or the new one, whole, for its owner only; can the next process lock and write.
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
STORIES = ("first sign-in", "refresh", "refresh after a death", "shared", "shared, stale lock")


class Death:
    """Kills this process at its nth system call."""

    def __init__(self, number: int, point: str) -> None:
        self.left = number
        self.point = point
        for name in CALLS:
            setattr(os, name, self.deadly(name, getattr(os, name)))

    def deadly(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def at(*arguments: Any, **more: Any) -> Any:
            self.left -= 1
            if self.left:
                return call(*arguments, **more)
            if self.point == "within" and name == "write":
                call(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            elif self.point == "after":
                call(*arguments, **more)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("still alive")

        return at


def refresh(file: CredentialFile, lock: FileLock) -> None:
    """What the keeper does, without the network in the middle."""
    if not lock.acquire():
        raise AssertionError("the lock is held")
    file.load()
    draft = file.prepare_write()
    draft.commit(NEW)
    draft.discard()
    lock.release()


def prepare(folder: Path, story: str) -> tuple[CredentialFile, FileLock]:
    """The disk as a story finds it."""
    shared = story.startswith("shared")
    file = CredentialFile(folder / "me" / "oauth_creds.json", shared=shared)
    if story != "first sign-in":
        file.save(OLD)
    if story == "refresh after a death":
        file.prepare_write()
    if story == "shared, stale lock":
        lock = file.path.with_suffix(".lock")
        lock.write_text("theirs")
        os.utime(lock, (time.time() - 60,) * 2)
    file.make_directory()
    return file, FileLock(file.path, shared=shared)


def deaths(folder: Path, story: str, point: str) -> Iterator[tuple[int, CredentialFile, bool]]:
    """The disk after a death at each call in turn; the last one lives, and is not counted."""
    for number in range(1, 200):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        file, lock = prepare(folder, story)
        child = os.fork()
        if not child:
            Death(number, point)
            refresh(file, lock)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        yield number, file, killed
        if not killed:
            return


def usable_again(file: CredentialFile) -> bool:
    """Whether the next process can go on, after the time that qwen-code's rule gives a dead holder."""
    lock = FileLock(file.path, shared=True, wall_clock=lambda: time.time() + 60)
    if not lock.acquire():
        return False
    file.save(LAST)
    lock.release()
    names = {path.name for path in file.path.parent.iterdir()}
    return file.load() == LAST and not any(name.startswith(".") for name in names)


def main(root: Path) -> dict[str, Any]:
    """Every story, point and call."""
    found: dict[str, Any] = {
        "kills": 0,
        "old": 0,
        "new": 0,
        "none": 0,
        "spoilt": [],
        "loose": [],
        "stuck": [],
    }
    for story in STORIES:
        for point in POINTS:
            for number, file, killed in deaths(root / "disk", story, point):
                found["kills"] += killed
                where, tokens = f"{story}: {point} call {number}", file.load()
                word = {OLD.access_token: "old", NEW.access_token: "new"}.get(
                    tokens.access_token if tokens else ""
                )
                if tokens not in (OLD, NEW) and not (
                    tokens is None and story == "first sign-in" and not file.path.exists()
                ):
                    found["spoilt"].append(where)
                found[word or "none"] += 1
                for path in file.path.parent.iterdir():
                    if stat.S_IMODE(path.stat().st_mode) & 0o077 and ".lock" not in path.name:
                        found["loose"].append(f"{where}: {path.name}")
                if not usable_again(file):
                    found["stuck"].append(where)
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
