"""A worker's end of the channel to its supervisor: commands are executed, results are reported.

A worker whose supervisor died shuts down: no process would replace, stop or reload it.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

import trio

from qproxy.config import Config
from qproxy.process.worker import RELOAD, STOP

Reload = Callable[[], Awaitable[tuple[bool, str]]]
log = logging.getLogger("qproxy")


class WorkerSpec(NamedTuple):
    """A worker's number and inherited descriptors, as its command line has them."""

    number: int
    channel: int
    listener: int
    settings: int

    @classmethod
    def parse(cls, text: str) -> WorkerSpec:
        """Read the value of `--worker`."""
        return cls(*map(int, text.split(":")))

    def read_settings(self) -> Config:
        """Return the settings in effect, which the supervisor passed on from this process's predecessors."""
        with open(self.settings, "rb") as file:
            config: Config = pickle.load(file)  # from the supervisor alone: no other process can write it
        return config


class SupervisorChannel:
    """A worker's connection to its supervisor."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        os.set_inheritable(spec.channel, False)
        os.set_inheritable(spec.listener, False)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=spec.channel)))

    async def send(self, **fields: Any) -> None:
        """Send a message to the supervisor."""
        with suppress(trio.BrokenResourceError):  # `run` detects the end
            await self._stream.send_all(json.dumps(fields).encode() + b"\n")

    async def run(self, stop: trio.Event, reload: Reload, settings: Callable[[], Config]) -> None:
        """Execute the supervisor's commands until cancelled; `settings` returns those in effect."""
        buffer = b""
        with suppress(trio.BrokenResourceError):
            while data := await self._stream.receive_some():
                *lines, buffer = (buffer + data).split(b"\n")
                for command in lines:
                    if command == STOP:
                        stop.set()
                    elif command == RELOAD:
                        applied, message = await reload()
                        text = base64.b64encode(pickle.dumps(settings())).decode()
                        await self.send(applied=applied, message=message, settings=text)
        log.warning("supervisor exited, shutting down this worker")
        stop.set()
