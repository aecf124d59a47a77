"""HTTP/1.1 to the upstreams: over Trio, ours, small; h11 has what is not plain (`wire.http1`).

Here: connections, TLS, the keep-alive pool, proxies (HTTP and `socks`), and a named time limit on every await.  Not
here: what a request says or what an answer means (`wire`), nor whether to try again (`relay`), with one
exception that only this package can judge: a pooled connection that turns out to be dead before a byte of the
answer came is replaced by a fresh one, once.

The idea: a connection belongs to one `UpstreamResponse` until its body has been read to the end; whatever else
happens (an error, a cancellation at any await) closes it.  There is no background task, so there is nothing
to lose: the pool is a list of idle sockets and a count.

pool           which connection carries a request (`connection`), and through which `proxy`
response       the answer: its head, and its body as it comes (`body_readers`)
websocket      a WebSocket over a connection that it keeps to its own end
interruptible  waiting for bytes in a way that can be given up

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
