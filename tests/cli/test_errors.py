"""Failures of commands: one line on standard error, the right exit code, no traceback."""

import errno
import io
import os
import socket
import sqlite3

import pytest

from qproxy import __main__, cli
from qproxy.cli import errors, serve
from qproxy.config import SETTINGS
from qproxy.system.listener import address_error

UPSTREAM = ("--upstream", "http://127.0.0.1:1/v1")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home, which is also the working directory."""
    for name in [name for name in os.environ if name.startswith(("QPROXY_", "BAILIAN_", "DASHSCOPE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def failure(capsys, *words):
    """Run a command that fails, and return its exit code and its line on standard error."""
    code = cli.main(words)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return code, lines[0]


@pytest.fixture
def used_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    "words", [("serve", *UPSTREAM), ("demo",), ("emulator",)], ids=lambda words: words[0]
)
def test_a_port_in_use(words, home, used_port, capsys):
    """Every command that listens names the used port and what to do."""
    code, line = failure(capsys, *words, "--port", str(used_port))
    assert code == 1
    assert line == (
        f"qproxy: cannot listen on 127.0.0.1, port {used_port}: Address already in use "
        "(stop the program that uses it, or set another port)."
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_unusable_address(workers, home, capsys):
    """A server, and a supervisor, name an address on which they cannot listen."""
    words = ("serve", *UPSTREAM, "--insecure-no-auth", "--host", "192.0.2.1", "--workers", workers)
    code, line = failure(capsys, *words)
    assert code == 1
    assert line.startswith("qproxy: cannot listen on 192.0.2.1, port 8787: Cannot assign requested address (")


def test_an_unknown_host():
    """A host name that cannot be resolved is named with the setting that has it."""
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert address_error("nosuch.invalid", 8787, error) == (
        "cannot listen on nosuch.invalid, port 8787: Name or service not known "
        "(set host to an address or a name of this machine)."
    )


FILES = {
    "missing": (None, "cannot read qproxy.toml (No such file or directory)."),
    "a directory": ("directory", "cannot read qproxy.toml (Is a directory)."),
    "not UTF-8": (b'default_model = "\xff"', "qproxy.toml: not in UTF-8; save the file in this encoding."),
    "not TOML": (b"port = \n", "qproxy.toml: invalid TOML: Invalid value (at line 1, column 8)."),
    "too deep": (b"x = " + b"[" * 5000, "qproxy.toml: invalid TOML: nested too deeply."),
    "a wrong type": (b'port = "a"', "qproxy.toml, line 1, port: expected integer, got 'a'."),
    "an unknown setting": (b"prot = 1", "qproxy.toml, line 1: unknown setting 'prot'. Did you mean 'port'?"),
    "an unknown table": (
        b"[[acounts]]",
        "qproxy.toml, line 1: unknown setting 'acounts'. Did you mean 'accounts'?",
    ),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES.keys())
@pytest.mark.parametrize("command", ["serve", "accounts", "usage", "tools", "logout"])
def test_a_configuration_file(command, content, message, home, capsys):
    """Every command names what is wrong with the configuration file, and exits with 2."""
    if content == "directory":
        (home / "qproxy.toml").mkdir()
    elif content is not None:
        (home / "qproxy.toml").write_bytes(content)
    assert failure(capsys, command, "--config", "qproxy.toml") == (2, f"qproxy: {message}")


@pytest.mark.parametrize("kind", ["a directory", "a dangling link"])
def test_an_unreadable_configuration_file(kind, home, capsys):
    """A qproxy.toml that cannot be read is named, even if no flag names it."""
    path = home / "qproxy.toml"
    if kind == "a directory":  # what a bind mount makes of a missing file
        path.mkdir()
    else:
        path.symlink_to("missing.toml")
    code, line = failure(capsys, "serve", *UPSTREAM)
    assert (code, line.startswith("qproxy: cannot read qproxy.toml (")) == (2, True), line


def test_a_byte_order_mark_is_ignored(home, capsys):
    """A configuration file that an editor saved with a byte order mark is read."""
    (home / "qproxy.toml").write_bytes(b'\xef\xbb\xbfupstream = "http://127.0.0.1:1/v1"\n')
    assert cli.main(["accounts"]) == 0
    assert "upstream" in capsys.readouterr().out


VALUES = {
    "a word for a number": ("port", "abc", "--port: expected integer, got 'abc'."),
    "a negative number": ("max_requests", "-1", "--max-requests: must not be negative."),
    "no finite number": ("queue_timeout", "nan", "--queue-timeout: must be finite, got nan."),
    "a pair without a value": ("aliases", "x", "--aliases: expected table of strings, got 'x'."),
    "no choice": (
        "log_level",
        "loud",
        "--log-level: expected one of debug, info, warning, error, got 'loud'.",
    ),
    "no host name": ("host", "ü" * 70, f"host: '{'ü' * 70}' is not a valid host name or address."),
    "a port out of range": ("port", "65536", "port: must be at most 65535."),
    "an open bracket": (
        "upstream",
        "http://[::1",
        "account 'upstream': base_url must be http(s)://host[:port]/path, without a query or password.",
    ),
    "a port of an upstream": (
        "upstream",
        "http://a:99999/v1",
        "account 'upstream': base_url must be http(s)://host[:port]/path, without a query or password.",
    ),
    "no certificates": (
        "ca_bundle",
        os.devnull,
        f"ca_bundle: cannot load {os.devnull} (no certificate in PEM form).",
    ),
}


@pytest.mark.parametrize(("name", "value", "message"), VALUES.values(), ids=VALUES.keys())
def test_a_value(name, value, message, home, capsys):
    """A flag with an invalid value is named with what it expects."""
    upstream = () if name == "upstream" else UPSTREAM
    words = ("serve", *upstream, f"--{name.replace('_', '-')}={value}")
    assert failure(capsys, *words) == (2, f"qproxy: {message}")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_variable_that_is_not_utf_8(name, home, capsys, monkeypatch):
    """A variable that is not UTF-8 is rejected by its name, for every setting."""
    variable = f"QPROXY_{name.upper()}"
    monkeypatch.setenv(variable, os.fsdecode(b"http://\xff"))
    code, line = failure(capsys, "serve", *(() if name == "upstream" else UPSTREAM))
    assert (code, line.startswith(f"qproxy: {variable}: expected ")) == (2, True), line


def test_an_argument_that_is_not_utf_8(home, capsys):
    """An argument that is not UTF-8 is wrong usage."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["keys", "create", "--name", os.fsdecode(b"\xff")])
    assert ended.value.code == 2
    assert "is not valid UTF-8" in capsys.readouterr().err


