"""Patches that make Hypercorn 0.18's Trio worker safe, and the server that runs on it.

`patch_hypercorn` replaces one function and five classes (four by subclasses), so that plain `hypercorn
qproxy:app --worker-class trio` is patched too. For each patch, `tests/http_server/test_patches.py` shows that
stock Hypercorn fails; a patch can be removed once upstream has the fix.

  TCPServer  an error in one connection ends that connection, not all workers (#228, #329)
  TCPServer  a write without progress closes its connection, and the end of reading ends a blocked write:
             a client that stopped reading holds no memory and delays no shutdown
  TCPServer  the kernel detects a peer that vanished (no FIN, no RST): TCP_USER_TIMEOUT and keep-alive probes
  TCPServer  a response before the end of its request is read: what is left is discarded before the close
  TCPServer  connections are limited; one over the limit receives a 503
  H11        bytes after a request do not hide the client's disconnect from the reader (h11 PAUSED), within a
             bound
  H11        bytes that are not HTTP receive a JSON error
  H11        an upgrade to h2c with invalid settings is ignored: the request is served over HTTP/1.1
  H2         a connection whose last stream was reset is idle: the keep-alive timeout and shutdown close it
  H11, H2    the keep-alive timer is armed although Quart-Trio cancels the task that arms it
  H2         a connection without a complete request is idle, even after half a preface, pings or a refused
             stream
  H11, H2    a connection of a certain age is closed gracefully
  H2         a response that ends during shutdown keeps its END_STREAM
  H2         DATA for a stream whose response is complete is acknowledged and dropped (#329, #312, #365)
  H2         a truncated response is reset, instead of leaving the client waiting forever
  H2         a frame header that announces too long a frame ends its connection at once, not 16 MiB later
  H2         a header block is as limited as a head: time and memory for it grow quadratically
  H1, H2     a read of thousands of tiny frames or chunks is processed in slices
  H2         a connection is not closed under its streams after keep_alive_max_requests
  H2         non-ASCII pseudo headers and CONNECT end their stream, PRIORITY changes nothing
  H2         a client that floods streams and resets is disconnected (CVE-2023-44487)
  H2 buffer  a client that opens no window within the write timeout has its stream reset
  H2 buffer  a full flow-control window stops the producer (stock: unbounded memory at 100 % CPU)
  WSStream   bytes before a WebSocket is accepted are buffered, and bytes after its end are dropped (#225)
  WSStream   an invalid frame, invalid UTF-8 or an oversized message ends it, and the app, with the right
             close code
  WSStream   buffered messages are bounded in bytes and number; nothing is inflated; pings require a pong
  WSStream   its close frame is not lost to a TCP reset; `on_disconnect` ends the app when its client
             disconnects
  Worker     the app is notified of the shutdown and sets the graceful timeout
  Worker     a failed startup of the app logs one line, not a traceback
  Worker     workers leave SIGTERM to their master and exit when it is gone; a single process shuts down
             gracefully on SIGTERM and SIGINT, even if its shell makes it ignore SIGINT

Not patched: the master's exit code 0 after a worker's failure (run it with Restart=always, or use `qproxy
serve`), a client's GOAWAY ending its active streams, a half-close counting as a disconnect.

  tcp_server.py       TCPServer: one connection of any protocol
  keep_alive.py       its keep-alive timer
  h11.py              H11Protocol: plain requests read directly, all others through h11
  http_stream.py      one request and its response, between the connection and the app
  response_writer.py  the serialization of a response, directly or by h11
  h2.py               H2Protocol and its buffers
  ws_stream.py        WSStream: a WebSocket over HTTP/1.1 or HTTP/2
  worker.py           Worker: the addresses, settings and shutdown of one run of Hypercorn
  shutdown.py         Shutdown: the shutdown of the server, as the app sees it
  signals.py          SIGINT and SIGTERM
  serve.py            patch_hypercorn, serve
"""

from qproxy.http_server.h2 import H2Protocol, StreamBuffer
from qproxy.http_server.h11 import H11Protocol
from qproxy.http_server.limits import HttpServerLimits
from qproxy.http_server.server import patch_hypercorn, serve
from qproxy.http_server.signals import wait_for_signal
from qproxy.http_server.tcp_server import TCPServer
from qproxy.http_server.worker import Worker, install_worker
from qproxy.http_server.ws_stream import WSStream

__all__ = [
    "H2Protocol",
    "H11Protocol",
    "HttpServerLimits",
    "StreamBuffer",
    "TCPServer",
    "WSStream",
    "Worker",
    "install_worker",
    "patch_hypercorn",
    "serve",
    "wait_for_signal",
]
