"""`/v1/uploads`: the fields of requests, the upload object, and its parts.

OpenAPI `CreateUploadRequest`, `AddUploadPartRequest`, `CompleteUploadRequest`, `Upload`, `UploadPart`.
"""

from __future__ import annotations

import re

from qproxy.wire.endpoints import validation
from qproxy.wire.events import JSON
from qproxy.wire.files import PURPOSES, clean_filename, expiry_seconds

LIFETIME = 3600
"""Seconds after which an upload expires."""
MAX_PARTS = 1000
_CREATE = {
    "bytes": validation.integer(1),
    "filename": validation.string,
    "mime_type": validation.string,
    "purpose": validation.one_of(PURPOSES),
}
CREATE_SCHEMA: JSON = {
    "type": "object",
    "required": list(_CREATE),
    "properties": validation.properties({**_CREATE, "expires_after": validation.object_}),
}
COMPLETE_SCHEMA: JSON = {
    "type": "object",
    "required": ["part_ids"],
    "properties": validation.properties({"part_ids": validation.array, "md5": validation.string}),
}
PART_SCHEMA: JSON = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "format": "binary"}},
}


def decode_create(body: JSON, id: str, now: int) -> tuple[dict[str, JSON], int | None]:
    """Return the object of a new upload, and the seconds of its file's `expires_after`. Raises
    RequestError."""
    fields = validation.body(body)
    for name in _CREATE:
        if fields.get(name) is None:
            validation.missing(name)
    checked = {name: check(fields[name], name) for name, check in _CREATE.items()}
    expiry = fields.get("expires_after")
    limits = {} if expiry is None else validation.object_(expiry, "expires_after")
    upload: dict[str, JSON] = {
        "id": id,
        "object": "upload",
        "bytes": checked["bytes"],
        "created_at": now,
        "expires_at": now + LIFETIME,
        "filename": clean_filename(str(checked["filename"])),
        "purpose": checked["purpose"],
        "status": "pending",
        "file": None,
    }
    return upload, expiry_seconds(limits.get("anchor"), limits.get("seconds"))


def decode_complete(body: JSON) -> tuple[list[str], str | None]:
    """Return the ids of the parts in order, and the lower-case MD5 sum. Raises RequestError."""
    fields = validation.body(body)
    if fields.get("part_ids") is None:
        validation.missing("part_ids")
    ids = validation.array(fields["part_ids"], "part_ids")
    parts = [validation.string(part, f"part_ids[{number}]") for number, part in enumerate(ids)]
    if not parts or len(set(parts)) < len(parts):
        validation.wrong_value("part_ids", "expected the ids of this upload's parts, each once.")
    if fields.get("md5") is None:
        return parts, None
    md5 = validation.string(fields["md5"], "md5").lower()
    if re.fullmatch("[0-9a-f]{32}", md5) is None:
        validation.wrong_value("md5", "expected 32 hexadecimal digits.")
    return parts, md5


def part_id(file: str) -> str:
    """Return the id of the part that is stored in a file."""
    return f"part_{file.removeprefix('file-')}"


def part_object(id: str, upload: str, created: int) -> dict[str, JSON]:
    """Return the object of a part."""
    return {"id": id, "object": "upload.part", "created_at": created, "upload_id": upload}
