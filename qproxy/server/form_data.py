"""Forms with files (multipart/form-data, RFC 7578), read while they arrive.

Werkzeug's sans-I/O decoder splits the body; a file of over 1 MiB is on disk. The files are closed with the
request, whatever happens to it.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from tempfile import SpooledTemporaryFile
from typing import NoReturn

import trio
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio import multipart
from werkzeug.sansio.multipart import MultipartDecoder, State

from qproxy.server import request_context
from qproxy.server.request_body import RequestLimits
from qproxy.telemetry.records import MAX_NAME_LENGTH
from qproxy.wire.errors import RequestError
from qproxy.wire.form_data import FormPart
from qproxy.wire.http_request import Upload

FORM_TYPE = "multipart/form-data"
MEMORY_BYTES = 1024 * 1024
"""Bytes of a file that are kept in memory."""
MAX_PARTS = 1000
MAX_PART_HEAD = 16 * 1024
MAX_FIELD_BYTES = 1024 * 1024
"""Bytes of all fields that are no files."""
BUFFER_BYTES = 256 * 1024
"""Bytes that the decoder may hold."""
PIECE = 64 * 1024


class UploadedFile(Upload):
    """A file of a form."""

    def __init__(self, name: str, filename: str, content_type: str | None) -> None:
        self.name = name
        self.filename = filename
        self.content_type = content_type
        self.length = 0
        self._file = SpooledTemporaryFile[bytes](max_size=MEMORY_BYTES)

    def __repr__(self) -> str:
        return f"<UploadedFile {self.name} of {self.length} bytes>"

    async def write(self, data: bytes) -> None:
        """Append to the file."""
        self.length += len(data)
        if self.length <= MEMORY_BYTES:
            self._file.write(data)
        else:
            await trio.to_thread.run_sync(self._file.write, data)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the content from its start."""
        offset = 0
        while piece := await self._read_at(offset, PIECE):
            offset += len(piece)
            yield piece

    async def read(self) -> bytes:
        """Return the whole content."""
        return await self._read_at(0, self.length)

    async def _read_at(self, offset: int, size: int) -> bytes:
        def read() -> bytes:
            self._file.seek(offset)
            return self._file.read(size)

        if self.length <= MEMORY_BYTES:
            await trio.lowlevel.checkpoint()
            return read()
        return await trio.to_thread.run_sync(read)

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


class FormData:
    """The fields and files of a form, in order."""

    def __init__(self) -> None:
        self.fields: list[tuple[str, str]] = []
        self.files: list[UploadedFile] = []

    def __repr__(self) -> str:
        return f"<FormData of {len(self.fields)} fields and {len(self.files)} files>"

    def text(self, name: str) -> str | None:
        """Return a field's value, the last of several."""
        return next((value for field, value in reversed(self.fields) if field == name), None)

    def texts(self, name: str) -> list[str]:
        """Return all values of an array: of fields named `name` or `name[]`."""
        return [value for field, value in self.fields if field in (name, f"{name}[]")]

    def uploads(self, name: str) -> list[UploadedFile]:
        """Return the files of the fields named `name` or `name[]`."""
        return [file for file in self.files if file.name in (name, f"{name}[]")]

    def file(self, name: str) -> UploadedFile:
        """Return the file of a field. Raises RequestError unless there is exactly one."""
        found = self.uploads(name)
        if len(found) == 1:
            return found[0]
        message = "expected one file" if found else "expected a file, as a part with a filename"
        code = "invalid_value" if found or self.text(name) is not None else "missing_required_parameter"
        raise RequestError(f"Invalid value for '{name}': {message}.", param=name, code=code)

    def parts(self) -> list[FormPart]:
        """Return the form as parts to send on: the fields, then the files."""
        fields = [FormPart(name, value) for name, value in self.fields]
        return [*fields, *(FormPart(f.name, f, f.filename, f.content_type) for f in self.files)]


