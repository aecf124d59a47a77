"""The credential file: for its owner only, whole at every moment, and never through a link."""

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from qproxy.auth.credential_store import StorageError
from qproxy.backends.local.credential_file import CredentialFile
from qproxy.backends.local.credential_lock import STALE_SECONDS, FileLock
from qproxy.wire.credential_format import TokenSet

OLD = TokenSet("a1", "r1", "Bearer", 1_760_000_000_000, "portal.qwen.ai", {"note": "kept"})
NEW = TokenSet("a2", "r2", "Bearer", 1_760_000_100_000, "portal.qwen.ai", {"note": "kept"})
ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path):
    return CredentialFile(tmp_path / "data" / "accounts" / "me" / "oauth_creds.json")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_sees_it(file, monkeypatch):
    """Directories 0700 and the file 0600 from its first byte, whatever the umask; a lax directory is
    mended."""
    seen = []
    wrote = os.write

    def write(fd, data):
        seen.append(stat.S_IMODE(os.fstat(fd).st_mode))
        return wrote(fd, data)

    monkeypatch.setattr(os, "write", write)
    before = os.umask(0)
    try:
        file.save(OLD)
        file.path.parent.chmod(0o755)
        file.save(NEW)
    finally:
        os.umask(before)
    assert set(seen) == {0o600}
    assert mode(file.path) == 0o600
    assert [mode(path) for path in (file.path.parent, file.path.parents[1], file.path.parents[2])] == [
        0o700
    ] * 3
    assert file.load() == NEW


def test_a_shared_directory_stays_as_it_is(tmp_path):
    """What other programs use is not ours to close."""
    tmp_path.chmod(0o755)
    CredentialFile(tmp_path / "oauth_creds.json", shared=True).save(OLD)
    assert mode(tmp_path) == 0o755


def test_links_are_not_followed(file, tmp_path):
    """A link is not read; writing puts a file in its place and leaves its target alone."""
    target = tmp_path / "target"
    target.write_text('{"access_token": "x"}')
    file.make_directory()
    file.path.symlink_to(target)
    with pytest.raises(StorageError, match="symbolic link"):
        file.load()
    file.save(OLD)
    assert file.load() == OLD
    assert target.read_text() == '{"access_token": "x"}'


def test_what_is_no_file_is_refused(file):
    """A pipe does not hang the reader, and a huge file is not read."""
    file.make_directory()
    os.mkfifo(file.path)
    with pytest.raises(StorageError, match="regular file"):
        file.load()
    file.path.unlink()
    with file.path.open("wb") as huge:
        huge.truncate(10_000_000)
    with pytest.raises(StorageError, match="too large"):
        file.load()


def test_leftovers_are_swept(file):
    """What a killed process left behind goes with the next write; other programs' files stay."""
    file.save(OLD)
    draft = file.prepare_write()
    foreign = file.path.with_name("oauth_creds.json.tmp.1.2")
    foreign.touch()
    left = [path.name for path in file.path.parent.iterdir()]
    assert len(left) == 3
    file.save(NEW)
    assert {path.name for path in file.path.parent.iterdir()} == {"oauth_creds.json", foreign.name}
    draft.discard()
    assert file.load() == NEW


def test_removing_says_whether_there_was_one(file):
    """And what is gone is none."""
    assert not file.remove()
    file.save(OLD)
    assert file.remove()
    assert file.load() is None
    assert file.version() is None


def test_among_processes_the_kernel_decides(file):
    """One holder at a time; a closed holder frees it."""
    file.make_directory()
    one, two = FileLock(file.path), FileLock(file.path)
    assert one.acquire()
    assert not two.acquire()
    one.release()
    assert two.acquire()
    assert not file.path.with_suffix(".lock").exists()
    two.release()


def test_qwen_codes_lock_is_honoured(file):
    """Held it is respected, stale (by age, or from the future) it is stolen, and only ours is removed."""
    file.make_directory()
    now = [1_760_000_000.0]
    lock, theirs = FileLock(file.path, shared=True, wall_clock=lambda: now[0]), file.path.with_suffix(".lock")
    assert lock.acquire()
    assert len(theirs.read_text()) == 36
    assert mode(theirs) == 0o600
    lock.release()
    assert not theirs.exists()
    theirs.write_text("theirs")
    for age, stolen in ((0, False), (STALE_SECONDS - 1, False), (STALE_SECONDS + 1, True), (-3600, True)):
        theirs.write_text("theirs")
        os.utime(theirs, (now[0] - age,) * 2)
        assert lock.acquire() is stolen
        if not stolen:
            assert theirs.read_text() == "theirs"
        lock.release()
    assert lock.acquire()
    theirs.write_text("stolen from us meanwhile")
    lock.release()
    assert theirs.read_text() == "stolen from us meanwhile"
    assert [path.name for path in theirs.parent.iterdir() if ".stale." in path.name] == []


def script(name, *arguments):
    """What a script of this folder reports."""
    command = [sys.executable, "-m", f"tests.auth.{name}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_kill_at_any_point_leaves_a_loadable_file(tmp_path):
    """`kill -9` before, after and in the middle of every system call of a sign-in and a refresh: old or new,
    whole."""
    memory = Path("/dev/shm")  # a disk would take half a minute for a thousand fsyncs
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        found = script("crash_injection", folder)
    assert found["kills"] > 250
    assert found["spoilt"] == []
    assert found["loose"] == []
    assert found["stuck"] == []


def test_processes_at_once_spend_each_refresh_token_once():
    """Eight processes on one account that ends again and again: no token is shown twice, all end with the
    newest."""
    found = script("refresh_race", "--processes", "8", "--tokens", "4")
    assert found["reused"] == 0
    assert found["refreshes"] >= 3
    assert found["with_the_newest"] == 8
