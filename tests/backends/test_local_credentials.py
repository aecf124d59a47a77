"""The credential file: private, complete at every moment, and never accessed through a link."""

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


def test_the_file_is_private(file, monkeypatch):
    """Directories are 0700 and the file 0600 from its first byte, with any umask; a directory with a wider
    mode is corrected."""
    seen = []
    original_write = os.write

    def recording_write(fd, data):
        seen.append(stat.S_IMODE(os.fstat(fd).st_mode))
        return original_write(fd, data)

    monkeypatch.setattr(os, "write", recording_write)
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


def test_a_shared_directory_keeps_its_mode(tmp_path):
    """The mode of a directory that other programs use is not changed."""
    tmp_path.chmod(0o755)
    CredentialFile(tmp_path / "oauth_creds.json", shared=True).save(OLD)
    assert mode(tmp_path) == 0o755


def test_symbolic_links_are_not_followed(file, tmp_path):
    """A link is not read; a write replaces it and leaves its target unchanged."""
    target = tmp_path / "target"
    target.write_text('{"access_token": "x"}')
    file.make_directory()
    file.path.symlink_to(target)
    with pytest.raises(StorageError, match="symbolic link"):
        file.load()
    file.save(OLD)
    assert file.load() == OLD
    assert target.read_text() == '{"access_token": "x"}'


def test_rejects_a_path_that_is_not_a_regular_file(file):
    """A pipe does not block the reader, and a huge file is not read."""
    file.make_directory()
    os.mkfifo(file.path)
    with pytest.raises(StorageError, match="regular file"):
        file.load()
    file.path.unlink()
    with file.path.open("wb") as huge:
        huge.truncate(10_000_000)
    with pytest.raises(StorageError, match="too large"):
        file.load()


def test_temporary_files_of_a_killed_process_are_removed(file):
    """The next write removes them; other programs' files stay."""
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


def test_remove_returns_whether_a_file_existed(file):
    """remove() returns False when there is no file."""
    assert not file.remove()
    file.save(OLD)
    assert file.remove()
    assert file.load() is None
    assert file.version() is None


def test_a_lock_has_one_holder(file):
    """The kernel grants the lock to one holder at a time, and to the next one after a release."""
    file.make_directory()
    one, two = FileLock(file.path), FileLock(file.path)
    assert one.acquire()
    assert not two.acquire()
    one.release()
    assert two.acquire()
    assert not file.path.with_suffix(".lock").exists()
    two.release()


def test_qwen_codes_lock_file_is_honored(file):
    """A held lock is respected, a stale one (by age, or from the future) is replaced, and only one's own is
    removed."""
    file.make_directory()
    now = [1_760_000_000.0]
    lock, lock_file = (
        FileLock(file.path, shared=True, wall_clock=lambda: now[0]),
        file.path.with_suffix(".lock"),
    )
    assert lock.acquire()
    assert len(lock_file.read_text()) == 36
    assert mode(lock_file) == 0o600
    lock.release()
    assert not lock_file.exists()
    lock_file.write_text("theirs")
    for age, stolen in ((0, False), (STALE_SECONDS - 1, False), (STALE_SECONDS + 1, True), (-3600, True)):
        lock_file.write_text("theirs")
        os.utime(lock_file, (now[0] - age,) * 2)
        assert lock.acquire() is stolen
        if not stolen:
            assert lock_file.read_text() == "theirs"
        lock.release()
    assert lock.acquire()
    lock_file.write_text("stolen from us meanwhile")
    lock.release()
    assert lock_file.read_text() == "stolen from us meanwhile"
    assert [path.name for path in lock_file.parent.iterdir() if ".stale." in path.name] == []


def run_script(name, *arguments):
    """Run a script of tests/auth and return its report."""
    command = [sys.executable, "-m", f"tests.auth.{name}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_kill_at_any_point_leaves_a_loadable_file(tmp_path):
    """`kill -9` before, after and within every system call of a login and a refresh leaves the old or the new
    file, complete."""
    memory = Path("/dev/shm")  # on a disk, a thousand fsyncs would take half a minute
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        found = run_script("crash_injection", folder)
    assert found["kills"] > 250
    assert found["spoilt"] == []
    assert found["loose"] == []
    assert found["stuck"] == []


def test_concurrent_processes_use_each_refresh_token_once():
    """Eight processes share an account that expires again and again: no token is used twice, and all end with
    the newest."""
    found = run_script("refresh_race", "--processes", "8", "--tokens", "4")
    assert found["reused"] == 0
    assert found["refreshes"] >= 3
    assert found["with_the_newest"] == 8