async def read_form(limits: RequestLimits) -> FormData:
    """Read the current request's body as a form. Raises RequestError when it is unusable or too large."""
    header = request_context.headers().get("content-type") or ""
    mimetype, options = parse_options_header(header)
    boundary = options.get("boundary", "")
    if mimetype.lower() != FORM_TYPE or not boundary:
        message = f"Unsupported content type '{header[:100]}': send {FORM_TYPE} with a boundary."
        raise RequestError(message, status=415, code="unsupported_media_type")
    if request_context.current().coding:
        message = "A form with files cannot have a Content-Encoding: send it as it is."
        raise RequestError(message, status=415, code="unsupported_media_type")
    reader = _FormReader(boundary.encode("latin-1", "replace"))
    try:
        async with aclosing(request_context.body_pieces(limits.max_upload_bytes)) as pieces:
            async for piece in pieces:
                for start in range(0, len(piece), PIECE):
                    await reader.feed(piece[start : start + PIECE])
        await reader.feed(None)
    except RequestEntityTooLarge:
        raise _too_large("The form has too many parts, or a part with a too long head.") from None
    except (ValueError, AttributeError) as error:
        raise RequestError(f"The form is not valid {FORM_TYPE}: {str(error)[:200]}.") from None
    model = reader.form.text("model")
    if model is not None:
        request_context.record().requested_model = model[:MAX_NAME_LENGTH]
    return reader.form


class _FormReader:
    """Decodes a form piece by piece."""

    def __init__(self, boundary: bytes) -> None:
        self.form = FormData()
        self._decoder = MultipartDecoder(boundary, BUFFER_BYTES, max_parts=MAX_PARTS)
        self._held = b""
        self._longest_delimiter = len(b"\r\n--" + boundary + b"--\r\n")
        self._part: multipart.Field | UploadedFile | None = None
        self._text = bytearray()
        self._field_bytes: float = 0

    async def feed(self, data: bytes | None) -> None:
        """Take the next piece, None for the end. Raises ValueError for an invalid form."""
        decoder = self._decoder
        decoder.receive_data(self._held if data is None else self._hold_delimiter(data))
        if data is None:
            decoder.receive_data(None)
        while not isinstance(event := decoder.next_event(), multipart.NeedData | multipart.Epilogue):
            if isinstance(event, multipart.File):
                self._part = file = UploadedFile(
                    _checked(event.name), event.filename, event.headers.get("content-type")
                )
                request_context.stack().callback(file.close)
            elif isinstance(event, multipart.Field):
                self._part = event
                _checked(event.name)
            elif isinstance(event, multipart.Data):
                await self._add(event)
        if decoder.state is State.PART and len(decoder.buffer) > MAX_PART_HEAD:
            raise RequestEntityTooLarge

    def _hold_delimiter(self, data: bytes) -> bytes:
        """Return what may be decoded: Werkzeug 3.1.9 takes a line break for content if the delimiter after it
        is cut within its final dashes."""
        data = self._held + data
        tail = max(0, len(data) - self._longest_delimiter)
        breaks = [at for mark in (b"\r", b"\n") if (at := data.find(mark, tail)) >= 0]
        end = min(breaks, default=len(data))
        self._held = data[end:]
        return data[:end]

    async def _add(self, event: multipart.Data) -> None:
        """Add data to the current part."""
        part = self._part
        if isinstance(part, UploadedFile):
            await part.write(event.data)
            if not event.more_data:
                self.form.files.append(part)
            return
        assert part is not None
        self._text += event.data
        self._field_bytes += len(event.data)
        if self._field_bytes > MAX_FIELD_BYTES:
            raise _too_large(f"The fields of the form are larger than {MAX_FIELD_BYTES:,} bytes.")
        if not event.more_data:
            self.form.fields.append((part.name, self._text.decode()))
            self._text = bytearray()


def _checked(name: str | None) -> str:
    """Return the name of a part. Raises ValueError without one."""
    if not name:
        raise ValueError("a part has no name")
    return name


def _too_large(message: str) -> RequestError:
    return RequestError(message, status=413, code="request_too_large")


def form_number(form: FormData, name: str, low: float = -math.inf, high: float = math.inf) -> float | None:
    """Return a number of a form, None if it is not there. Raises RequestError."""
    text = form.text(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        _reject(name, text, f"a number from {low:g} to {high:g}")
    return value


def form_flag(form: FormData, name: str) -> bool | None:
    """Return a boolean of a form, None if it is not there. Raises RequestError."""
    text = form.text(name)
    known = {None: None, "true": True, "1": True, "false": False, "0": False}
    if text is not None and text.lower() not in known:
        _reject(name, text, "true or false")
    return known[None if text is None else text.lower()]


def _reject(name: str, text: str, expected: str) -> NoReturn:
    message = f"Invalid value for '{name}': expected {expected}, got {text[:100]!r}."
    raise RequestError(message, param=name, code="invalid_value")
