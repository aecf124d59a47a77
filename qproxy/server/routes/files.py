"""Files: uploaded, listed, read and deleted.

A file belongs to its client's API key, by the full digest; for another key it does not exist.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, NoReturn
from urllib.parse import quote

from quart import request

from qproxy.server import request_context
from qproxy.server.file_store import FileNotFound, StoredFile
from qproxy.server.form_data import read_form
from qproxy.server.http_response import HTTPResponse, StreamingBody, json_response
from qproxy.server.routes.stored_items import client_owner, page_query
from qproxy.server.state import Route, StateHolder
from qproxy.wire import files
from qproxy.wire.endpoints import OPENAI
from qproxy.wire.errors import RequestError


class FileRoutes:
    """The views of files, and their routes."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        yield Route("/files", ("POST",), self._create, api=OPENAI, fast_path=True)
        yield Route("/files", ("GET",), self._list, api=OPENAI)
        yield Route("/files/<id>", ("GET",), self._get, api=OPENAI)
        yield Route("/files/<id>", ("DELETE",), self._delete, api=OPENAI)
        yield Route("/files/<id>/content", ("GET",), self._content, api=OPENAI)

    async def _create(self) -> HTTPResponse:
        form = await read_form(self._server.state.request_limits)
        upload, purpose = form.file("file"), files.check_purpose(form.text("purpose"))
        expires_after = files.expiry_seconds(
            form.text("expires_after[anchor]"), form.text("expires_after[seconds]")
        )
        name = files.clean_filename(upload.filename)
        async with aclosing(upload.chunks()) as content:
            stored = await self._server.state.files.create(
                client_owner(), name, purpose, content, expires_after=expires_after
            )
        return json_response(describe_file(stored))

    async def _list(self) -> HTTPResponse:
        found = await self._server.state.files.list_files(client_owner(), request.args.get("purpose"))
        return json_response(files.list_page([describe_file(file) for file in found], page_query()))

    async def _get(self, id: str) -> HTTPResponse:
        return json_response(describe_file(await self._find(id)))

    async def _delete(self, id: str) -> HTTPResponse:
        try:
            await self._server.state.files.delete(client_owner(), id)
        except FileNotFound:
            file_not_found(id)
        return json_response({"id": id, "object": "file", "deleted": True})

    async def _content(self, id: str) -> HTTPResponse:
        file = await self._find(id)
        content = self._server.state.files.read(file)
        request_context.stack().push_async_callback(content.aclose)
        first = b""
        try:
            first = await anext(content, b"")
        except FileNotFound:  # deleted since
            file_not_found(id)
        return HTTPResponse(
            _Content(first, content),
            content_type="application/octet-stream",
            headers={
                "content-length": str(file.size),
                "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
            },
        )

    async def _find(self, id: str) -> StoredFile:
        try:
            return await self._server.state.files.get(client_owner(), id)
        except FileNotFound:
            file_not_found(id)


class _Content(StreamingBody):
    """The content of a file, piece by piece."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        self._first = first
        self._rest = rest

    async def __anext__(self) -> bytes:
        first, self._first = self._first, b""
        return first or await anext(self._rest)


def describe_file(file: StoredFile) -> dict[str, Any]:
    """Return the object of a stored file."""
    return files.file_object(
        file.id,
        filename=file.filename,
        purpose=file.purpose,
        bytes=file.size,
        created=file.created,
        expires=file.expires,
    )


def file_not_found(id: str, *, param: str = "id", status: int = 404) -> NoReturn:
    raise RequestError(f"No such File object: {id[:100]}", status=status, param=param)
