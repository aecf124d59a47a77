"""`qproxy serve` in this process, alone or as one of several workers: signals, limits, reloads, and its exit code.

Here: what belongs to a process that does nothing else.  Not here: the server's parts and how it serves (`bootstrap`, also
for programs that embed it), who starts and stops workers (`process.supervisor`).
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable

import trio

from qproxy import http_server
from qproxy.bootstrap.app import build_server, serve
from qproxy.bootstrap.models import build_catalog, retirement_notices
from qproxy.bootstrap.reload import rebuild_state
from qproxy.config import Config, data_dir, load
from qproxy.config.accounts import AccountConfig
from qproxy.process import log_setup
from qproxy.process.channel import SupervisorChannel, WorkerSpec
from qproxy.process.reload import Reloader
from qproxy.process.systemd import Notifier
from qproxy.server import ServerState
from qproxy.system.directories import peer_directory

SPARE_FILES = 64
log = logging.getLogger("qproxy")


def run(
    config: Config,
    say: Callable[[str], None],
    read: Callable[[], Config] = load,
    place: WorkerSpec | None = None,
) -> int:
    """`qproxy serve`: serve until a signal comes; returns the exit code.  `read` gets the settings anew.

    `spec`: of a worker among others, who says nothing itself.
    """
    log_setup.configure_logging(config, worker=place and place.number)
    logging.getLogger("hypercorn.error").setLevel(max(logging.WARNING, logging.getLogger().level))
    if place is None or place.number == 1:
        notices = retirement_notices(config, build_catalog(config.model_rows))
        for warning in [*config.warnings(), *notices]:
            log.warning("%s", warning)
    raise_file_limit(config)
    try:
        trio.run(_run_server, config, say, read, place)
    except BaseExceptionGroup as group:
        error = _single_process(group)
        if isinstance(error, OSError):
            reason = f"cannot serve on {config.host}, port {config.port}: {error.strerror or error}"
            raise OSError(reason) from None
        raise
    return 0


def _single_process(group: BaseException) -> BaseException:
    """The one error that a group holds, or the group."""
    while isinstance(group, BaseExceptionGroup) and len(group.exceptions) == 1:
        group = group.exceptions[0]
    return group


def file_limit(config: Config) -> tuple[int, int]:
    """How many files the settings may need open at once, and how many of them this process may open."""
    wanted = config.max_client_connections + config.max_requests + SPARE_FILES
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return wanted, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def raise_file_limit(config: Config) -> None:
    """Let this process open as many sockets as the settings speak of, or warn that it may not."""
    wanted, allowed = file_limit(config)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning(
            "only %d files may be open, and max_client_connections with max_requests want %d", allowed, wanted
        )


def _describe_address(account: AccountConfig) -> str:
    """Where an account's requests go, for people; the tokens of a signed-in one say it each time."""
    return "signed in" if account.kind == "oauth" else str(account.base_url)


async def _run_server(
    config: Config, say: Callable[[str], None], read: Callable[[], Config], place: WorkerSpec | None
) -> None:
    stop, post = trio.Event(), None if place is None else SupervisorChannel(place)
    server = build_server(config, workers_directory=place and peer_directory(data_dir(), os.getppid()))

    def rebuild(config: Config, before: Config, previous: ServerState) -> ServerState:
        state = rebuild_state(config, before, previous)
        log_setup.configure_logging(config, worker=place and place.number)  # other secrets, level or format
        return state

    reloader = Reloader(server, config, read, rebuild)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(http_server.wait_for_signal, stop, say if post is None else _no_reload)

        async def serving(task_status: trio.TaskStatus[list[str]]) -> None:
            listener = place and place.listener
            await serve(
                config, shutdown_trigger=stop.wait, server=server, listener=listener, task_status=task_status
            )
            nursery.cancel_scope.cancel()

        urls = await nursery.start(serving)
        names = ", ".join(
            f"{account.name} ({_describe_address(account)})" for account in config.all_accounts()
        )
        where = f"{urls[0]}/v1 from {names}"
        if post is not None:
            nursery.start_soon(reloader.on_sighup)
            nursery.start_soon(post.run, stop, reloader.reload)
            await post.send(serves=where)
            return
        nursery.start_soon(reloader.serve_reloads, data_dir(), int(urls[0].rpartition(":")[2]))
        say(f"qproxy serves {where}")
        notifier = Notifier()
        notifier.ready()
        await stop.wait()
        notifier.stopping()


def _no_reload(line: str) -> None:
    """What a worker says: its supervisor says it."""
