"""Several processes behind one address: `qproxy serve --workers N`.

A supervisor opens the address and starts workers, each the same command in its own process (`exec`, not
`fork`: no half-initialized state is inherited, tracebacks are the worker's own, and no helper process of
`multiprocessing` remains). It serves nothing and imports nothing of the server, so it uses less than half of
a worker's memory and little can fail.

All workers inherit one listening socket: a client that connects while a worker dies waits for another worker
instead of getting a reset, a busy worker accepts fewer connections, and an address in use is detected once.
(With SO_REUSEPORT each worker has a queue that dies with it, connections are assigned blindly, and a second
server of the same user starts on the same address without an error.)

Supervisor and workers communicate over socket pairs (`worker`, `channel`), not with signals: a signal that a
terminal or systemd sends to all processes must not arrive twice. A worker whose supervisor died shuts down
gracefully.

  serve       `qproxy serve` in one process: alone or as a worker
  supervisor  the supervisor's loop: signals, exits and messages of the workers
  worker      the supervisor's end of a worker
  channel     a worker's end of the supervisor
  backoff     delays between restarts of a worker
  reload      reloads of the configuration
  settings_history  the settings of the last start, for the audit log
  asgi        `qproxy.app`, for other ASGI servers
  log_setup   the log's destination and format
  systemd     notifications to systemd
  banner      the text of a started server
"""

from __future__ import annotations

import os


def worker_count(setting: int) -> int:
    """Return the number of workers for the setting `workers`; 0 is one per usable CPU core."""
    if setting:
        return setting
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
