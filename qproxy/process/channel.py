"""The supervisor, as one of its workers sees it: what it says is done, and what it wants to know is said.

A worker without a supervisor has nobody who would replace it, stop it or have it reload: it stops.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

import trio

from qproxy.process.worker import RELOAD, STOP

Reload = Callable[[], Awaitable[tuple[bool, str]]]
log = logging.getLogger("qproxy")


class WorkerSpec(NamedTuple):
    """A worker's number and the descriptors that it was given, as its command line has them."""

    number: int
    channel: int
    listener: int

    @classmethod
    def parse(cls, text: str) -> WorkerSpec:
        number, line, listener = map(int, text.split(":"))
        return cls(number, line, listener)


class SupervisorChannel:
    """The worker's end of the line."""

    def __init__(self, place: WorkerSpec) -> None:
        self.spec = place
        os.set_inheritable(place.channel, False)
        os.set_inheritable(place.listener, False)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=place.channel)))

    async def send(self, **facts: Any) -> None:
        with suppress(trio.BrokenResourceError):  # `run` finds out too
            await self._stream.send_all(json.dumps(facts).encode() + b"\n")

    async def run(self, stop: trio.Event, reload: Reload) -> None:
        """Do what the supervisor says, until cancelled."""
        heard = b""
        with suppress(trio.BrokenResourceError):
            while data := await self._stream.receive_some():
                *lines, heard = (heard + data).split(b"\n")
                for word in lines:
                    if word == STOP:
                        stop.set()
                    elif word == RELOAD:
                        taken_up, message = await reload()
                        await self.send(taken_up=taken_up, said=message)
        log.warning("the supervisor of this worker is gone: it stops")
        stop.set()