USAGE = {
    "a missing argument": (["backup"], "qproxy backup: error: the following arguments are required: FILE"),
    "a missing value": (["check", "--model"], "qproxy check: error: argument --model: expected one argument"),
    "a missing action": (["keys"], "qproxy keys: error: the following arguments are required: ACTION"),
    "a value of a subcommand": (
        ["keys", "create", "--rpm", "0"],
        "qproxy keys create: error: argument --rpm: expected an integer greater than 0, got '0'",
    ),
    "an unknown command": (["srve"], "qproxy: error: unknown command 'srve'. Did you mean 'serve'?"),
    "an unknown flag": (
        ["serve", "--wrkers=2"],
        "qproxy: error: unknown option '--wrkers'. Did you mean '--workers'?",
    ),
    "a flag of another command": (
        ["check", "--upstream", "http://x"],
        "qproxy: error: unknown option '--upstream', which qproxy init has. See qproxy check --help.",
    ),
    "a flag of the whole program": (
        ["usage", "--version"],
        "qproxy: error: unknown option '--version', which qproxy has. See qproxy usage --help.",
    ),
    "a flag like none": (
        ["keys", "create", "--colour"],
        "qproxy: error: unknown option '--colour'. See qproxy keys create --help.",
    ),
    "a word too many": (
        ["keys", "create", "alice"],
        "qproxy: error: unknown argument 'alice'. See qproxy keys create --help.",
    ),
}


