"""What Hypercorn 0.18's Trio worker needs to be safe, and how qproxy serves with it.

`patch_hypercorn` replaces a function and five classes, four of them by subclasses, here and nowhere else, so that plain
`hypercorn qproxy:app --worker-class trio` is mended too.  Each cure says what it cures; `tests/http_server/test_patches.py`
shows that stock Hypercorn fails, so that a cure can go when upstream has it.

  TCPServer  an error in one connection ends that connection, not all workers (#228, #329)
  TCPServer  a write that makes no progress ends its connection, and the reader's end ends a blocked write:
             a client that stopped reading pins nothing and delays no shutdown
  TCPServer  a peer that vanished (no FIN, no RST) is found out by the kernel: TCP_USER_TIMEOUT and keep-alive probes
  TCPServer  connections have a limit; one too many is told so
  H11        bytes after a request do not blind the reader to the client's end (h11 PAUSED), within a bound
  H11        what is not HTTP is answered in words
  H11        an upgrade to h2c with unsound settings is not made: the request is served as it is
  H2         a connection whose last stream was reset is idle: it ends after the keep-alive time, and at the server's end
  H11, H2    the keep-alive timer is armed although Quart-Trio cancels the task that arms it
  H2         a connection without a whole request is idle, whatever else was sent: half a preface, pings, a refused stream
  H11, H2    a connection of a certain age is ended in an orderly way
  H2         an answer that ends while the server stops keeps its END_STREAM
  H2         DATA for a stream that has its answer is acknowledged and dropped (#329, #312, #365)
  H2         an answer that breaks off is reset, instead of leaving the client waiting for ever
  H2         a frame that is announced longer than allowed ends its connection at once, not 16 MiB later
  H2         a block of fields has no more bytes than a head: time and memory for it grow with its square
  H1, H2     a read of thousands of tiny frames or chunks is taken up some at a time
  H2         a connection is not closed under its streams after keep_alive_max_requests
  H2         non-ASCII pseudo headers and CONNECT end their stream, PRIORITY changes nothing
  H2         a client that opens and resets streams in a flood is sent away (CVE-2023-44487)
  H2 buffer  a client that opens no window for the write timeout has its stream reset
  H2 buffer  a full flow-control window stops the producer (stock: memory without bound at 100 % CPU)
  WSStream   bytes before a WebSocket is accepted wait, and bytes after its end are dropped (#225)
  WSStream   what is no frame, no UTF-8 or too large ends it with the close code for that, and the app with it
  WSStream   what waits for the app is bounded in bytes and messages; nothing is inflated; a ping must be answered
  WSStream   its close frame is not lost under what the client still sends; `on_disconnect` ends the app with its client
  Worker     the app hears that the server stops, and how long requests have is the app's to say
  Worker     an app that does not start is a line, not a traceback
  Worker     workers leave SIGTERM to their master and end when it is gone; a single process stops in an orderly way at
             SIGTERM and SIGINT, also where its shell has it ignore SIGINT

Not curable here: the master's exit code 0 after a worker's failure (run it with Restart=always, or use
`qproxy serve`), a client's GOAWAY ending its running streams, half-close counting as leaving.

  tcp_server.py       TCPServer: one connection, whatever it speaks
  keep_alive.py       its keep-alive timer
  h11.py              H11Protocol: what is read by hand, and what is h11's
  http_stream.py      one request and its answer, between the connection and the app
  response_writer.py  how an answer is written: by hand, or by h11
  h2.py               H2Protocol and its buffers
  ws_stream.py        WSStream: a WebSocket over either
  worker.py           Worker: the addresses, the settings and the end of one run of Hypercorn
  shutdown.py         Shutdown: the end of the server, as the app sees it
  signals.py          SIGINT and SIGTERM
  serve.py            patch_hypercorn, serve
"""

from qproxy.http_server.h2 import H2Protocol, StreamBuffer
from qproxy.http_server.h11 import H11Protocol
from qproxy.http_server.limits import HttpServerLimits
from qproxy.http_server.serve import patch_hypercorn, serve
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
