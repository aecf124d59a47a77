"""`qproxy backup`: copy the data directory to one file."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from qproxy import config as configuration
from qproxy.backends.backup import BackupError
from qproxy.cli.help import CONFIGURATION, DONE, HelpPage
from qproxy.cli.output import print_error, print_note, print_result

HELP = "back up the data directory: keys, logins, usage, stored responses"
PAGE = HelpPage(
    about="""Copy the data directory to one file, which only you can read. Servers may go on: each database is
    copied in one consistent state. The file has digests of API keys and the tokens of logins; encrypted ones
    stay encrypted, with a key that only this machine's keyring has. `qproxy restore` restores it.""",
    examples={
        "qproxy backup ~/qproxy.tar.gz": "a new file",
        "qproxy backup ~/qproxy.tar.gz --force": "replace the last one",
    },
    exits={**DONE, 1: "it cannot be written, or exists; nothing was changed"},
    files={**CONFIGURATION, "$QPROXY_HOME": "the data directory"},
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="the archive to write (.tar.gz)")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("--config", metavar="PATH", help="configuration file that may name further files")


def run(arguments: argparse.Namespace) -> int:
    from qproxy.backends.factory import back_up

    home, config = configuration.data_dir(), configuration.load(path=arguments.config)
    try:
        made = back_up(home, arguments.file, force=arguments.force, now=time.time())
    except BackupError as error:
        print_error(str(error))
        return 1
    size = arguments.file.stat().st_size
    print_result(f"Backed up {len(made.files)} files of {home} to {arguments.file} ({size:,} bytes).")
    left_out = [*_files_elsewhere(config, home), *filter(None, [configuration.config_file(arguments.config)])]
    if left_out:
        print_note(f"Not included, as they are not in the data directory: {', '.join(left_out)}.")
    return 0


def _files_elsewhere(config: configuration.Config, home: Path) -> Iterator[str]:
    """Yield the files of the settings that are outside of the data directory."""
    from qproxy.backends.factory import files_of_settings

    for path in files_of_settings(config):
        if not path.resolve().is_relative_to(home.resolve()):
            yield str(path)
