"""Whether Hypercorn's command has begun this process.  It imports nothing: `import qproxy` asks it each time."""

from __future__ import annotations

import sys

TRIO_WORKER, ASYNCIO_WORKER = "hypercorn.trio.run", "hypercorn.asyncio.run"
"""The modules of Hypercorn's workers."""
APP_NAMES = {"qproxy", "qproxy:app", "asgi:qproxy:app"}
"""What the command may be told to serve for it to be `qproxy.app`."""
TRIO_REQUIRED = "it runs on Trio: start `hypercorn qproxy:app --worker-class trio`, or `qproxy serve`."
CANNOT_SERVE = "qproxy cannot serve: {}"


def is_hypercorn_command() -> bool:
    """Whether this process was begun by `hypercorn`, `python -m hypercorn`, or as a worker of either."""
    processes = sys.modules.get("multiprocessing.process")
    target = getattr(processes and processes.current_process(), "_target", None)
    if getattr(target, "__module__", None) in (
        TRIO_WORKER,
        ASYNCIO_WORKER,
    ):  # the only sign of a worker that was begun with -m
        return True
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return "hypercorn.__main__" in (getattr(spec, "name", None), *sys.modules)


def require_trio() -> None:
    """End a process of Hypercorn's command that would serve `qproxy.app` by another worker class, in a line."""
    if TRIO_WORKER not in sys.modules and APP_NAMES.intersection(sys.argv):
        sys.exit(CANNOT_SERVE.format(TRIO_REQUIRED))
