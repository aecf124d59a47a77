"""Notifications to systemd (`Type=notify`): datagrams to the socket that it names.

https://www.freedesktop.org/software/systemd/man/sd_notify.html
"""

from __future__ import annotations

import socket
from contextlib import suppress

from qproxy.config import notify_socket


class Notifier:
    """Notifies systemd; does nothing without a socket."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address or notify_socket()

    def ready(self) -> None:
        self._send("READY=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
            sending.setblocking(False)  # serving must not wait for systemd
            sending.sendto(state.encode(), address)
