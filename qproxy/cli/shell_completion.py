"""Completion scripts for shells, generated from an argument parser.

`describe_parser` turns a parser into plain records, one per command or subcommand; each shell's function
renders them in its language. New options and commands need no change here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

FILES = ("PATH",)
"""Metavars whose values are files."""


@dataclass(frozen=True, slots=True)
class OptionSpec:
    """An option of a command."""

    flags: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...] = ()
    file: bool = False


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """A command or subcommand with its options, values and subcommands."""

    names: tuple[str, ...]
    """The words of the command: `("qproxy", "keys", "create")`."""
    help: str
    options: tuple[OptionSpec, ...]
    values: tuple[str, ...]
    """The choices of its positional argument."""
    commands: tuple[CommandSpec, ...] = ()

    def all(self) -> Iterator[CommandSpec]:
        """Yield this command and all below it."""
        yield self
        for command in self.commands:
            yield from command.all()


def describe_parser(parser: argparse.ArgumentParser) -> CommandSpec:
    """Return the commands, options and choices of a parser."""
    return _command(parser, (parser.prog,), "")


def _command(parser: argparse.ArgumentParser, names: tuple[str, ...], help: str) -> CommandSpec:
    options: list[OptionSpec] = []
    values: list[str] = []
    commands: list[CommandSpec] = []
    for action in parser._actions:  # argparse has no public accessor
        choices = () if action.choices is None else tuple(map(str, action.choices))
        if isinstance(action, argparse._SubParsersAction):
            help_texts = {choice.dest: str(choice.help) for choice in action._choices_actions}
            for name, below in action.choices.items():
                commands.append(_command(below, (*names, name), help_texts.get(name, "")))
        elif action.option_strings:
            flags, takes = tuple(action.option_strings), action.nargs != 0
            file = action.metavar in FILES or (action.dest or "").endswith(("file", "bundle"))
            options.append(OptionSpec(flags, (action.help or "").replace("%%", "%"), takes, choices, file))
        else:
            values += choices
    return CommandSpec(names, help, tuple(options), tuple(values), tuple(commands))


def bash(top: CommandSpec) -> str:
    """For bash 4 and newer."""
    paths, values = [], []
    for command in top.all():
        names = [below.names[-1] for below in command.commands]
        flags = [flag for option in command.options for flag in option.flags]
        key = " ".join(command.names[1:])
        paths.append(f"        {_quote(key)}) words={_quote(' '.join([*names, *command.values, *flags]))} ;;")
        for option in command.options:
            if option.takes_value:
                found = "files=1" if option.file else f"words={_quote(' '.join(option.choices))}"
                for flag in option.flags:
                    values.append(f"        {_quote(f'{key}:{flag}')}) {found}; value=1 ;;")
    known = " ".join(_quote(" ".join(command.names[1:])) for command in top.all() if command.names[1:])
    return f"""# bash completion for {top.names[0]}; eval it, or put it into /etc/bash_completion.d
_{top.names[0]}() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
    local path='' word words='' files='' value='' known
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        for known in {known}; do
            [[ $known == "${{path:+$path }}$word" ]] && {{ path=$known; break; }}
        done
    done
    case "$path:$previous" in
{chr(10).join(values)}
    esac
    [[ $value ]] || case "$path" in
{chr(10).join(paths)}
    esac
    if [[ $files ]]
    then COMPREPLY=($(compgen -f -- "$current"))
    else COMPREPLY=($(compgen -W "$words" -- "$current"))
    fi
}}
complete -F _{top.names[0]} {top.names[0]}
"""


def zsh(top: CommandSpec) -> str:
    """Return a script for zsh with its completion system (`compinit`)."""
    functions = [_zsh_function(command) for command in top.all()]
    name = top.names[0]
    return f"#compdef {name}\n\n{chr(10).join(functions)}\ncompdef {_function(top)} {name}\n"


def _function(command: CommandSpec) -> str:
    return "_" + "_".join(command.names)


def _zsh_function(command: CommandSpec) -> str:
    specs = []
    for option in command.options:
        action = ""
        if option.takes_value:
            what = f"({' '.join(option.choices)})" if option.choices else "_files" if option.file else " "
            action = f":value:{what}"
        specs += [_quote(f"{flag}[{_zsh_text(option.help)}]{action}") for flag in option.flags]
    if command.values:
        specs.append(_quote(f"1:value:({' '.join(command.values)})"))
    lines = [f"{_function(command)}() {{"]
    if command.commands:
        known = " ".join(_quote(f"{_zsh_quote(c.names[-1])}:{c.help}") for c in command.commands)
        cases = "\n".join(f"        {c.names[-1]}) {_function(c)} ;;" for c in command.commands)
        lines += [
            "    local context state line",
            f"    local -a commands=({known})",
            f"    _arguments -C {' '.join(specs)} '1:command:->command' '*::argument:->rest'",
            "    case $state in",
            f"    command) _describe command commands ;;\n    rest) case $line[1] in\n{cases}\n        esac "
            ";;",
            "    esac",
        ]
    else:
        lines.append(f"    _arguments {' '.join(specs)}")
    return "\n".join([*lines, "}\n"])


def fish(top: CommandSpec) -> str:
    """Return a script for fish 3 and newer."""
    name = top.names[0]
    lines = [f"# fish completion for {name}", f"complete -c {name} -f"]
    for command in top.all():
        where = _fish_condition(command)
        for below in command.commands:
            lines.append(f"complete -c {name} -n {_quote(where)} -a {below.names[-1]} -d {_fish(below.help)}")
        if command.values:
            lines.append(f"complete -c {name} -n {_quote(where)} -a {_fish(' '.join(command.values))}")
        for option in command.options:
            flags = " ".join(
                f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags
            )
            takes = ""
            if option.takes_value:
                takes = (
                    " -r -F"
                    if option.file
                    else " -x" + (f" -a {_fish(' '.join(option.choices))}" if option.choices else "")
                )
            lines.append(f"complete -c {name} -n {_quote(where)} {flags}{takes} -d {_fish(option.help)}")
    return "\n".join(lines) + "\n"


def _fish_condition(command: CommandSpec) -> str:
    """Return fish's condition for a command: all of its words are present, none of its subcommands."""
    seen = [f"__fish_seen_subcommand_from {word}" for word in command.names[1:]]
    below = [known.names[-1] for known in command.commands]
    none = [f"not __fish_seen_subcommand_from {' '.join(below)}"] if below else []
    return "; and ".join([*seen, *none]) or "true"


def _quote(text: str) -> str:
    """Quote a word for bash and zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _zsh_text(text: str) -> str:
    """Escape the text in the brackets of an option specification."""
    return "".join(f"\\{char}" if char in "[]:\\" else char for char in text)


def _zsh_quote(text: str) -> str:
    return text.replace(":", "\\:")


SHELLS: dict[str, Callable[[CommandSpec], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
"""The renderer of each shell's script, by its name."""
