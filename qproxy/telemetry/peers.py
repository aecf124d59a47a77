"""Queries between the workers of one server, so that any of them can report for all.

`qproxy serve --workers 2` and `hypercorn -w 2` start workers that share a port, and any one may receive a
request for `/metrics`. Each worker listens on a Unix socket in a directory named after their common parent
(only the owner may enter it); `query` sends a query to all others. Without queries nothing is sent. The
socket of an ended worker refuses connections and is removed by the next query.

A process without such a parent (`qproxy serve` alone, `hypercorn -w 0`) has no peers and opens nothing.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from qproxy.system.directories import make_private_directory, peer_directory

PEER_TIMEOUT = 2.0
"""Seconds for all peers together to respond: they are on the same machine."""
MAX_RESPONSE_BYTES = 16 * 1024 * 1024
MAX_QUERY_BYTES = 100
log = logging.getLogger("qproxy")


def find_peer_directory(home: Path) -> Path | None:
    """Return the directory of this process's peers, None if it has none."""
    parent = multiprocessing.parent_process()
    return None if parent is None or parent.pid is None else peer_directory(home, parent.pid)


class Peers:
    """The queries to and from the other workers."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._socket_path = None if directory is None else directory / str(os.getpid())

    def __repr__(self) -> str:
        return f"<Peers in {self._directory}>"

    async def listen(
        self,
        handlers: Mapping[str, Callable[[], bytes]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer the peers' queries, by their names, until cancelled; return at once without a directory."""
        if self._directory is None or self._socket_path is None:
            task_status.started()
            return
        with trio.socket.socket(trio.socket.AF_UNIX) as listening:
            try:
                make_private_directory(self._directory)
                self._socket_path.unlink(missing_ok=True)
                await listening.bind(str(self._socket_path))
                listening.listen()
            except OSError as error:  # not writable, or a path too long for a socket
                log.warning("cannot open worker socket (%s): /metrics covers this worker only", error)
                task_status.started()
                return
            task_status.started()
            try:
                await trio.serve_listeners(partial(self._handle, handlers), [trio.SocketListener(listening)])
            finally:
                _remove(self._socket_path)
                with suppress(OSError):  # the last worker removes the directory
                    self._directory.rmdir()

    async def _handle(self, handlers: Mapping[str, Callable[[], bytes]], stream: trio.SocketStream) -> None:
        async with stream:
            with trio.move_on_after(PEER_TIMEOUT), suppress(OSError, trio.BrokenResourceError):
                question = (await stream.receive_some(MAX_QUERY_BYTES)).decode("ascii", "replace")
                await stream.send_all(handlers.get(question, bytes)())

    async def query(self, question: str) -> list[bytes]:
        """Return the responses of all other running workers."""
        answers: list[bytes] = []
        if self._directory is None:
            return answers
        paths: list[Path] = []
        with suppress(OSError):  # not writable at the start, or deleted since
            paths = [path for path in self._directory.iterdir() if path != self._socket_path]
        with trio.move_on_after(PEER_TIMEOUT):
            async with trio.open_nursery() as nursery:
                for path in paths:
                    nursery.start_soon(self._query, path, question, answers)
        return answers

    async def _query(self, path: Path, question: str, answers: list[bytes]) -> None:
        answer = bytearray()
        try:
            async with await trio.open_unix_socket(str(path)) as stream:
                await stream.send_all(question.encode())
                while len(answer) < MAX_RESPONSE_BYTES and (data := await stream.receive_some(65536)):
                    answer += data
        except ConnectionRefusedError:
            _remove(path)
        except (OSError, trio.BrokenResourceError) as error:
            log.info("worker did not respond (%s)", error)
        else:
            answers.append(bytes(answer))


def _remove(path: Path) -> None:
    """Remove the socket of an ended worker."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
