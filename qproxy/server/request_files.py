"""The stored files that a request names: loaded, and put into its body.

A file belongs to its client's API key; another key's does not exist. Body and files together are within
`max_body_bytes`.
"""

from __future__ import annotations

from contextlib import aclosing

from qproxy.relay.event_stream import apart
from qproxy.server.file_store import FileNotFound, FileStore
from qproxy.server.request_body import RequestLimits, body_too_large
from qproxy.wire.endpoints.file_parts import (
    FileContent,
    FileReference,
    file_references,
    parse_file,
    reject_file,
    replace_files,
)
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON
from qproxy.wire.raw_json import RawBody


async def resolve_files(body: JSON, store: FileStore, owner: str, limits: RequestLimits) -> JSON:
    """Return the body with the content of the files that it names. Raises RequestError."""
    loaded: dict[str, FileContent] = {}
    size = body.raw_fields.size if isinstance(body, RawBody) else 0
    for reference in await apart(file_references, body):
        content = loaded.get(reference.id)
        if content is None:
            content = await _load(reference, store, owner, limits, limits.max_body_bytes - size)
            loaded[reference.id] = content
        elif reference.is_image and content.image is None:
            reject_file(reference, reference.id)
        size += len(content.text if content.image is None else content.image)
        if size > limits.max_body_bytes:
            raise _too_large(limits)
    return await apart(replace_files, body, loaded)


async def _load(
    reference: FileReference, store: FileStore, owner: str, limits: RequestLimits, room: int
) -> FileContent:
    """Return the content of a file. Raises RequestError if it cannot be sent to a model."""
    try:
        file = await store.get(owner, reference.id)
        if file.size > room:
            raise _too_large(limits)
        data = bytearray()
        async with aclosing(store.read(file)) as pieces:
            async for piece in pieces:
                data += piece
    except FileNotFound:
        message = f"No such File object: {reference.id[:100]}"
        raise RequestError(message, param=reference.param, code="file_not_found") from None
    content = await apart(parse_file, file.filename, bytes(data))
    if content is None or (reference.is_image and content.image is None):
        reject_file(reference, file.filename)
    return content


def _too_large(limits: RequestLimits) -> RequestError:
    return body_too_large(limits, "request body with its files")
