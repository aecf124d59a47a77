"""The key file of sealed texts: created once, also by several processes at once, and never replaced."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from qproxy.backends.local import seal_keys
from qproxy.backends.sealing import open_text_sealer
from qproxy.config import Config


def test_creators_at_once_get_the_same_keys(tmp_path):
    """The first one creates the file, privately; the others read it, and no other file is left behind."""
    path = tmp_path / "data" / "compaction.key"
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: seal_keys.read_or_create(path), range(8)))
    assert len({tuple(keys) for keys in found}) == 1
    assert [len(key) for key in found[0]] == [seal_keys.SECRET_BYTES]
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_new_key_in_front_seals(tmp_path):
    """With another key on the first line, texts of the older ones still open."""
    path = tmp_path / "compaction.key"
    sealed = open_text_sealer(Config(compaction_key_file=str(path))).seal("text", bytes(16))
    path.write_text(f"{seal_keys.generate()}\n{path.read_text()}")
    rotated = open_text_sealer(Config(compaction_key_file=str(path)))
    assert rotated.unseal(sealed) == "text"
    assert rotated.seal("text", bytes(16)) != sealed


@pytest.mark.parametrize("text", ["", "short", "not base64, and no key", "é"])
def test_other_files_are_no_keys(tmp_path, text):
    """A file without keys is an error, and it is not overwritten."""
    path = tmp_path / "compaction.key"
    path.write_text(text)
    with pytest.raises(ValueError):
        seal_keys.read_or_create(path)
    assert path.read_text() == text


def test_a_file_that_cannot_be_written(tmp_path, caplog):
    """The server starts with a key of its own, and the log names the setting."""
    (tmp_path / "file").touch()
    sealer = open_text_sealer(Config(compaction_key_file=str(tmp_path / "file" / "compaction.key")))
    assert sealer.unseal(sealer.seal("text", bytes(16))) == "text"
    assert "compaction_key_file" in caplog.text
