"""Files of clients: uploaded, listed, read and deleted, each key's own."""

import json
import stat
from contextlib import aclosing

import pytest
from openai.pagination import AsyncCursorPage
from openai.types import FileDeleted, FileObject

from qproxy.backends.local import key_file
from qproxy.backends.local.file_store import DirectoryFileStore
from qproxy.server.file_store import FileNotFound
from qproxy.wire.errors import RequestError
from tests.helpers import world
from tests.openai_types import judge, refusal

LINES = b'{"custom_id": "a"}\n'


def form(content, *, filename="lines.jsonl", **fields):
    """Return the headers and the body of a form with one file."""
    parts = [
        f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--b\r\ncontent-disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'.encode()
    return {"content-type": "multipart/form-data; boundary=b"}, b"".join(
        parts
    ) + head + content + b"\r\n--b--"


async def call(it, method, path, headers=(), body=b"", key=None):
    """Return the status and the parsed body of a response."""
    fields = dict(headers) | ({"authorization": f"Bearer {key}"} if key else {})
    async with it.client.request(method, path, headers=fields, body=body) as response:
        data = await response.read()
    is_file = path.endswith("/content") and response.status == 200
    return response.status, data if is_file else json.loads(data)


async def upload(it, content=LINES, *, key=None, **fields):
    """Return the file object of an upload."""
    headers, body = form(content, **{"purpose": "batch", **fields})
    status, made = await call(it, "POST", "/v1/files", headers, body, key)
    assert status == 200, made
    return made


async def test_the_life_of_a_file(tmp_path):
    """It is described, listed, read back byte by byte and deleted, with the SDK's types."""
    content = b"\x00\xff" * 400_000
    async with world(files_directory=str(tmp_path / "files")) as it:
        expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": 3600}
        made = await upload(it, content, filename="..\\\\a/\u00e9 b.jsonl", **expiry)
        described = judge(FileObject, made)
        assert (described.filename, described.bytes, described.purpose) == (
            "\u00e9 b.jsonl",
            800_000,
            "batch",
        )
        assert described.expires_at == described.created_at + 3600
        path = f"/v1/files/{described.id}"
        assert await call(it, "GET", path) == (200, made)
        assert await call(it, "GET", f"{path}/content") == (200, content)
        stored = tmp_path / "files" / described.id
        assert stat.S_IMODE(stored.stat().st_mode) == 0o600
        status, deleted = await call(it, "DELETE", path)
        assert (status, judge(FileDeleted, deleted).deleted) == (200, True)
        assert not stored.exists()
        status, missing = await call(it, "GET", path)
        assert (status, refusal(missing).param) == (404, "id")


async def test_lists_are_pages():
    """The newest comes first; a purpose, an order, a limit and a last id choose."""
    async with world() as it:
        ids = [(await upload(it, purpose=purpose))["id"] for purpose in ("batch", "vision", "batch")]
        _, body = await call(it, "GET", "/v1/files")
        page = judge(AsyncCursorPage[FileObject], {"data": body["data"], "has_more": body["has_more"]})
        assert [file.id for file in page.data] == ids[::-1]
        _, body = await call(it, "GET", "/v1/files?purpose=batch&order=asc&limit=1")
        assert ([file["id"] for file in body["data"]], body["has_more"]) == (ids[:1], True)
        _, body = await call(it, "GET", f"/v1/files?order=asc&after={ids[0]}")
        assert ([file["id"] for file in body["data"]], body["has_more"]) == (ids[1:], False)
        for query in ("limit=0", "limit=10001", "after=file-none", "order=up"):
            status, body = await call(it, "GET", f"/v1/files?{query}")
            assert (status, refusal(body).param) == (400, query.partition("=")[0])


async def test_a_file_belongs_to_its_key(tmp_path):
    """For another key it does not exist, in no call."""
    keys = str(tmp_path / "keys.json")
    alice, bob = (key_file.create(tmp_path / "keys.json", name=name)[1] for name in ("alice", "bob"))
    async with world(keys_file=keys) as it:
        path = f"/v1/files/{(await upload(it, key=alice))['id']}"
        for method, target in (("GET", path), ("GET", f"{path}/content"), ("DELETE", path)):
            assert (await call(it, method, target, key=bob))[0] == 404
        assert (await call(it, "GET", "/v1/files", key=bob))[1]["data"] == []
        assert (await call(it, "GET", path, key=alice))[0] == 200


INVALID = {
    "no purpose": ({"purpose": ""}, "purpose"),
    "an unknown purpose": ({"purpose": "fun"}, "purpose"),
    "an anchor alone": ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
    "too short": (
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": 1}, "expires_after[seconds]",
    ),
    "another anchor": (
        {"expires_after[anchor]": "now", "expires_after[seconds]": 3600}, "expires_after[anchor]",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), INVALID.values(), ids=INVALID)
async def test_invalid_fields_are_named(fields, param):
    """An invalid field is a 400 that names it, and nothing is stored."""
    async with world() as it:
        headers, body = form(LINES, **{"purpose": "batch", **fields})
        status, answer = await call(it, "POST", "/v1/files", headers, body)
        assert (status, refusal(answer).param) == (400, param)
        assert (await call(it, "GET", "/v1/files"))[1]["data"] == []


async def test_bounds_of_a_file_and_of_all(tmp_path):
    """Beyond either one an upload is a 413 that names the setting, and leaves nothing."""
    directory = tmp_path / "files"
    async with world(files_directory=str(directory), files_max_bytes=30_000, max_upload_bytes=25_000) as it:
        await upload(it, b"a" * 20_000)
        for size, setting in ((20_000, "files_max_bytes"), (30_000, "max_upload_bytes")):
            headers, body = form(b"a" * size, purpose="batch")
            status, answer = await call(it, "POST", "/v1/files", headers, body)
            assert status == 413
            assert setting in refusal(answer).message
        assert sum(path.name.lstrip(".").startswith("file-") for path in directory.iterdir()) == 1


async def pieces(*parts):
    for part in parts:
        yield part


async def test_files_expire_and_orphans_are_deleted(tmp_path):
    """An expired file is not found, and the next upload deletes it, and content without a row."""
    now = [1000.0]
    store = DirectoryFileStore(tmp_path, max_age=10_000, max_bytes=1000, timeout=5, wall_clock=lambda: now[0])
    short = await store.create("a", "x", "batch", pieces(b"1", b"2"), expires_after=3600)
    long = await store.create("a", "x", "batch", pieces(b"3"))
    orphan = tmp_path / ".file-orphan"
    orphan.touch()
    now[0] += 3600
    with pytest.raises(FileNotFound):
        await store.get("a", short.id)
    assert await store.list_files("a") == [long]
    now[0] = orphan.stat().st_mtime + 90_000
    async with aclosing(pieces(b"4" * 600, b"4" * 600)) as content:
        with pytest.raises(RequestError, match="files_max_bytes"):
            await store.create("a", "x", "batch", content)
    assert [path.name for path in tmp_path.iterdir() if "file-" in path.name] == []
    assert await store.delete_owner("a") == 0
    await store.aclose()
