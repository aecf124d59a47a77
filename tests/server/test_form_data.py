"""Forms with files: read piece by piece, bounded, on disk beyond 1 MiB, and sent on as they were."""

from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from qproxy.bootstrap.limits import request_limits
from qproxy.config import Config
from qproxy.server import form_data, request_context
from qproxy.server.form_data import FormData, form_flag, form_number, read_form
from qproxy.wire.errors import RequestError
from qproxy.wire.form_data import FormBody, FormPart

FORM = (
    b'preamble\r\n--b0\r\nContent-Disposition: form-data; name="model"\r\n\r\nasr\r\n'
    b'--b0\r\nContent-Disposition: form-data; name="include[]"\r\n\r\nlogprobs\r\n'
    b'--b0\r\nContent-Disposition: form-data; name="file"; filename="a \xc3\xa9.wav"\r\n'
    b"Content-Type: audio/wav\r\n\r\nRIFF\r\n--b\r\n\r\n--b0\r\n"
    b'Content-Disposition: form-data; name="model"\r\n\r\nlast\r\n--b0--\r\nepilogue'
)


async def read(body, *, content_type="multipart/form-data; boundary=b0", max_bytes=10_000_000, size=None):
    """Return the form that a request with this body in pieces of `size` bytes has, inside its context."""

    async def pieces(limit):
        step = size or len(body) or 1
        for start in range(0, len(body), step):
            await trio.lowlevel.checkpoint()
            yield body[start : start + step]

    none: Any = None
    async with AsyncExitStack() as stack:
        scope = {"path": "/v1/x", "headers": [(b"content-type", content_type.encode())]}
        request_context.bind(scope, stack, none, none, pieces)
        form = await read_form(request_limits(Config(max_upload_bytes=max_bytes)))
        contents = [await file.read() for file in form.files]
        return form, contents, request_context.record()


@pytest.mark.parametrize("size", [None, 1, 2, 7, 50])
async def test_a_form_at_any_split(size):
    """Fields, arrays, names and contents are the same however the bytes arrive."""
    form, contents, record = await read(FORM, size=size)
    assert form.fields == [("model", "asr"), ("include[]", "logprobs"), ("model", "last")]
    assert (form.text("model"), form.texts("include"), record.requested_model) == (
        "last",
        ["logprobs"],
        "last",
    )
    (file,) = form.files
    assert (file.name, file.filename, file.content_type) == ("file", "a é.wav", "audio/wav")
    assert contents == [b"RIFF\r\n--b\r\n"]
    assert form.file("file") is file


FAULTS = {
    "another type": (b"{}", {"content_type": "application/json"}, 415, "send multipart/form-data"),
    "no boundary": (FORM, {"content_type": "multipart/form-data"}, 415, "with a boundary"),
    "another boundary": (FORM, {"content_type": "multipart/form-data; boundary=no"}, 400, "not valid"),
    "an empty body": (b"", {}, 400, "not valid"),
    "cut": (FORM[:200], {}, 400, "not valid"),
    "a part without a name": (b"--b0\r\nContent-Disposition: form-data\r\n\r\n\r\n--b0--", {}, 400, "name"),
    "a part without a disposition": (b"--b0\r\nX: y\r\n\r\nx\r\n--b0--", {}, 400, "Content-Disposition"),
    "text that is not UTF-8": (FORM.replace(b"last", b"\xff"), {}, 400, "utf-8"),
    "a long head": (b"--b0\r\nX: " + b"y" * 17_000, {"size": 1000}, 413, "too long head"),
    "many parts": (
        b'--b0\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 1001 + b"--b0--",
        {}, 413, "too many",
    ),
    "large fields": (
        b'--b0\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"x" * 1_100_000,
        {}, 413, "fields",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "options", "status", "words"), FAULTS.values(), ids=FAULTS)
async def test_an_unusable_form_is_an_error(body, options, status, words):
    """Each fault has its status and a message that names it; nothing is kept."""
    with pytest.raises(RequestError, match=words) as caught:
        await read(body, **options)
    assert caught.value.status == status


async def test_a_large_file_is_on_disk_and_deleted_afterwards():
    """A file beyond 1 MiB leaves memory, is read from its start again and again, and is closed with the
    request."""
    content = bytes(range(256)) * 8192
    body = (
        b'--b0\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n'
        + content
        + b"\r\n--b0--\r\n"
    )
    form, contents, _ = await read(body, size=100_000)
    assert contents == [content]
    (file,) = form.files
    assert file._file._rolled
    assert file._file.closed


async def test_a_form_is_sent_on():
    """The body that is sent has the declared length and reads back as the same form, twice."""
    form, _, _ = await read(FORM)
    parts = [*form.parts()[:-1], FormPart("file", b"RIFF", 'a "b"\r\n.wav', "audio/wav")]
    body = FormBody(parts, "b0")
    for _ in range(2):
        sent = b"".join([chunk async for chunk in body.chunks()])
        assert len(sent) == body.length
        again, contents, _ = await read(sent, content_type=body.content_type)
        assert (again.fields, contents) == (form.fields, [b"RIFF"])
        assert again.files[0].filename == 'a "b"%0D%0A.wav'  # as browsers escape, and read, names


def test_values_of_fields():
    """Numbers and booleans are checked; the error names the field and what was expected."""
    form = FormData()
    form.fields = [("t", "0.5"), ("bad", "x"), ("nan", "nan"), ("stream", "TRUE"), ("off", "0")]
    assert (form_number(form, "t", 0, 1), form_number(form, "none")) == (0.5, None)
    assert (form_flag(form, "stream"), form_flag(form, "off"), form_flag(form, "none")) == (True, False, None)
    for name in ("bad", "nan"):
        with pytest.raises(RequestError, match="expected a number from 0 to 1") as caught:
            form_number(form, name, 0, 1)
        assert caught.value.param == name
    with pytest.raises(RequestError, match="expected true or false"):
        form_flag(form, "t")


def test_the_file_of_a_form():
    """A missing file, a text in its place and two files are errors that name the field."""
    form = FormData()
    with pytest.raises(RequestError, match="expected a file") as caught:
        form.file("file")
    assert caught.value.code == "missing_required_parameter"
    form.files = [form_data.UploadedFile("file", "a", None), form_data.UploadedFile("file[]", "b", None)]
    with pytest.raises(RequestError, match="expected one file"):
        form.file("file")
    assert len(form.uploads("file")) == 2
    for file in form.files:
        file.close()
