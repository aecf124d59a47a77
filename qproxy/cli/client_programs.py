"""Programs that use this server, and the settings with which they do.

A program is a row: the environment and the arguments that it needs for a server and a model. Its command
either prints them as lines for a shell, or starts the program with them. Keys are read from QPROXY_KEY and
never printed: the lines refer to the variable.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from qproxy import config as configuration
from qproxy.cli.check import base_url
from qproxy.cli.help import CONFIGURATION, DONE, VARIABLES, HelpPage
from qproxy.cli.output import print_error, print_result
from qproxy.config import Config
from qproxy.config.accounts import ConfigError

KEY_VARIABLE = "QPROXY_KEY"
DEFAULT_KEY = "any"
"""A server that demands no keys accepts any text."""
KEY = "\0key\0"
"""Stands for the key in a program's environment."""
_KEY_IN_SHELL = f'"${{{KEY_VARIABLE}:-{DEFAULT_KEY}}}"'
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerModel:
    """The server, key and models that a program is set to use."""

    base_url: str
    """With `/v1`."""
    model: str
    fast_model: str
    """The model for titles and other small tasks."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """The command and the environment that start a program."""

    environment: Mapping[str, str]
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClientProgram:
    """One program."""

    name: str
    """The name of its executable."""
    title: str
    settings: Callable[[ServerModel], ClientSettings]


def page(program: ClientProgram, example: str) -> HelpPage:
    """Return the help page of a program's command; the example is arguments for the program."""
    return HelpPage(
        about=f"""Print the variables and the command that start {program.title} with this server, as lines
        for a shell. With --run, start it with them; what follows -- goes to the program.""",
        examples={
            f"qproxy {program.name}": "what to set",
            f"qproxy {program.name} --run -- {example}": "start it",
            f"qproxy {program.name} --url https://qproxy.example.com": "for a server on another machine",
        },
        exits={**DONE, 1: f"{program.name} is not installed; with --run, the exit code is the program's"},
        files=CONFIGURATION,
        environment={KEY_VARIABLE: "the API key, where the server demands one (default: any)", **VARIABLES},
    )


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", action="store_true", help="start the program instead of printing its settings"
    )
    parser.add_argument(
        "--url", help="the server's URL (default: this machine's, by host, port and certfile)"
    )
    parser.add_argument("--model", help="the model to use (default: default_model)")
    parser.add_argument("--fast-model", help="the model for small tasks, such as titles (default: --model)")
    parser.add_argument("--config", metavar="PATH", help="configuration file")
    parser.add_argument("arguments", nargs="*", help="arguments of the program, after --")


def run(program: ClientProgram, arguments: argparse.Namespace) -> int:
    """Print a program's settings, or replace this process by the program."""
    settings = program.settings(_server_model(arguments))
    if not arguments.run:
        for line in shell_lines(program, settings, arguments.arguments):
            print_result(line)
        return 0
    executable = shutil.which(program.name)
    if executable is None:
        print_error(f"{program.name} is not in PATH: install it first.")
        return 1
    key = configuration.client_key() or DEFAULT_KEY
    added = {name: value.replace(KEY, key) for name, value in settings.environment.items()}
    command = [program.name, *settings.arguments, *arguments.arguments]
    return _exec(executable, command, configuration.program_environment(added))


def _exec(executable: str, command: list[str], environment: Mapping[str, str]) -> NoReturn:
    os.execve(executable, command, environment)


def shell_lines(program: ClientProgram, settings: ClientSettings, arguments: list[str]) -> list[str]:
    """Return lines for a POSIX shell: an export for each variable, and the command."""
    exports = [f"export {name}={_quote(value)}" for name, value in settings.environment.items()]
    return [*exports, shlex.join([program.name, *settings.arguments, *arguments])]


def _quote(value: str) -> str:
    return _KEY_IN_SHELL.join(shlex.quote(part) if part else "" for part in value.split(KEY))


def _server_model(arguments: argparse.Namespace) -> ServerModel:
    config = configuration.load(path=arguments.config)
    model = arguments.model or config.default_model or _catalog_model()
    url = local_url(config) if arguments.url is None else arguments.url
    return ServerModel(base_url=base_url(url), model=model, fast_model=arguments.fast_model or model)


def _catalog_model() -> str:
    from qproxy.bootstrap.models import package_catalog  # it reads a file

    return str(package_catalog().defaults["chat"])


def local_url(config: Config) -> str:
    """Return the URL of the server that these settings start on this machine. Raises ConfigError if its port
    is free."""
    if config.port == 0:
        raise ConfigError("port is 0, so the server's port is not known here: name the server with --url.")
    scheme = "http" if config.certfile is None else "https"
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{scheme}://{_ANY_ADDRESS.get(config.host, host)}:{config.port}"


def _claude(server: ServerModel) -> ClientSettings:
    return ClientSettings(
        {
            "ANTHROPIC_BASE_URL": server.base_url.removesuffix("/v1"),  # it adds /v1 itself
            "ANTHROPIC_AUTH_TOKEN": KEY,
            "ANTHROPIC_API_KEY": "",  # a real one would be sent too
            "ANTHROPIC_MODEL": server.model,
            "ANTHROPIC_DEFAULT_OPUS_MODEL": server.model,
            "ANTHROPIC_DEFAULT_SONNET_MODEL": server.model,
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": server.fast_model,
        }
    )


def _codex(server: ServerModel) -> ClientSettings:
    values = {
        "model": server.model,
        "model_provider": "qproxy",
        "model_providers.qproxy.name": "qproxy",
        "model_providers.qproxy.base_url": server.base_url,
        "model_providers.qproxy.env_key": KEY_VARIABLE,
        "model_providers.qproxy.wire_api": "responses",
    }
    flags = (part for name, value in values.items() for part in ("-c", f"{name}={json.dumps(value)}"))
    return ClientSettings({KEY_VARIABLE: KEY}, tuple(flags))


def _opencode(server: ServerModel) -> ClientSettings:
    names = dict.fromkeys((server.model, server.fast_model))
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": server.base_url, "apiKey": KEY},
        "models": {name: {} for name in names},
    }
    content = {
        "provider": {"qproxy": provider},
        "model": f"qproxy/{server.model}",
        "small_model": f"qproxy/{server.fast_model}",
    }
    text = json.dumps(content).replace(json.dumps(KEY), f'"{KEY}"')
    return ClientSettings({"OPENCODE_CONFIG_CONTENT": text})


def _qwen(server: ServerModel) -> ClientSettings:
    environment = {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": KEY, "OPENAI_MODEL": server.model}
    return ClientSettings(environment, ("--auth-type", "openai"))


CLAUDE = ClientProgram("claude", "Claude Code", _claude)
CODEX = ClientProgram("codex", "Codex", _codex)
OPENCODE = ClientProgram("opencode", "opencode", _opencode)
QWEN = ClientProgram("qwen", "Qwen Code", _qwen)
