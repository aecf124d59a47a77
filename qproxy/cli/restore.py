"""`qproxy restore`: restore the data directory from a file of `qproxy backup`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from qproxy import config as configuration
from qproxy.backends.backup import BackupError
from qproxy.cli.audit import current_actor, record_change
from qproxy.cli.help import CONFIGURATION, DONE, HelpPage
from qproxy.cli.output import print_error, print_note, print_result
from qproxy.telemetry.audit import AuditEntry

HELP = "restore the data directory from a backup"
PAGE = HelpPage(
    about="""Restore the data directory from a file of `qproxy backup`: API keys, logins, states of accounts,
    usage and stored responses, each file checked against the backup's own digests. It refuses while a server
    of the directory runs, and over a directory that is not empty.""",
    examples={
        "qproxy restore qproxy-2026-12-01.tar.gz": "into the empty data directory",
        "qproxy restore qproxy-2026-12-01.tar.gz --force": "put what is there into before-restore-TIME first",
    },
    exits={**DONE, 1: "it cannot be restored; the data directory is as it was"},
    files={**CONFIGURATION, "$QPROXY_HOME": "the data directory"},
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="the archive to restore")
    parser.add_argument("--force", action="store_true", help="put the content of the data directory aside")
    parser.add_argument("--config", metavar="PATH", help="configuration file that may name audit_file")


def run(arguments: argparse.Namespace) -> int:
    from qproxy.backends.factory import restore

    home = configuration.data_dir()
    try:
        restored, aside = restore(arguments.file, home, force=arguments.force, now=time.time())
    except BackupError as error:
        print_error(str(error))
        return 1
    detail = f"backup of {restored.created}, {len(restored.files)} files"
    entry = AuditEntry(current_actor(), "data.restore", str(home), detail)
    record_change(configuration.load(path=arguments.config), entry)
    print_result(f"Restored {home} from a backup of {restored.created} (qproxy {restored.version}):")
    for file in restored.files:
        print_result(f"  {file.name}  {file.size:,} bytes")
    if aside is not None:
        print_note(f"What was there before is in {aside}.")
    return 0
