"""`qproxy serve` in this process, alone or as one of several workers: signals, limits, reloads and the exit
code.

`bootstrap` builds the server and serves, also for programs that embed it; `process.supervisor` starts and
stops workers.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable

import trio

from qproxy import http_server
from qproxy.auth import OAuthSource
from qproxy.backends.api_keys import has_api_keys
from qproxy.bootstrap.app import build_server, serve
from qproxy.bootstrap.models import build_catalog, retirement_notices
from qproxy.bootstrap.reload import rebuild_state
from qproxy.config import Config, data_dir, load
from qproxy.process import log_setup
from qproxy.process.banner import banner
from qproxy.process.channel import SupervisorChannel, WorkerSpec
from qproxy.process.reload import Reloader
from qproxy.process.settings_history import SettingsHistory
from qproxy.process.shared_state import require_compatible_state
from qproxy.process.systemd import Notifier
from qproxy.server import Server, ServerState
from qproxy.system.directories import peer_directory

SPARE_FILES = 64
TOKEN_SECONDS = 2.0
"""Seconds to read the stored tokens; the server accepts requests meanwhile."""
log = logging.getLogger("qproxy")


def run(
    config: Config,
    notify: Callable[[str], None],
    read: Callable[[], Config] = load,
    spec: WorkerSpec | None = None,
    file: str | None = None,
) -> int:
    """Serve until a signal arrives and return the exit code; `read` loads the settings for a reload;
    `file` is the configuration file.

    A worker (`spec`) prints nothing itself. Raises a group with an OSError if the address is unavailable.
    """
    log_setup.configure_logging(config, worker=spec and spec.number)
    logging.getLogger("hypercorn.error").setLevel(max(logging.WARNING, logging.getLogger().level))
    if spec is None or spec.number == 1:
        notices = retirement_notices(config, build_catalog(config.model_rows))
        for warning in [*config.warnings(), *notices]:
            log.warning("%s", warning)
    if spec is None:
        require_compatible_state(config)
    raise_file_limit(config)
    trio.run(_run_server, config, notify, read, spec, file)
    return 0


def file_limit(config: Config) -> tuple[int, int]:
    """Return the number of open files that the settings need, and how many of them this process may open."""
    wanted = config.max_client_connections + config.max_requests + SPARE_FILES
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return wanted, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def raise_file_limit(config: Config) -> None:
    """Raise the limit of open files to what the settings need; log a warning if that is not allowed."""
    wanted, allowed = file_limit(config)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        except (OSError, ValueError):  # macOS: kern.maxfilesperproc is below the hard limit
            allowed = soft
    if allowed < wanted:
        log.warning("open file limit is %d; max_client_connections + max_requests need %d", allowed, wanted)


async def _run_server(
    config: Config,
    notify: Callable[[str], None],
    read: Callable[[], Config],
    spec: WorkerSpec | None,
    file: str | None,
) -> None:
    stop, channel = trio.Event(), None if spec is None else SupervisorChannel(spec)
    server = build_server(config, workers_directory=spec and peer_directory(data_dir(), os.getppid()))

    def rebuild(config: Config, before: Config, previous: ServerState) -> ServerState:
        state = rebuild_state(config, before, previous)
        log_setup.configure_logging(config, worker=spec and spec.number)  # other secrets, level or format
        return state

    audited = spec is None or spec.number == 1
    history = SettingsHistory(data_dir(), config.port) if audited else None
    reloader = Reloader(server, config, read, rebuild, audited=audited, history=history)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(http_server.wait_for_signal, stop, notify if channel is None else _discard)

        async def serving(task_status: trio.TaskStatus[list[str]]) -> None:
            listener = spec and spec.listener
            await serve(
                config, shutdown_trigger=stop.wait, server=server, listener=listener, task_status=task_status
            )
            nursery.cancel_scope.cancel()

        urls = await nursery.start(serving)
        for entry in history.update(config) if history is not None else ():
            await server.state.audit.record(entry)
        if config.probe_interval:  # otherwise nothing is sent but for clients
            nursery.start_soon(_fetch_lists, server)
        await _wait_for_tokens(server.state)
        conditions, has_keys = server.state.account_conditions(), has_api_keys(config)
        text = banner(config, urls[0], file, conditions, has_keys=has_keys)
        if channel is not None:
            nursery.start_soon(reloader.on_sighup)
            nursery.start_soon(channel.run, stop, reloader.reload, reloader.settings)
            await channel.send(serving=text)
            return
        nursery.start_soon(reloader.serve_reloads, data_dir(), int(urls[0].rpartition(":")[2]))
        notify(text)
        notifier = Notifier()
        notifier.ready()
        await stop.wait()
        notifier.stopping()


async def _wait_for_tokens(state: ServerState) -> None:
    """Wait until the stored tokens of the logged-in accounts have been read, on which their states depend."""
    with trio.move_on_after(TOKEN_SECONDS):
        for account in state.relay.accounts.accounts:
            if isinstance(account.source, OAuthSource):
                await account.source.refresher.loaded.wait()


def _discard(line: str) -> None:
    """Drop a line of a worker; its supervisor prints it."""


async def _fetch_lists(server: Server) -> None:
    """Fetch the lists of models, so that names in metrics and the choice of accounts wait for no client."""
    try:
        await server.state.model_directory.models()
    except Exception:  # a client that asks for the list gets the error
        log.exception("cannot fetch the lists of models")
