"""Runs batches: each line is a request to the server's own app, in this process, with its owner's API key.

So a line has the limits, the ledger and the errors of any request. A few lines run at a time; one that is
rejected for a moment (429, 503) waits. A batch belongs to one process by a lease. A shutdown cancels the
lines that run, whose results are not stored, and releases the lease: the next start continues.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

import trio

from qproxy.http_server.shutdown import current_shutdown
from qproxy.server.batch_store import Batch, BatchStore, ClaimedBatch
from qproxy.server.file_store import FileNotFound, FileStore
from qproxy.server.in_process_response import AsgiApp, InProcessError
from qproxy.server.request_context import OWNER_EXTENSION
from qproxy.server.response_store import ResponseStoreError
from qproxy.wire import batches, json_codec
from qproxy.wire.batches import BatchLine, InvalidLine
from qproxy.wire.errors import RequestError

if TYPE_CHECKING:
    from qproxy.server.asgi_client import InProcessClient

LEASE_SECONDS = 30.0
RENEW_SECONDS = 1.0
POLL_SECONDS = 30.0
"""Seconds between two looks for batches of processes that have stopped."""
WAIT_STATUSES = (429, 503)
LINE_ATTEMPTS = 10
MIN_WAIT, MAX_WAIT = 1.0, 60.0
log = logging.getLogger("qproxy.server")


class BatchRunner:
    """Runs the batches that this process holds."""

    def __init__(
        self,
        store: BatchStore,
        files: FileStore,
        *,
        parallel: int,
        max_line_bytes: int,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._files = files
        self._slots = trio.Semaphore(parallel)
        self._max_line_bytes = max_line_bytes
        self._wall_clock = wall_clock
        self._holder = secrets.token_hex(8)
        self._client: InProcessClient | None = None
        self._wakeup = trio.Event()
        self._scopes: dict[str, trio.CancelScope] = {}
        """Cancel the lines of the batches that run here."""

    def open(self, app: AsgiApp) -> None:
        """Send lines to this app."""
        from qproxy.server.asgi_client import InProcessClient  # only servers with batches need it

        self._client = InProcessClient(app)
        if self._store.shared:
            self.notify()

    def notify(self) -> None:
        """Look for batches now."""
        self._wakeup.set()

    def cancel(self, id: str) -> None:
        """Cancel the lines of a batch now if it runs here; another process learns of it as it renews."""
        if id in self._scopes:
            self._scopes[id].cancel()

    async def run(self) -> None:
        """Run batches until the shutdown."""
        shutdown = current_shutdown.get()
        async with trio.open_nursery() as nursery:
            if shutdown is not None:
                nursery.start_soon(_cancel_at, shutdown.started, nursery.cancel_scope)
            while True:
                await self._wait()
                while (claimed := await self._claim()) is not None:
                    nursery.start_soon(self._run_batch, claimed)

    async def _wait(self) -> None:
        if self._store.shared and self._client is not None:
            with trio.move_on_after(POLL_SECONDS):
                await self._wakeup.wait()
        else:
            await self._wakeup.wait()
        self._wakeup = trio.Event()

    async def _claim(self) -> ClaimedBatch | None:
        try:
            return await self._store.claim(self._holder, LEASE_SECONDS)
        except ResponseStoreError as error:
            log.warning("batches are not run: %s", error)
            return None

    async def _run_batch(self, claimed: ClaimedBatch) -> None:
        batch = claimed.batch
        scope = self._scopes[batch["id"]] = trio.CancelScope()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._renew, batch["id"], scope, nursery.cancel_scope)
                with scope:
                    await self._advance(claimed.owner, batch)
                await self._finish(claimed.owner, batch, is_cancelled=scope.cancelled_caught)
                nursery.cancel_scope.cancel()
        except* ResponseStoreError as group:
            log.warning("batch %s is interrupted: %s", batch["id"], group.exceptions[0])
        except* FileNotFound:
            await self._fail(batch, InvalidLine(None, "file_not_found", "The input file was deleted."))
        except* RequestError as refusals:  # no room for the output
            await self._fail(batch, InvalidLine(None, "output_failed", str(refusals.exceptions[0])))
        finally:
            del self._scopes[batch["id"]]
            with trio.CancelScope(shield=True):  # the store has its own time limit
                await self._release(batch["id"])

    async def _renew(self, id: str, scope: trio.CancelScope, everything: trio.CancelScope) -> None:
        """Keep the lease; cancel the lines if the client wants it, everything if the lease is lost."""
        while status := await self._store.renew(self._holder, id, LEASE_SECONDS):
            if status == "cancelling":
                scope.cancel()
            await trio.sleep(RENEW_SECONDS)
        everything.cancel()

    async def _release(self, id: str) -> None:
        try:
            await self._store.release(self._holder, id)
        except ResponseStoreError as error:
            log.warning("batch %s: its lease ends later: %s", id, error)

    async def _advance(self, owner: str, batch: Batch) -> None:
        """Validate the input, and run its lines, until the batch expires."""
        if batch["status"] == "validating":
            try:
                batch["request_counts"]["total"] = await self._validate(owner, batch)
            except InvalidLine as invalid:
                await self._fail(batch, invalid)
                return
            batch |= {"status": "in_progress", "in_progress_at": int(self._wall_clock())}
            await self._store.save(self._holder, batch)
        with trio.move_on_after(max(0.0, batch["expires_at"] - self._wall_clock())):
            done = await self._store.finished_lines(batch["id"])
            async with trio.open_nursery() as nursery, aclosing(self._lines(owner, batch)) as lines:
                async for line in lines:
                    if line.number not in done:
                        await self._slots.acquire()
                        nursery.start_soon(self._run_line, owner, batch, line)

    async def _validate(self, owner: str, batch: Batch) -> int:
        """Return the number of lines. Raises InvalidLine."""
        seen: set[str] = set()
        async with aclosing(self._lines(owner, batch)) as lines:
            async for line in lines:
                if line.custom_id in seen:
                    message = f"custom_id {line.custom_id[:100]!r} is not unique."
                    raise InvalidLine(line.number, "duplicate_custom_id", message, "custom_id")
                seen.add(line.custom_id)
                if len(seen) > batches.MAX_LINES:
                    raise InvalidLine(
                        None, "too_many_lines", f"A batch has at most {batches.MAX_LINES:,} lines."
                    )
        if not seen:
            raise InvalidLine(None, "empty_file", "The input file has no line.")
        return len(seen)

    async def _lines(self, owner: str, batch: Batch) -> AsyncGenerator[BatchLine, None]:
        """Yield the requests of the input file. Raises InvalidLine."""
        number, buffer = 0, b""
        file = await self._files.get(owner, batch["input_file_id"])
        async with aclosing(self._files.read(file)) as pieces:
            async for piece in pieces:
                *whole, buffer = (buffer + piece).split(b"\n")
                if len(buffer) > self._max_line_bytes:
                    raise InvalidLine(number + 1, "line_too_long", "A line is beyond max_body_bytes.")
                for data in whole:
                    number += 1
                    if data.strip():
                        await trio.lowlevel.checkpoint()
                        yield batches.parse_line(number, data, batch["endpoint"])
        if buffer.strip():
            yield batches.parse_line(number + 1, buffer, batch["endpoint"])

    async def _run_line(self, owner: str, batch: Batch, line: BatchLine) -> None:
        """Send a line and store its result; the next line waits for both, so that a killed process repeats at
        most `batch_parallel` lines."""
        try:
            status, request_id, body = await self._send(owner, batch["endpoint"], line)
            response = {"status_code": status, "request_id": request_id, "body": body}
            result = batches.output_line(f"batch_req_{secrets.token_hex(12)}", line.custom_id, response)
            ok = status < 400
            await self._store.add_result(self._holder, batch["id"], line.number, ok=ok, result=result)
        finally:
            self._slots.release()

    async def _send(self, owner: str, path: str, line: BatchLine) -> tuple[int, str, object]:
        """Return the status, the request's ID and the body of the response to a line."""
        for attempt in range(1, LINE_ATTEMPTS + 1):
            status, headers, body = await self._request(owner, path, json_codec.dumps(line.body))
            if status not in WAIT_STATUSES or attempt == LINE_ATTEMPTS:
                break
            await trio.sleep(_wait_seconds(headers.get(b"retry-after", b"")))
        try:
            parsed = json_codec.loads(body)
        except (ValueError, RequestError):
            parsed = body.decode("utf-8", "replace")
        return status, headers.get(b"x-request-id", b"").decode("latin-1"), parsed

    async def _request(self, owner: str, path: str, body: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        assert self._client is not None
        headers, extensions = {"content-type": "application/json"}, {OWNER_EXTENSION: owner}
        async with trio.open_nursery() as nursery:
            response = self._client.send(
                nursery, "POST", path, headers=headers, body=body, extensions=extensions
            )
            try:
                await response.start()
                return response.status, dict(response.headers), await response.read()
            except InProcessError:
                return 500, {}, b'{"error":{"message":"The request ended without a response."}}'
            finally:
                response.disconnect()

    async def _finish(self, owner: str, batch: Batch, *, is_cancelled: bool) -> None:
        """Write the output and error files, and end the batch."""
        if batch["status"] in batches.FINAL:
            return
        current = await self._store.get(owner, batch["id"])
        counts = batch["request_counts"] = current["request_counts"]
        missing = counts["total"] - counts["completed"] - counts["failed"]
        if missing and not is_cancelled:
            await self._expire_lines(owner, batch)
            counts["failed"] += missing
        now = int(self._wall_clock())
        if is_cancelled:
            batch |= {"cancelling_at": current.get("cancelling_at", now)}
        else:
            batch |= {"status": "finalizing", "finalizing_at": now}
            await self._store.save(self._holder, batch)
        if counts["completed"]:
            batch["output_file_id"] = await self._write(owner, batch, "output", ok=True)
        if counts["failed"]:
            batch["error_file_id"] = await self._write(owner, batch, "error", ok=False)
        status = "cancelled" if is_cancelled else "expired" if missing else "completed"
        batch |= {"status": status, f"{status}_at": int(self._wall_clock())}
        await self._store.save(self._holder, batch)

    async def _expire_lines(self, owner: str, batch: Batch) -> None:
        """Store an error for each line without a result."""
        error = {"code": "batch_expired", "message": "The batch expired before this request was sent."}
        done = await self._store.finished_lines(batch["id"])
        async with aclosing(self._lines(owner, batch)) as lines:
            async for line in lines:
                if line.number not in done:
                    id_ = f"batch_req_{secrets.token_hex(12)}"
                    result = batches.output_line(id_, line.custom_id, None, error)
                    await self._store.add_result(
                        self._holder, batch["id"], line.number, ok=False, result=result
                    )

    async def _write(self, owner: str, batch: Batch, kind: str, *, ok: bool) -> str:
        """Write a file of results, and return its ID."""
        expiry = (batch.get("output_expires_after") or {}).get("seconds")
        async with aclosing(self._results(batch["id"], ok=ok)) as content:
            file = await self._files.create(
                owner, f"{batch['id']}_{kind}.jsonl", "batch_output", content, expires_after=expiry
            )
        return file.id

    async def _results(self, id: str, *, ok: bool) -> AsyncGenerator[bytes, None]:
        after = 0
        while rows := await self._store.results(id, ok=ok, after=after):
            after = rows[-1][0]
            yield b"".join(result for _, result in rows)

    async def _fail(self, batch: Batch, invalid: InvalidLine) -> None:
        errors = {"object": "list", "data": [invalid.error]}
        batch |= {"status": "failed", "failed_at": int(self._wall_clock()), "errors": errors}
        await self._store.save(self._holder, batch)


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _wait_seconds(retry_after: bytes) -> float:
    """Return how long a rejected line waits."""
    seconds = float(retry_after) if retry_after.isdigit() else MIN_WAIT
    return min(max(seconds, MIN_WAIT), MAX_WAIT)
