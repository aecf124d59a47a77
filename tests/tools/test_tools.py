"""Tools on their own: functions and their schemas, commands, declarations, and `qproxy tools`."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import pytest
import trio

from qproxy import config as configuration
from qproxy import sandbox, tools
from qproxy.bootstrap import tools as tool_setup
from qproxy.cli import main
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.config.tools import McpServerConfig, ToolConfig, ToolRuleConfig
from qproxy.sandbox import (
    SandboxPolicy,
    SandboxUnavailable,
    SystemSandbox,
    UnsandboxedLauncher,
    policy,
    seccomp,
)
from qproxy.tools import arguments, functions, invoke
from qproxy.tools.tool import ToolError
from tests.helpers import world
from tests.relay.test_tool_loop import ASK, saying
from tests.relay.test_tool_loop import calling as model_calls

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "qproxy.toml"


class Place(TypedDict):
    city: str
    zip: int


def everything(
    text: str,
    count: int,
    exact: float,
    sure: bool,
    kind: Literal["a", "b"],
    tags: list[str],
    counts: dict[str, int],
    place: Place,
    whatever: Any,
    noted: Annotated[int, "A note."],
    maybe: str | None = None,
    *,
    last: int = 3,
) -> str:
    """What it does,
    in two lines.

    Args:
        text: Some words.
        count (int): How many.

    Returns:
        text: not this.
    """
    return ""


def test_a_schema_comes_from_hints_and_docstring():
    """Every hint that JSON can express becomes a schema, and the docstring its descriptions."""
    tool = functions.as_tool(everything)
    assert tool.name == "everything"
    assert tool.description == "What it does,\nin two lines."
    properties = tool.parameters["properties"]
    assert properties["text"] == {"type": "string", "description": "Some words."}
    assert properties["count"] == {"type": "integer", "description": "How many."}
    assert properties["exact"] == {"type": "number"}
    assert properties["sure"] == {"type": "boolean"}
    assert properties["kind"] == {"enum": ["a", "b"]}
    assert properties["tags"] == {"type": "array", "items": {"type": "string"}}
    assert properties["counts"] == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert properties["place"]["required"] == ["city", "zip"]
    assert properties["whatever"] == {}
    assert properties["noted"] == {"type": "integer", "description": "A note."}
    assert properties["maybe"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert properties["last"] == {"type": "integer", "default": 3}
    assert "maybe" not in tool.parameters["required"]
    assert tool.parameters["additionalProperties"] is False


def test_a_decorated_function_stays_callable():
    """The decorator returns the function itself, and Sphinx's parameter lists are parsed, too."""

    @tools.function(name="twice", timeout=3.0)
    def double(n: int) -> int:
        """Double.

        :param n: A number.
        """
        return 2 * n

    assert double(4) == 8
    tool = functions.as_tool(double)
    assert (tool.name, tool.timeout, tool.description) == ("twice", 3.0, "Double.")
    assert tool.parameters["properties"]["n"]["description"] == "A number."


UNFIT = {
    "no names": lambda *rest: "",
    "no JSON": tools.function,
    "a name that no model takes": lambda: "",
}


@pytest.mark.parametrize("function", UNFIT.values(), ids=UNFIT.keys())
def test_a_function_that_cannot_be_a_tool(function):
    """It is rejected when it is declared, not when it is called."""
    with pytest.raises(TypeError):
        functions.as_tool(function)


async def test_a_result_is_text_or_json():
    """Text stays as it is; anything else becomes JSON."""
    for value, text in (("words", "words"), ({"a": [1, None]}, '{"a":[1,null]}'), (None, "null"), (5, "5")):

        def expected_error(value=value):
            return value

        outcome = await invoke.invoke(functions.tool(expected_error, name="f"), "")
        assert (outcome.text, outcome.ok) == (text, True)


