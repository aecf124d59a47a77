"""HTTP/1.1 to upstreams over Trio; h11 handles everything beyond the common case (`wire.http1`).

This package has connections, TLS, the keep-alive pool, proxies (HTTP and `socks`), and a named time limit on
every await. `wire` encodes requests and decodes responses, `relay` decides about retries, with one exception
that only this package can judge: a pooled connection that turns out to be dead before the first byte of the
response is replaced by a new one, once.

A connection belongs to one `UpstreamResponse` until its body has been read to the end; anything else (an
error, a cancellation at any await) closes it. There is no background task: the pool is a list of idle sockets
and a count.

pool           which connection carries a request (`connection`), and through which `proxy`
response       the response: its head, and its streamed body (`body_readers`)
websocket      a WebSocket over a connection of its own
interruptible  reads that can be interrupted without losing bytes

RFC 9110, 9112 (h11); CONNECT: RFC 9110 9.3.6; RFC 6455 (trio-websocket).
"""

from qproxy.transport.connection import TransportLimits
from qproxy.transport.interruptible import ReceiveTimeout
from qproxy.transport.pool import ConnectFunction, PoolStatistics, UpstreamTransport
from qproxy.transport.proxy import ProxySettings
from qproxy.transport.response import UpstreamResponse
from qproxy.transport.websocket import HandshakeRejected, UpstreamClosed, UpstreamWebSocket

__all__ = [
    "ConnectFunction",
    "HandshakeRejected",
    "PoolStatistics",
    "ProxySettings",
    "ReceiveTimeout",
    "TransportLimits",
    "UpstreamClosed",
    "UpstreamResponse",
    "UpstreamTransport",
    "UpstreamWebSocket",
]  # fmt: skip
