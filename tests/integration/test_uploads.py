"""Uploads of clients: files that arrive in parts, each key's own."""

import hashlib

import pytest
import trio
from openai.types import FileObject, Upload
from openai.types.uploads import UploadPart

from qproxy.backends.local import key_file
from qproxy.backends.local.file_store import DirectoryFileStore
from qproxy.backends.local.upload_store import SqliteUploads
from qproxy.server.upload_store import StoredUpload, UploadNotFound
from qproxy.wire import json_codec
from tests.helpers import world
from tests.integration.test_files import call, pieces
from tests.openai_types import judge, refusal

FIELDS = {"bytes": 6, "filename": "a/lines.jsonl", "mime_type": "text/jsonl", "purpose": "batch"}
JSON_TYPE = {"content-type": "application/json"}


async def post(it, path, body=None, key=None):
    """Return the status and body of a request with JSON."""
    return await call(it, "POST", f"/v1/uploads{path}", JSON_TYPE, json_codec.dumps(body or {}), key)


async def add(it, upload, content, key=None):
    """Return the status and body of a part's upload."""
    head = b'--b\r\ncontent-disposition: form-data; name="data"; filename="blob"\r\n\r\n'
    form = {"content-type": "multipart/form-data; boundary=b"}
    return await call(it, "POST", f"/v1/uploads/{upload}/parts", form, head + content + b"\r\n--b--", key)


async def begin(it, *parts, **fields):
    """Return the id of an upload, and those of its parts."""
    status, made = await post(it, "", {**FIELDS, **fields})
    assert status == 200, made
    added = [await add(it, made["id"], part) for part in parts]
    assert [status for status, _ in added] == [200] * len(parts)
    return made["id"], [judge(UploadPart, part).id for _, part in added]


async def test_parts_become_one_file_in_the_order_of_the_completion(tmp_path):
    """The completed upload has the file, which is read back; parts are no files of the client's, and go."""
    directory = tmp_path / "files"
    expiry = {"anchor": "created_at", "seconds": 3600}
    async with world(files_directory=str(directory)) as it:
        upload, ids = await begin(it, b"def", b"abc", expires_after=expiry)
        assert (await call(it, "GET", "/v1/files"))[1]["data"] == []
        assert (await call(it, "GET", f"/v1/files/{ids[0].replace('part_', 'file-')}"))[0] == 404
        ending = {"part_ids": ids[::-1], "md5": hashlib.md5(b"abcdef").hexdigest().upper()}
        status, body = await post(it, f"/{upload}/complete", ending)
        done = judge(Upload, body)
        assert (status, done.status, done.expires_at - done.created_at) == (200, "completed", 3600)
        file = judge(FileObject, body["file"])
        assert (file.bytes, file.filename, file.purpose) == (6, "lines.jsonl", "batch")
        assert file.expires_at == file.created_at + 3600
        assert await call(it, "GET", f"/v1/files/{file.id}/content") == (200, b"abcdef")
        assert await post(it, f"/{upload}/complete", ending) == (200, body)  # a repeated call
        assert [path.name for path in directory.iterdir() if "file-" in path.name] == [file.id]
        for status, answer in (await add(it, upload, b"x"), await post(it, f"/{upload}/cancel")):
            assert (status, refusal(answer).code) == (400, "upload_not_pending")


async def test_a_cancelled_upload_leaves_nothing(tmp_path):
    """Its parts are deleted, and it takes no more of them."""
    directory = tmp_path / "files"
    async with world(files_directory=str(directory)) as it:
        upload, ids = await begin(it, b"abcdef")
        for _ in range(2):
            status, body = await post(it, f"/{upload}/cancel")
            assert (status, judge(Upload, body).status) == (200, "cancelled")
        assert [path.name for path in directory.iterdir() if "file-" in path.name] == []
        for status, answer in (
            await add(it, upload, b"x"), await post(it, f"/{upload}/complete", {"part_ids": ids})
        ):  # fmt: skip
            assert (status, refusal(answer).code) == (400, "upload_not_pending")


INVALID = {
    "no part_ids": (lambda ids: {}, "part_ids"),
    "no parts": (lambda ids: {"part_ids": []}, "part_ids"),
    "a part twice": (lambda ids: {"part_ids": [ids[0], ids[0]]}, "part_ids"),
    "too few bytes": (lambda ids: {"part_ids": ids[:1]}, "part_ids"),
    "another part": (lambda ids: {"part_ids": [ids[0], "part_none"]}, "part_ids[1]"),
    "another sum": (lambda ids: {"part_ids": ids, "md5": "0" * 32}, "md5"),
    "no sum": (lambda ids: {"part_ids": ids, "md5": "x"}, "md5"),
}


