"""Detection of Hypercorn's command; every `import qproxy` runs it."""

from __future__ import annotations

import sys

TRIO_WORKER, ASYNCIO_WORKER = "hypercorn.trio.run", "hypercorn.asyncio.run"
"""The modules of Hypercorn's workers."""
APP_NAMES = {"qproxy", "qproxy:app", "asgi:qproxy:app"}
"""Arguments of the command that name `qproxy.app`."""
TRIO_REQUIRED = "it requires Trio: run `hypercorn qproxy:app --worker-class trio` or `qproxy serve`."
CANNOT_SERVE = "qproxy cannot serve: {}"


def is_hypercorn_command() -> bool:
    """Return whether `hypercorn` or `python -m hypercorn` started this process, or it is a worker of
    either."""
    processes = sys.modules.get("multiprocessing.process")
    target = getattr(processes and processes.current_process(), "_target", None)
    if getattr(target, "__module__", None) in (
        TRIO_WORKER,
        ASYNCIO_WORKER,
    ):  # the only sign of a worker that was started with -m
        return True
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return "hypercorn.__main__" in (getattr(spec, "name", None), *sys.modules)


def require_trio() -> None:
    """Exit with an error if Hypercorn's command serves `qproxy.app` with another worker class."""
    if TRIO_WORKER not in sys.modules and APP_NAMES.intersection(sys.argv):
        sys.exit(CANNOT_SERVE.format(TRIO_REQUIRED))
