"""The pictures of one request: as many upstream requests as a model needs for them, and their downloads.

A link is valid for a day; a client that wants the pictures themselves gets them from allowed hosts only.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack

from qproxy.accounts import Account
from qproxy.relay.exchange import exchange, read_json, reject_ignored
from qproxy.relay.fan_out import merge_records, run_bounded
from qproxy.relay.relay import Relay
from qproxy.relay.result_files import download_result
from qproxy.telemetry import RelayRecord
from qproxy.transport import UpstreamResponse
from qproxy.wire.dialects import UpstreamTarget
from qproxy.wire.errors import RequestError, UpstreamError
from qproxy.wire.events import JSON
from qproxy.wire.form_data import FormBody, FormPart
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.images import ImageInput, MadeImages
from qproxy.wire.images.size import fit_size
from qproxy.wire.images.upstream import open_request, parse_links, studio_request

PARALLEL = 4
MAX_IMAGE = 32 * 1024 * 1024
"""Bytes of one picture."""
CONTENT_FILTER = "content_filter"
CONTENT_POLICY = "content_policy_violation"
"""The code that clients of pictures look for."""


async def make_images(relay: Relay, request: ImageInput, record: RelayRecord) -> MadeImages:
    """Return the pictures of a model of Model Studio. Raises the first QproxyError."""
    spec = relay.policy.catalog.get(relay.names.route(request.model).served)
    reject_ignored(relay, record, request.ignored)
    limits = spec.limits or {}
    most = limits.get("inputs")
    if most is not None and len(request.images) > most:
        message = f"The model {request.model!r} takes at most {most} pictures, but got {len(request.images)}."
        raise RequestError(message, param="image", code="invalid_value")
    size = None if request.size is None else fit_size(request.size, spec)
    if size is not None and f"{size[0]}x{size[1]}" != request.size:
        _note_size(relay, record, request, size)
    each = limits.get("images", request.n)
    counts = [min(each, request.n - start) for start in range(0, request.n, each)]
    links: list[list[str]] = [[] for _ in counts]

    async def send(number: int) -> None:
        part = RelayRecord()
        try:
            links[number] = await _send(relay, request, counts[number], size, part)
        finally:
            merge_records(record, part)

    record.model = request.model
    try:
        await run_bounded(send, len(counts), PARALLEL)
    except UpstreamError as error:
        raise _as_policy_violation(error) from None
    found = [link for part in links for link in part]
    record.units["images"] = len(found)
    files = await _download(relay, found) if request.base64 or request.stream else []
    return MadeImages(found, files, size)


def _note_size(relay: Relay, record: RelayRecord, request: ImageInput, size: tuple[int, int]) -> None:
    """Record that the size was changed. Raises RequestError with `strict_params`."""
    made = f"{size[0]}x{size[1]}"
    if relay.policy.strict_params:
        message = f"The model makes no pictures of {request.size}; the nearest size is {made}."
        raise RequestError(message, param="size", code="unsupported_value")
    record.rule_notes = (*record.rule_notes, f"size {request.size} made {made}")


async def _send(
    relay: Relay, request: ImageInput, n: int, size: tuple[int, int] | None, record: RelayRecord
) -> list[str]:
    """Return the links of `n` pictures."""

    def build(account: Account, target: UpstreamTarget) -> HTTPRequest:
        return studio_request(request, n, size, target)

    async def read(response: UpstreamResponse, account: Account) -> list[str]:
        return parse_links(await read_json(response, account))

    async with AsyncExitStack() as stack:
        return await exchange(relay, record, stack, model=request.model, task="image", build=build, read=read)


async def _download(relay: Relay, links: list[str]) -> list[bytes]:
    files = [b""] * len(links)

    async def download(number: int) -> None:
        hosts = relay.policy.result_hosts
        files[number] = await download_result(relay.transport, links[number], hosts, MAX_IMAGE)

    await run_bounded(download, len(links), PARALLEL)
    return files


def _as_policy_violation(error: UpstreamError) -> UpstreamError:
    """Return a refusal of the content filter with OpenAI's code for pictures."""
    if error.code == CONTENT_FILTER:
        error.code = CONTENT_POLICY
    return error


async def open_own_images(
    relay: Relay,
    record: RelayRecord,
    stack: AsyncExitStack,
    *,
    model: str,
    body: Mapping[str, JSON] | None = None,
    form: list[FormPart] | None = None,
    path: str = "",
    boundary: str = "",
) -> UpstreamResponse:
    """Return the response of an own server to a JSON body, or to a form sent to `path`."""

    def build(account: Account, target: UpstreamTarget) -> HTTPRequest:
        if form is None:
            return open_request(body or {}, target)
        parts = [FormPart("model", target.model), *(part for part in form if part.name != "model")]
        upload = FormBody(parts, boundary)
        headers = [field for field in target.with_authorization() if field[0] != b"content-type"]
        fields = (*headers, (b"content-type", upload.content_type.encode()))
        return HTTPRequest("POST", f"{target.base_url}{path}", fields, upload=upload)

    async def read(response: UpstreamResponse, account: Account) -> UpstreamResponse:
        return response

    record.units["images"] = 1
    return await exchange(relay, record, stack, model=model, task="image", build=build, read=read)