@pytest.mark.parametrize(("body", "param"), INVALID.values(), ids=INVALID)
async def test_an_invalid_completion_changes_nothing(body, param):
    """It is a 400 that names the field; the right one succeeds afterwards."""
    async with world() as it:
        upload, ids = await begin(it, b"abc", b"def")
        status, answer = await post(it, f"/{upload}/complete", body(ids))
        assert (status, refusal(answer).param) == (400, param)
        assert (await call(it, "GET", "/v1/files"))[1]["data"] == []
        assert (await post(it, f"/{upload}/complete", {"part_ids": ids}))[0] == 200


INVALID_UPLOADS = {
    **{f"no {name}": ({name: None}, 400, name) for name in FIELDS},
    "an unknown purpose": ({"purpose": "fun"}, 400, "purpose"),
    "no bytes": ({"bytes": 0}, 400, "bytes"),
    "too many bytes": ({"bytes": 30_001}, 413, "bytes"),
    "another anchor": ({"expires_after": {"anchor": "now", "seconds": 3600}}, 400, "expires_after[anchor]"),
}


@pytest.mark.parametrize(("fields", "status", "param"), INVALID_UPLOADS.values(), ids=INVALID_UPLOADS)
async def test_invalid_uploads_are_named(fields, status, param):
    """An invalid field is an error that names it."""
    async with world(files_max_bytes=30_000) as it:
        answered, answer = await post(it, "", {**FIELDS, **fields})
        assert (answered, refusal(answer).param) == (status, param)


async def test_bounds_of_parts():
    """Parts are together within the upload's bytes, one is within max_upload_bytes; a completion needs no
    room beside its parts."""
    async with world(files_max_bytes=30_000, max_upload_bytes=20_000) as it:
        upload, ids = await begin(it, b"a" * 15_000, bytes=30_000)
        for size, code, word in (
            (20_000, 413, "max_upload_bytes"),
            (15_001, 400, "15,000"),
            (0, 400, "1 to"),
        ):
            status, answer = await add(it, upload, b"a" * size)
            assert status == code
            assert word in refusal(answer).message
        ids.append((await add(it, upload, b"b" * 15_000))[1]["id"])
        assert (await post(it, f"/{upload}/complete", {"part_ids": ids}))[0] == 200


async def test_an_upload_belongs_to_its_key(tmp_path):
    """For another key it does not exist, in no call."""
    alice, bob = (key_file.create(tmp_path / "keys.json", name=name)[1] for name in ("alice", "bob"))
    async with world(keys_file=str(tmp_path / "keys.json")) as it:
        upload = (await post(it, "", FIELDS, alice))[1]["id"]
        part = (await add(it, upload, b"abcdef", alice))[1]["id"]
        ending = {"part_ids": [part]}
        for status, answer in (
            await add(it, upload, b"x", bob),
            await post(it, f"/{upload}/complete", ending, bob),
            await post(it, f"/{upload}/cancel", {}, bob),
            await add(it, "<id>", b"x", bob),
        ):
            assert (status, refusal(answer).param) == (404, "upload_id")
        assert (await post(it, f"/{upload}/complete", ending, alice))[0] == 200


async def test_uploads_expire():
    """After an hour an upload is expired, and cannot be finished; a day later it does not exist."""
    now = [1000.0]
    store = SqliteUploads(None, max_bytes=10, timeout=5, wall_clock=lambda: now[0])
    made = {"id": "upload_1", "bytes": 1, "status": "pending", "expires_at": 4600, "file": None}
    await store.create("a", StoredUpload(made, None))
    now[0] += 3600
    assert (await store.get("a", "upload_1")).object == {**made, "status": "expired"}
    assert not await store.finish("a", "upload_1", "completed", {})
    now[0] += 90_000
    await store.create("a", StoredUpload({**made, "id": "upload_2"}, None))
    with pytest.raises(UploadNotFound):
        await store.get("a", "upload_1")
    assert await store.delete_owner("a") == 1
    await store.aclose()


async def test_completions_at_the_same_time_make_one_file():
    """A client that repeats a completion while the first one runs gets no second file."""
    answers = []
    async with world() as it:
        upload, ids = await begin(it, b"abc", b"def")

        async def complete():
            answers.append(await post(it, f"/{upload}/complete", {"part_ids": ids}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(complete)
            nursery.start_soon(complete)
        done = [body["file"]["id"] for status, body in answers if status == 200]
        listed = (await call(it, "GET", "/v1/files"))[1]["data"]
        assert [file["id"] for file in listed] == list(dict.fromkeys(done))
        status, body = await post(it, f"/{upload}/complete", {"part_ids": ids})
        assert (status, body["file"]) == (200, listed[0])


async def test_parts_are_deleted_with_the_files_of_their_key(tmp_path):
    """Their owner is below the key's, and no other key's of a similar name."""
    store = DirectoryFileStore(tmp_path, max_age=10_000, max_bytes=1000, timeout=5)
    for owner in ("a", "a/upload_1", "ab/upload_1"):
        await store.create(owner, "x", "batch", pieces(b"1"))
    assert await store.delete_owner("a") == 2
    assert len(await store.list_files("ab/upload_1")) == 1
    await store.aclose()
