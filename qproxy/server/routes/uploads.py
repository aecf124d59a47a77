"""Uploads: files that arrive in parts, which become one file when the upload is completed.

An upload belongs to its client's API key, by the full digest; for another key it does not exist. A repeated
completion or cancellation gets the same response again.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import NoReturn

from qproxy.server.file_store import FileNotFound, FileStore, StoredFile
from qproxy.server.form_data import read_form
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.request_body import read_json
from qproxy.server.routes.files import describe_file
from qproxy.server.routes.stored_items import client_owner
from qproxy.server.state import Route, ServerState, StateHolder
from qproxy.server.upload_store import StoredUpload, UploadNotFound, parts_owner
from qproxy.wire.endpoints import OPENAI, validation
from qproxy.wire.errors import RequestError
from qproxy.wire.files import uploads


class UploadRoutes:
    """The views of uploads, and their routes."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        yield Route("/uploads", ("POST",), self._create, api=OPENAI, schema=uploads.CREATE_SCHEMA)
        yield Route(
            "/uploads/<id>/parts", ("POST",), self._add_part, api=OPENAI, schema=uploads.PART_SCHEMA,
            form=True, fast_path=True,
        )  # fmt: skip
        yield Route(
            "/uploads/<id>/complete", ("POST",), self._complete, api=OPENAI, schema=uploads.COMPLETE_SCHEMA
        )
        yield Route("/uploads/<id>/cancel", ("POST",), self._cancel, api=OPENAI)

    async def _create(self) -> HTTPResponse:
        state = self._server.state
        body = await read_json(state.request_limits, state.body_logger)
        upload, expires_after = uploads.decode_create(
            body, f"upload_{secrets.token_hex(16)}", int(time.time())
        )
        await state.uploads.create(client_owner(), StoredUpload(upload, expires_after))
        return json_response(upload)

    async def _add_part(self, id: str) -> HTTPResponse:
        state, owner = self._server.state, client_owner()
        await _find_pending(state, owner, id)  # before its content arrives
        form = await read_form(state.request_limits)
        data = form.file("data")
        described = (await _find_pending(state, owner, id)).object
        parts = await state.files.list_files(parts_owner(owner, id))
        room = described["bytes"] - sum(part.size for part in parts)
        if not 0 < data.length <= room:
            message = f"expected 1 to {room:,} bytes (what the upload's 'bytes' leave), got {data.length:,}."
            validation.wrong_value("data", message)
        if len(parts) >= uploads.MAX_PARTS:
            message = f"An upload has at most {uploads.MAX_PARTS:,} parts: send larger ones."
            raise RequestError(message, param="data", code="invalid_value")
        seconds = max(1, described["expires_at"] - int(time.time()))
        async with aclosing(data.chunks()) as content:
            part = await state.files.create(
                parts_owner(owner, id), "part", described["purpose"], content, expires_after=seconds
            )
        return json_response(uploads.part_object(uploads.part_id(part.id), id, part.created))

    async def _complete(self, id: str) -> HTTPResponse:
        state, owner = self._server.state, client_owner()
        ids, md5 = uploads.decode_complete(await read_json(state.request_limits, state.body_logger))
        upload = await _find(state, owner, id)
        if upload.object["status"] != "completed":
            await _find_pending(state, owner, id)
            error = None
            try:
                await _join(state, owner, upload, ids, md5)
            except RequestError as raised:
                error = raised
            upload = await _find(state, owner, id)
            if error is not None and upload.object["status"] != "completed":  # by a call at the same time
                raise error
        return json_response(upload.object)

    async def _cancel(self, id: str) -> HTTPResponse:
        state, owner = self._server.state, client_owner()
        if (await _find(state, owner, id)).object["status"] != "cancelled":
            if not await state.uploads.finish(owner, id, "cancelled"):
                await _find_pending(state, owner, id)
            await state.files.delete_owner(parts_owner(owner, id))
        return json_response((await _find(state, owner, id)).object)


async def _join(
    state: ServerState, owner: str, upload: StoredUpload, ids: list[str], md5: str | None
) -> None:
    """Make the file of an upload from its parts, and delete them. Raises RequestError."""
    described = upload.object
    found = await state.files.list_files(parts_owner(owner, described["id"]))
    stored = {uploads.part_id(part.id): part for part in found}
    for number, part in enumerate(ids):
        if part not in stored:
            validation.wrong_value(f"part_ids[{number}]", f"the upload has no part {part[:100]!r}.")
    parts = [stored[part] for part in ids]
    size = sum(part.size for part in parts)
    if size != described["bytes"]:
        message = f"the parts have {size:,} bytes, but 'bytes' of the upload is {described['bytes']:,}."
        validation.wrong_value("part_ids", message)
    async with aclosing(_content(state.files, parts, md5)) as content:
        file = await state.files.create(
            owner,
            described["filename"],
            described["purpose"],
            content,
            expires_after=upload.file_expires_after,
            replaces=parts,
        )
    if not await state.uploads.finish(owner, described["id"], "completed", describe_file(file)):
        await state.files.delete(owner, file.id)
        if (await _find(state, owner, described["id"])).object["status"] != "completed":
            await _find_pending(state, owner, described["id"])
    await state.files.delete_owner(parts_owner(owner, described["id"]))


async def _content(store: FileStore, parts: list[StoredFile], md5: str | None) -> AsyncGenerator[bytes, None]:
    """Yield the content of parts, one after the other. Raises RequestError if its MD5 sum is another one."""
    digest = hashlib.md5(usedforsecurity=False)
    for part in parts:
        try:
            async with aclosing(store.read(part)) as pieces:
                async for piece in pieces:
                    digest.update(piece)
                    yield piece
        except FileNotFound:
            message = f"{uploads.part_id(part.id)!r} is gone: another call has ended the upload."
            validation.wrong_value("part_ids", message)
    if md5 is not None and digest.hexdigest() != md5:
        validation.wrong_value("md5", f"the parts in this order have the sum {digest.hexdigest()}.")


async def _find(state: ServerState, owner: str, id: str) -> StoredUpload:
    try:
        return await state.uploads.get(owner, id)
    except UploadNotFound:
        _upload_not_found(id)


async def _find_pending(state: ServerState, owner: str, id: str) -> StoredUpload:
    """Return an upload that takes parts. Raises RequestError for another one."""
    upload = await _find(state, owner, id)
    status = upload.object["status"]
    if status != "pending":
        message = f"The upload is {status}: create another one."
        raise RequestError(message, param="upload_id", code="upload_not_pending")
    return upload


def _upload_not_found(id: str) -> NoReturn:
    raise RequestError(f"No such Upload object: {id[:100]}", status=404, param="upload_id")