async def test_a_reference_in_a_schema_fetches_nothing():
    """A `$ref` to an address is an error for the model; no connection is made."""
    check = arguments.make_validator(
        {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}}
    )
    with pytest.raises(ToolError, match="Cannot validate the arguments"):
        await check('{"a": 1}')
    check = arguments.make_validator(
        {"type": "object", "$defs": {"n": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/n"}}}
    )
    assert await check('{"a": 1}') == {"a": 1}


FAULTY = {
    "a name": ({"name": "a b"}, "begins with a letter"),
    "no program": ({"argv": []}, "names no program"),
    "a missing program": ({"argv": ["no-such-program"]}, "no program 'no-such-program'"),
    "a schema": ({"parameters": {"type": "strnig"}}, "parameters: "),
    "not an object": ({"parameters": {"type": "array"}}, "must be an object"),
    "no schema file": ({"parameters_file": "/nowhere.json"}, "cannot read the file"),
    "a relative path": ({"read": ["etc"]}, "not an absolute path"),
    "a missing path": ({"read": ["/nowhere"]}, "there is no /nowhere"),
    "everything": ({"read": ["/"]}, "cannot be given"),
    "the kernel": ({"write": ["/proc"]}, "cannot be given"),
    "a path that another tool may change": ({"read": ["/usr/bin"], "write": ["/usr"]},
        "which a tool may change"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "expected_error"), FAULTY.values(), ids=FAULTY.keys())
def test_rejects_an_invalid_declaration(fields, expected_error):
    """A mistake in a tool's declaration raises ConfigError before the server starts."""
    entry = ToolConfig(**{"name": "x", "argv": ["true"], **fields})
    with pytest.raises(ConfigError, match=expected_error):
        tool_setup.build_tool_runtime(Config(tools=(entry,)))


def test_rejects_a_symbolic_link(tmp_path):
    """A declared path that is a link is rejected, since its target may change."""
    (tmp_path / "link").symlink_to("/usr")
    entry = ToolConfig(name="x", argv=["true"], read=[str(tmp_path / "link")])
    with pytest.raises(ConfigError, match="leads to /usr"):
        tool_setup.build_tool_runtime(Config(tools=(entry,)))


def test_tool_names_are_unique():
    """Two tools of one name raise ConfigError."""
    entry = ToolConfig(name="x", argv=["true"])
    with pytest.raises(ConfigError, match="declared twice"):
        tool_setup.build_tool_runtime(Config(tools=(entry, entry)))


async def _nothing():
    return SandboxUnavailable("this machine has no user namespaces.")


async def test_commands_without_a_sandbox_are_unavailable(caplog):
    """The log has a warning, the model does not see the tool, and a request for it gets a 400."""
    always = ToolConfig(name="always", argv=["true"], policy="always")
    async with world(tools=(always,), site=SystemSandbox(_nothing)) as it:
        assert "tool always is unavailable: no sandbox is available: this machine has no" in caplog.text
        assert (await it.post(ASK))[0] == 200
        assert "tools" not in it.emulator.requests[0].body
        status, _, body = await it.post({**ASK, "tools": [{"type": "qproxy", "name": "always"}]})
        assert (status, body["error"]["code"], body["error"]["param"]) == (
            400,
            "tool_unavailable",
            "tools[0]",
        )


async def test_a_tool_may_run_without_a_sandbox():
    """`sandbox = "none"` runs a program without a sandbox, in an environment of its own."""
    entry = ToolConfig(name="show", argv=["env"], env={"GIVEN": "yes"}, sandbox="none", policy="always")
    async with world(tools=(entry,), site=SystemSandbox(_nothing)) as it:
        it.emulator.script(model_calls(("show", {})), saying("Done."))
        assert (await it.post(ASK))[0] == 200
        output = it.emulator.requests[1].body["messages"][-1]["content"]
        assert sorted(line.partition("=")[0] for line in output.splitlines()) == [
            "GIVEN",
            "HOME",
            "LANG",
            "PATH",
        ]


async def test_an_unsandboxed_program_is_killed_with_its_group():
    """The time limit and cancellation apply to a program without a sandbox as well."""
    with trio.move_on_after(0.2) as scope:
        async with UnsandboxedLauncher()(["sh", "-c", "sleep 1000 & sleep 1000"], SandboxPolicy()) as child:
            await sandbox.communicate(child, b"", limit=10)
    assert scope.cancelled_caught


async def test_a_missing_bubblewrap_is_reported(monkeypatch):
    """If there is none, or it does not work, the error has the cause."""
    monkeypatch.setattr(sandbox.bubblewrap, "bubblewrap_candidates", lambda: iter(()))
    assert "there is no bubblewrap" in str(await sandbox.find_bubblewrap())
    monkeypatch.setattr(
        sandbox.bubblewrap, "bubblewrap_candidates", lambda: iter(["/bin/false", "/nowhere/bwrap"])
    )
    assert "/nowhere/bwrap cannot be started" in str(await sandbox.find_bubblewrap())
    monkeypatch.setattr(sandbox.bubblewrap, "bubblewrap_candidates", lambda: iter(["/bin/false"]))
    assert "/bin/false: bubblewrap exited without an error message" in str(await sandbox.find_bubblewrap())


def test_the_arguments_of_bubblewrap():
    """They have every isolation option, and no variable of the policy."""
    given = SandboxPolicy(read=("/a/b",), write=("/a",), env={"KEY": "secret"})
    words = policy.bwrap_arguments(given, gate=5, info=6, seccomp=7)
    line = " ".join(words)
    for part in ("--unshare-all", "--disable-userns", "--die-with-parent", "--new-session", "--cap-drop ALL"):
        assert part in line
    assert line.index("--bind /a /a") < line.index("--ro-bind /a/b /a/b")
    assert line.index("--tmpfs /tmp") < line.index("--bind /a")
    assert line.endswith("--remount-ro / --chdir /tmp --seccomp 7 --info-fd 6 --block-fd 5 --")
    assert "secret" not in line + repr(given)
    assert "--share-net" not in line
    assert "--share-net" in policy.bwrap_arguments(SandboxPolicy(network=True), gate=5, info=6, seccomp=None)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_seccomp_filter_is_valid(machine):
    """It has whole instructions, jumps inside the program, and a return at the end; an unknown machine gets
    None."""
    data = seccomp.seccomp_program(machine)
    assert data is not None
    assert len(data) % 8 == 0
    steps = [data[n : n + 8] for n in range(0, len(data), 8)]
    for index, step in enumerate(steps):
        if step[0] & 0x07 == 0x05:
            assert index + 1 + max(step[2], step[3]) < len(steps)
    assert steps[-1][0] == seccomp.RETURN
    assert seccomp.seccomp_program("pdp11") is None


def run(capsys, *words):
    code = main(["tools", "--config", str(EXAMPLES), *words])
    return code, *capsys.readouterr()


def test_the_tools_command_lists_and_runs(capsys):
    """`qproxy tools` shows the examples of the documentation, and runs them; without Python it names the
    missing program."""
    if shutil.which("python3", path=policy.PATH) is None:
        code, _, errors = run(capsys)
        assert code == 2
        assert "no program 'python3'" in errors
        return
    code, out, _ = run(capsys)
    assert code == 0
    assert "run_python  (command, always," in out
    code, out, _ = run(capsys, "--json")
    listed = json.loads(out)
    assert {"run_python", "calculate"} <= {tool["name"] for tool in listed["tools"]}
    code, out, errors = run(capsys, "run", "calculate", '{"expression": "6 * 7"}')
    if listed["sandbox"]["available"]:
        assert (code, out) == (0, "42\n")
        assert errors.startswith("ok, ")
        code, out, _ = run(
            capsys,
            "run",
            "run_python",
            '{"code": "import socket; socket.create_connection((\'127.0.0.1\', 9))"}',
        )
        assert code == 1
        assert "Connection refused" in out
        assert run(capsys, "run", "calculate", "[]")[0] == 1
    else:
        assert code == 1
        assert "no sandbox is available" in errors
    code, _, errors = run(capsys, "run", "nothing")
    assert code == 2
    assert "Available tools: calculate, " in errors


def test_paths_and_variables_of_a_declaration(tmp_path):
    """Paths are relative to the file's directory; variables come from the server's environment and are in no
    repr."""
    (tmp_path / "x.toml").write_text(
        '[[tools]]\nname = "x"\nargv = ["./run", "a/b"]\nread = [".", "../up"]\nenv_from = ["TOKEN"]\nenv = '
        '{A = "b"}\n'
    )
    config = configuration.load(path=str(tmp_path / "x.toml"), environ={"TOKEN": "sekret"})
    (entry,) = config.tools
    assert entry.argv == [str(tmp_path / "run"), "a/b"]
    assert entry.read == [str(tmp_path), str(tmp_path.parent / "up")]
    assert entry.env == {"TOKEN": "sekret", "A": "b"}
    assert "sekret" not in repr(config)
    with pytest.raises(ConfigError, match="environment variable TOKEN is not set"):
        configuration.load(path=str(tmp_path / "x.toml"), environ={})


def test_the_page_has_every_key():
    """docs/tools.md names every key of a tool, of an MCP server and of a rule."""
    page = (EXAMPLES.parent.parent / "tools.md").read_text()
    for record in (ToolConfig, McpServerConfig, ToolRuleConfig):
        for field in dataclasses.fields(record):
            assert re.search(rf"(`|^){field.name}(`| =)", page, re.MULTILINE), field.name
