"""Backup and restore of the data directory: during writes, and with damaged and hostile archives."""

import gzip
import hashlib
import io
import json
import stat
import tarfile
from pathlib import Path

import pytest

from qproxy import cli
from qproxy.backends.backup import BackupError
from qproxy.backends.local import backup
from qproxy.system.pidfile import PidFile
from qproxy.system.sqlite import open_database, open_readonly

SEALED = b'{"qproxy_sealed": "gAAAAAB-not-for-any-backup-to-open"}'


@pytest.fixture
def home(tmp_path):
    """Return a data directory in use: a database with a write in progress, credentials, and files of
    processes."""
    home = tmp_path / "home"
    for name, data in {
        "keys.json": b'{"keys": []}',
        "accounts/me/oauth_creds.json": SEALED,
        "accounts/me/oauth_creds.lock": b"",
        "keys.1.new": b"half",
        "serving-8787.json": b"{}",
        "workers/1/2.sock": b"",
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(data)
    return home


@pytest.fixture
def database(home):
    connection = open_database(home / "ledger.sqlite3", patience=1)
    connection.execute("CREATE TABLE rows (n)")
    connection.execute("INSERT INTO rows VALUES (1)")
    yield connection
    connection.close()


def save(home, archive, **options):
    return backup.write_backup(home, archive, **{"force": False, "now": 1e9, **options})


def load(archive, home, **options):
    return backup.restore_backup(archive, home, **{"force": False, "now": 1e9, **options})


def content(home):
    """Return each file of a directory that is not a database, with its mode and bytes."""
    return {
        path.relative_to(home).as_posix(): (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        for path in home.rglob("*")
        if path.is_file() and not path.name.startswith("ledger")
    }


def test_a_backup_is_restored(home, database, tmp_path):
    """The archive has one state of each database despite a write in progress; files are private, and
    encrypted ones stay encrypted."""
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO rows VALUES (2)")
    archive, target = tmp_path / "backup.tar.gz", tmp_path / "other" / "home"
    written = save(home, archive)
    database.execute("COMMIT")
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    names = ["accounts/me/oauth_creds.json", "keys.json", "ledger.sqlite3"]
    assert sorted(file.name for file in written.files) == names
    assert load(archive, target) == (written, None)
    assert written.created == "2001-09-09T01:46:40Z"
    assert content(target) == {
        "accounts/me/oauth_creds.json": (0o600, SEALED),
        "keys.json": (0o600, b'{"keys": []}'),
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in target.rglob("*") if path.is_dir()} == {0o700}
    copy = open_readonly(target / "ledger.sqlite3", patience=1)
    assert copy.execute("SELECT n FROM rows").fetchall() == [(1,)]
    copy.close()
    assert {path.name for path in tmp_path.iterdir()} == {"home", "backup.tar.gz", "other"}


def test_a_database_with_all_rows_in_its_log_is_copied(home, tmp_path):
    """A new database may still be empty on disk, with its rows in the write-ahead log."""
    connection = open_database(home / "new.db", patience=1)
    connection.execute("CREATE TABLE rows (n)")
    assert "new.db" in {file.name for file in save(home, tmp_path / "a").files}
    load(tmp_path / "a", tmp_path / "b")
    copy = open_readonly(tmp_path / "b" / "new.db", patience=1)
    assert copy.execute("SELECT count(*) FROM rows").fetchone() == (0,)
    copy.close()
    connection.close()


def test_overwriting_requires_force(home, tmp_path):
    """Existing archives and directories stay without --force; with it, the former content is moved aside."""
    archive = tmp_path / "backup"
    save(home, archive)
    with pytest.raises(BackupError, match="--force"):
        save(home, archive)
    save(home, archive, force=True)
    with pytest.raises(BackupError, match="outside"):
        save(home, home / "backup")
    with pytest.raises(BackupError, match="nothing to back up"):
        save(tmp_path / "none", tmp_path / "other")
    before = content(home)
    with pytest.raises(BackupError, match="not empty"):
        load(archive, home)
    assert content(home) == before
    (home / "keys.json").write_text("changed")
    _, aside = load(archive, home, force=True)
    assert aside == home / "before-restore-20010909T014640Z"
    assert (aside / "keys.json").read_text() == "changed"
    assert (home / "keys.json").read_bytes() == b'{"keys": []}'
    assert "before-restore" not in str(save(home, archive, force=True).files)


def test_the_directory_of_a_running_server_is_not_restored(home, tmp_path):
    """A restore fails while a server runs, even with --force."""
    save(home, tmp_path / "a")
    with PidFile(home, 8787), pytest.raises(BackupError, match=r"running \(port 8787\)"):
        load(tmp_path / "a", home, force=True)


def test_a_damaged_archive_changes_nothing(home, tmp_path):
    """A truncated archive, or one with a changed byte, raises one error, and the directory stays empty."""
    save(home, tmp_path / "a")
    data, target = (tmp_path / "a").read_bytes(), tmp_path / "target"
    raw = gzip.decompress(data)
    flipped = bytearray(raw)
    flipped[raw.index(SEALED) + 20] ^= 1
    cuts = [data[:length] for length in range(0, len(data) - 8, max(1, len(data) // 25))]
    for damaged in [*cuts, b"not an archive", gzip.compress(bytes(flipped)), gzip.compress(raw[:2048])]:
        (tmp_path / "b").write_bytes(damaged)
        with pytest.raises(BackupError, match="not a complete backup"):
            load(tmp_path / "b", target)
        assert list(target.iterdir()) == []
    for directory in (target, home):  # a missing archive is the first cause: --force would not help
        with pytest.raises(BackupError, match="no such file"):
            load(tmp_path / "none", directory)


def write_hostile_archive(path, names, *, kind=tarfile.REGTYPE, listed=None, manifest_size=None, **manifest):
    """Write an archive with these members, whatever its manifest lists."""
    files = [
        {"name": name, "size": 1, "sha256": hashlib.sha256(b"x").hexdigest()} for name in listed or names
    ]
    head = {"format": 1, "version": "1", "created": "now", "files": files, **manifest}
    data = json.dumps(head).encode().ljust(manifest_size or 0)
    with tarfile.open(path, "w:gz") as tar:
        for name, body in ((backup.MANIFEST, data), *((name, b"x") for name in names)):
            member = tarfile.TarInfo(name)
            member.size = len(body) if name == backup.MANIFEST or kind == tarfile.REGTYPE else 0
            member.type = tarfile.REGTYPE if name == backup.MANIFEST else kind
            member.linkname = "/etc/passwd"
            tar.addfile(member, io.BytesIO(body))


HOSTILE: dict[str, dict] = {
    "above": {"names": ["../evil"]},
    "inside and above": {"names": ["a/../../evil"]},
    "absolute": {"names": ["/tmp/evil"]},
    "not normal": {"names": ["a//b"]},
    "itself": {"names": ["."]},
    "a symbolic link": {"names": ["a"], "kind": tarfile.SYMTYPE},
    "a hard link": {"names": ["a"], "kind": tarfile.LNKTYPE},
    "a device": {"names": ["a"], "kind": tarfile.CHRTYPE},
    "one twice": {"names": ["a", "a"]},
    "a file as a directory": {"names": ["a", "a/b"]},
    "more than listed": {"names": ["a", "b"], "listed": ["a"]},
    "less than listed": {"names": ["a"], "listed": ["a", "b"]},
    "another order": {"names": ["a", "b"], "listed": ["b", "a"]},
    "another format": {"names": ["a"], "format": 2},
    "no files": {"names": [], "files": None},
    "strange fields": {"names": [], "files": [{"name": 1}]},
    "a huge manifest": {"names": [], "manifest_size": backup.MAX_MANIFEST_BYTES + 1},
}


@pytest.mark.parametrize("case", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_writes_nothing(case, tmp_path):
    """No name, kind or size in an archive is trusted."""
    write_hostile_archive(tmp_path / "a", **case)
    with pytest.raises(BackupError, match="not a complete backup"):
        load(tmp_path / "a", tmp_path / "deep" / "target")
    assert {path.name for path in tmp_path.rglob("*")} == {"deep", "a", "target"}


def test_the_backup_commands(home, tmp_path, monkeypatch, capsys):
    """The output names the saved and the excluded files; the restored data has an audit entry of the
    restore."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QPROXY_HOME", str(home))
    monkeypatch.setenv("QPROXY_KEYS_FILE", str(tmp_path / "elsewhere.json"))
    Path("qproxy.toml").write_text("")
    assert cli.main(["backup", "a.tar.gz"]) == 0
    shown = capsys.readouterr()
    assert "Backed up 2 files" in shown.out
    assert "elsewhere.json, qproxy.toml" in shown.err
    assert cli.main(["backup", "a.tar.gz"]) == 1
    assert "--force" in capsys.readouterr().err
    assert cli.main(["restore", "a.tar.gz"]) == 1
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path / "new"))
    assert cli.main(["restore", "a.tar.gz"]) == 0
    assert "keys.json  12 bytes" in capsys.readouterr().out
    (entry,) = (tmp_path / "new" / "audit.jsonl").read_text().splitlines()
    assert json.loads(entry)["action"] == "data.restore"


def test_a_failed_restore_names_the_saved_files(home, tmp_path):
    """The former content is never overwritten, and the error names its place."""
    save(home, tmp_path / "a")
    (home / "before-restore-20010909T014640Z").mkdir()
    with pytest.raises(BackupError, match=r"not all of it was restored.*before-restore-20010909T014640Z"):
        load(tmp_path / "a", home, force=True)
    assert (home / "keys.json").exists()
