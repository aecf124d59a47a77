"""`/v1/files`: the fields of requests, the file object, and pages of lists.

OpenAPI `CreateFileRequest`, `OpenAIFile`, `ListFilesResponse`, `DeleteFileResponse`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qproxy.wire.endpoints import validation
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON

PURPOSES = ("assistants", "batch", "evals", "file-extract", "fine-tune", "user_data", "vision")
"""OpenAI's purposes, and Qwen's `file-extract`."""
MIN_EXPIRY, MAX_EXPIRY = 3600, 30 * 86400
MAX_PAGE = 10_000
MAX_NAME = 255


def check_purpose(purpose: str | None) -> str:
    """Return the purpose of an upload. Raises RequestError."""
    if purpose is None:
        return validation.missing("purpose")
    checked: str = validation.one_of(PURPOSES)(purpose, "purpose")
    return checked


def expiry_seconds(anchor: str | None, seconds: str | int | None, name: str = "expires_after") -> int | None:
    """Return the seconds of `expires_after`, None without it. Raises RequestError."""
    if anchor is None and seconds is None:
        return None
    validation.one_of(("created_at",))(anchor, f"{name}[anchor]")
    text = str(seconds)
    if not text.isascii() or not text.isdecimal() or not MIN_EXPIRY <= int(text[:9]) <= MAX_EXPIRY:
        message = f"expected an integer from {MIN_EXPIRY} to {MAX_EXPIRY}, but got {text[:40]!r}."
        validation.wrong_value(f"{name}[seconds]", message)
    return int(text)


def clean_filename(name: str) -> str:
    """Return the last part of a filename, without control characters, bounded."""
    name = name.replace("\\", "/").rpartition("/")[2]
    return "".join(char for char in name if char.isprintable())[:MAX_NAME] or "file"


def file_object(
    id: str, *, filename: str, purpose: str, bytes: int, created: int, expires: int | None
) -> dict[str, JSON]:
    """Return the object of a stored file."""
    described: dict[str, JSON] = {
        "id": id,
        "object": "file",
        "bytes": bytes,
        "created_at": created,
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
    }
    return described if expires is None else {**described, "expires_at": expires}


def list_page(
    items: Sequence[JSON], query: Mapping[str, str], *, default: int = MAX_PAGE, maximum: int = MAX_PAGE
) -> dict[str, JSON]:
    """Return a page of items, which are the oldest first, by the parameters of a query; newest first by
    default. Raises RequestError."""
    if validation.one_of(("asc", "desc"))(query.get("order", "desc"), "order") == "desc":
        items = items[::-1]
    text = query.get("limit", str(default))
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= maximum:
        validation.wrong_value("limit", f"expected an integer from 1 to {maximum}, but got {text[:40]!r}.")
    ids = [item["id"] for item in items]
    after = query.get("after")
    if after is not None:
        if after not in ids:
            message = f"Unknown item {after[:100]!r} in 'after'."
            raise RequestError(message, param="after", code="invalid_value")
        items = items[ids.index(after) + 1 :]
    shown = list(items[: int(text)])
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(items) > len(shown),
    }