@pytest.mark.parametrize(("words", "line"), USAGE.values(), ids=USAGE.keys())
def test_wrong_usage(words, line, home, capsys):
    """Wrong usage is one line and exit code 2."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert (ended.value.code, capsys.readouterr().err) == (2, f"{line}\n")


PORTS = ["-1", "65536", "x", "", "٣", "1" * 5000]


@pytest.mark.parametrize("command", ["demo", "emulator", "reload"])
@pytest.mark.parametrize("text", PORTS, ids=lambda text: text[:8])
def test_a_port_out_of_range(command, text, home, capsys):
    """A port that does not exist is wrong usage."""
    with pytest.raises(SystemExit) as ended:
        cli.main([command, f"--port={text}"])
    assert ended.value.code == 2
    assert "argument --port: expected a port from 0 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_read_only_home(number, home, capsys, monkeypatch):
    """A data directory that cannot be created is named with the variable that chooses another one."""

    def refuse(path, mode=0o777, parents=False, exist_ok=False):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    reason = os.strerror(number)
    assert failure(capsys, "keys", "create") == (
        1,
        f"qproxy: {home}/data: {reason}. Set QPROXY_HOME to a directory that this user can write.",
    )


def test_no_home(home, capsys, monkeypatch):
    """A user without a home directory gets the variable that sets a directory."""

    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("QPROXY_HOME")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", fail)
    line = "qproxy: this user has no home directory; set QPROXY_HOME to a directory."
    assert failure(capsys, "keys", "list") == (2, line)


DAMAGED = {
    "the keys": ("keys.json", ("keys", "list"), 2, "restore it from a backup."),
    "the ledger": ("ledger.sqlite3", ("usage",), 1, "move it away, and a new one is created."),
    "the states": ("accounts.db", ("accounts",), 1, "move it away, and a new one is created."),
}


@pytest.mark.parametrize(("name", "words", "code", "advice"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file(name, words, code, advice, home, capsys, monkeypatch):
    """A damaged file of the data directory is named with advice."""
    monkeypatch.setenv("QPROXY_UPSTREAM", "http://127.0.0.1:1/v1")
    path = home / "data" / name
    path.parent.mkdir()
    path.write_text("{" * 4096)
    result, line = failure(capsys, *words)
    assert result == code
    assert line.startswith(f"qproxy: {path}: ")
    assert line.endswith(advice)


def test_a_deleted_working_directory(home, monkeypatch):
    """The command line of a worker needs no working directory."""

    def fail():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    arguments = cli.build_parser(["serve"]).parse_args(["serve", *UPSTREAM])
    monkeypatch.setattr(os, "getcwd", fail)
    assert serve._command(arguments)[-2:] == ["serve", f"--upstream={UPSTREAM[1]}"]


DATA_COMMANDS = {
    "keys": (("keys", "create"), 2),
    "revoke": (("keys", "revoke", "x"), 2),
    "logout": (("logout",), 1),
    "usage": (("usage", *()), 1),
    "reload": (("reload",), 1),
}


@pytest.mark.parametrize(("words", "code"), DATA_COMMANDS.values(), ids=DATA_COMMANDS.keys())
def test_a_data_directory_that_is_a_file(words, code, home, capsys, monkeypatch):
    """A command whose data directory cannot be used names the path."""
    (home / "data").write_text("a file")
    monkeypatch.setenv("QPROXY_UPSTREAM", "http://127.0.0.1:1/v1")
    assert failure(capsys, *words)[0] == code


def test_a_full_disk(home, capsys, monkeypatch):
    """A key that cannot be stored is not printed; the file is named, and nothing of it remains."""

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    assert cli.main(["keys", "create"]) == 1
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", f"qproxy: {home}/data/keys.json: No space left on device.\n")
    assert [path.name for path in (home / "data").iterdir()] == ["keys.lock"]


class FullDevice(io.StringIO):
    """Standard output on a device without space, or without a reader."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def flush(self):
        raise OSError(self.number, os.strerror(self.number))

    def fileno(self):
        raise io.UnsupportedOperation


OUTPUTS = {
    "a full device": (errno.ENOSPC, 1, "qproxy: standard output: No space left on device.\n"),
    "a closed pipe": (errno.EPIPE, errors.BROKEN_PIPE, ""),
}


@pytest.mark.parametrize(("number", "code", "message"), OUTPUTS.values(), ids=OUTPUTS.keys())
def test_output_that_cannot_be_written(number, code, message, home, capsys, monkeypatch):
    """A full device is named; a closed pipe ends the command silently."""
    monkeypatch.setattr("sys.stdout", FullDevice(number))
    assert (cli.main(["completion", "bash"]), capsys.readouterr().err) == (code, message)
    assert (cli.main(["--help"]), capsys.readouterr().err) == (code, message)


DESCRIBED = {
    "a file": (
        OSError(errno.EROFS, "Read-only file system", "/x/keys.json"),
        (1, "/x/keys.json: Read-only file system."),
    ),
    "nested groups": (
        ExceptionGroup("a", [ExceptionGroup("b", [OSError("cannot listen")])]),
        (1, "cannot listen"),
    ),
    "a database": (sqlite3.OperationalError("disk I/O error"), (1, "disk I/O error")),
    "a bug": (ValueError("x"), None),
    "a bug beside a failure": (ExceptionGroup("a", [OSError("x"), ValueError("x")]), None),
    "an interrupt": (KeyboardInterrupt(), None),
}


@pytest.mark.parametrize(("error", "expected"), DESCRIBED.values(), ids=DESCRIBED.keys())
def test_describes_failures_and_no_bugs(error, expected):
    """Failures of the surroundings have one line; a bug keeps its traceback."""
    assert errors.describe_failure(error) == expected


def test_ctrl_c_wrapped_by_an_import(capsys, monkeypatch):
    """A class body wraps a KeyboardInterrupt in a RuntimeError; the command is interrupted anyway."""

    def interrupt():
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr(cli, "main", interrupt)
    assert __main__.main() == __main__.INTERRUPTED
    assert capsys.readouterr().err == "qproxy: interrupted.\n"


def test_windows_is_named(capsys, monkeypatch):
    """On Windows the command names what to use instead of failing in an import."""
    monkeypatch.setattr("sys.platform", "win32")
    assert __main__.main() == 1
    assert capsys.readouterr().err == __main__.WINDOWS
