"""Several processes behind one address: `qproxy serve --workers N`.

A supervisor opens the address and starts workers, each the same command in a process of its own (`exec`, not `fork`:
nothing half-made is inherited, a traceback is the worker's own, and no helper process of `multiprocessing` stays
behind).  It serves nothing and imports nothing of the server, so it costs less than half of a worker's
memory and has little that can fail.

The listening socket is one, inherited by all: a client that connects while a worker dies waits for another one
instead of being reset, a worker that is busy takes fewer connections, and an address in use is found out once.  (With
SO_REUSEPORT each worker has a queue that dies with it, who connects is dealt out blindly, and a second server of
the same user starts on the same address without a word.)

Supervisor and worker speak over a socket pair (`worker`, `channel`), not with signals: what a terminal or systemd sends to
all processes at once is then no second signal.  A worker whose supervisor is gone stops in an orderly way.

  serve       `qproxy serve` itself: one process, or the supervisor
  supervisor  the loop: signals, deaths, words of the workers
  worker      one worker, as the supervisor sees it
  channel     the supervisor, as a worker sees it
  backoff     when a worker that died begins anew
  reload      settings taken up while it serves
  log_setup   where the log goes, and in what form
  systemd     what systemd is told
"""

from __future__ import annotations

import os


def worker_count(setting: int) -> int:
    """How many workers the setting `workers` asks for: 0 is one for each core that this process may use."""
    if setting:
        return setting
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
