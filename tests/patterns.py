"""Regular expressions of the package: their places, whether they take linear time by their shape, and
attacks.

`shape` reads the parse tree of `re` and names the parts that can make a match slow: a repeat that may give
back characters that a later one (or itself, in the next iteration of a loop) matches again; and for a search,
a repeat that every start in a run scans anew. A pump is a text that both can match: each mandatory part
between two repeats has to match it as well. Possessive repeats and atomic groups give nothing back.
"""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import random
import re
import signal
import string
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, lru_cache
from pathlib import Path
from re import _constants as kind  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from types import ModuleType
from typing import Any

import qproxy
from qproxy.bootstrap.models import package_catalog

PACKAGE = Path(qproxy.__file__).parent
BOUNDED = 256
"""A repeat up to this count is a constant factor."""
ALPHABET = frozenset(map(chr, range(256))) | frozenset("✿：你あ한ж٣\u2028")
WORD = frozenset(char for char in ALPHABET if re.match(r"\w", char))
CLASSES = {
    kind.CATEGORY_DIGIT: r"\d",
    kind.CATEGORY_NOT_DIGIT: r"\D",
    kind.CATEGORY_SPACE: r"\s",
    kind.CATEGORY_NOT_SPACE: r"\S",
    kind.CATEGORY_WORD: r"\w",
    kind.CATEGORY_NOT_WORD: r"\W",
}
REPEATS = (kind.MAX_REPEAT, kind.MIN_REPEAT, kind.POSSESSIVE_REPEAT)
ANCHORED = frozenset({"match", "fullmatch"})
IMPORTS_RE = re.compile(r"^\s*(?:import|from) re\b", re.MULTILINE)
USES = ANCHORED | {"search", "sub", "subn", "split", "findall", "finditer", "compile"}


@dataclass(frozen=True)
class PatternUse:
    """A pattern, its place, and whether it is only matched at one place (otherwise it is searched for)."""

    where: str
    pattern: re.Pattern[Any]
    anchored: bool

    def __str__(self) -> str:
        return f"{self.where}: {self.pattern.pattern!r:.200}"


def modules() -> Iterator[ModuleType]:
    """Yield every module of the package."""
    for found in pkgutil.walk_packages([str(PACKAGE)], "qproxy."):
        if found.name != "qproxy.__main__":
            yield importlib.import_module(found.name)


def compiled(value: object, depth: int = 3) -> Iterator[re.Pattern[Any]]:
    """Yield the patterns in a module's value."""
    if isinstance(value, re.Pattern):
        yield value
    elif depth and isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from compiled(item, depth - 1)
    elif depth and isinstance(value, dict):
        yield from compiled([*value, *value.values()], depth)
    elif depth and isinstance(value, type) and value.__module__.startswith("qproxy."):
        yield from compiled(list(vars(value).values()), depth - 1)
    elif depth and is_dataclass(value) and not isinstance(value, type):
        yield from compiled([getattr(value, part.name) for part in fields(value)], depth)


def module_patterns(module: ModuleType, examples: dict[str, list[str]]) -> Iterator[PatternUse]:
    """Yield the patterns of a module: its own, and those of its calls of `re`.

    `examples` represent the patterns that a call builds from parts unknown before it runs.
    """
    name, source = module.__name__, Path(str(module.__file__)).read_text(encoding="utf-8")
    values = [(key, pattern) for key, value in vars(module).items() for pattern in compiled(value)]
    if not values and not IMPORTS_RE.search(source):
        return
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    anchored_names = matched_names(nodes)
    for key, pattern in values:
        yield PatternUse(f"{name}.{key}", pattern, key in anchored_names)
    direct = {
        alias.asname or alias.name: alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "re"
        for alias in node.names
    }
    names = {
        id(node.value): node.targets[0].id
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    at_module = {id(call) for node in tree.body if isinstance(node, ast.Assign) for call in ast.walk(node)}
    for node in nodes:
        use = _use(node, direct)
        if use is None or not isinstance(node, ast.Call) or (use == "compile" and id(node) in at_module):
            continue  # already found as a module's value
        built = ast.unparse(node.args[0])
        try:
            texts = [eval(built, dict(vars(module)))]
        except NameError:
            parts = sorted({part.id for part in ast.walk(node.args[0]) if isinstance(part, ast.Name)})
            texts = examples[f"{name}: {' '.join(parts)}"]  # a KeyError: add an example of the built pattern
        for text in texts:
            if isinstance(text, str | bytes):
                anchored = use in ANCHORED or names.get(id(node)) in anchored_names
                yield PatternUse(f"{name}:{node.lineno}", re.compile(text, _flags(node, module)), anchored)


def _use(node: ast.AST, direct: dict[str, str]) -> str | None:
    if not isinstance(node, ast.Call):
        return None
    called = node.func
    if isinstance(called, ast.Name):
        return direct.get(called.id) if direct.get(called.id) in USES else None
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "re":
        return called.attr if called.attr in USES else None
    return None


def _flags(node: ast.Call, module: ModuleType) -> int:
    for argument in [*node.args[1:], *(one.value for one in node.keywords if one.arg == "flags")]:
        source = ast.unparse(argument)
        if source.startswith("re."):
            return int(eval(source, {"re": re}))
    return 0


def matched_names(nodes: list[ast.AST]) -> set[str]:
    """Return the names that are only used as `name.match(...)` or `name.fullmatch(...)`."""
    bases = {id(node.value): node.attr for node in nodes if isinstance(node, ast.Attribute)}
    uses: dict[str, set[str | None]] = {}
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            uses.setdefault(node.id, set()).add(bases.get(id(node)))
    return {name for name, found in uses.items() if found <= ANCHORED}


# Characters that a pattern can match


def chars(op: Any, argument: Any, flags: int) -> frozenset[str]:
    """Return the characters that one item of a pattern matches."""
    return _chars(op, tuple(argument) if isinstance(argument, list) else argument, flags)


@lru_cache(1000)
def _chars(op: Any, argument: Any, flags: int) -> frozenset[str]:
    if op is kind.LITERAL:
        found = {chr(argument)}
    elif op is kind.NOT_LITERAL:
        found = set(ALPHABET - {chr(argument)})
    elif op is kind.ANY:
        found = set(ALPHABET if flags & re.DOTALL else ALPHABET - {"\n"})
    elif op is kind.RANGE:
        found = {char for char in ALPHABET if argument[0] <= ord(char) <= argument[1]}
    elif op is kind.CATEGORY:
        found = {char for char in ALPHABET if re.match(CLASSES[argument], char)}
    else:
        assert op is kind.IN, op
        found = set().union(
            *(chars(item[0], item[1], flags) for item in argument if item[0] is not kind.NEGATE)
        )
        if argument[0][0] is kind.NEGATE:
            found = set(ALPHABET) - found
    if flags & re.IGNORECASE:
        found |= {char.lower() for char in found} | {char.upper() for char in found}
    return frozenset(found)


def alphabet(items: Any, flags: int) -> frozenset[str]:
    """Return every character that a match of these items may contain."""
    found: frozenset[str] = frozenset()
    for op, argument in items:
        for inner in _inside(op, argument):
            found |= alphabet(inner, flags)
        if op in (kind.LITERAL, kind.NOT_LITERAL, kind.ANY, kind.IN):
            found |= chars(op, argument, flags)
    return found


def _inside(op: Any, argument: Any) -> list[Any]:
    if op in REPEATS:
        return [argument[2]]
    if op is kind.SUBPATTERN:
        return [argument[3]]
    if op is kind.ATOMIC_GROUP:
        return [argument]
    if op is kind.GROUPREF_EXISTS:
        return [branch for branch in argument[1:] if branch is not None]
    return list(argument[1]) if op is kind.BRANCH else []


def first(items: Any, flags: int) -> frozenset[str]:
    """Return the characters that a match of these items may start with."""
    found: frozenset[str] = frozenset()
    for op, argument in items:
        if op in (kind.LITERAL, kind.NOT_LITERAL, kind.ANY, kind.IN):
            return found | chars(op, argument, flags)
        for inner in _inside(op, argument):
            found |= first(inner, flags)
        if _least([(op, argument)]):
            return found
    return found


def _least(items: Any) -> int:
    """Return the smallest number of characters that these items match."""
    size = 0
    for op, argument in items:
        if op in REPEATS:
            size += argument[0] * _least(argument[2])
        elif op in (kind.BRANCH, kind.GROUPREF_EXISTS):
            size += min(map(_least, _inside(op, argument)))
        elif inner := _inside(op, argument):
            size += _least(inner[0])
        elif op not in (kind.AT, kind.ASSERT, kind.ASSERT_NOT, kind.GROUPREF, kind.FAILURE):
            size += 1
    return size


# Causes of a slow match


@dataclass(frozen=True)
class Pump:
    """A repeat that may give characters back (or the start of a search), and the mandatory parts after it."""

    name: str
    chars: frozenset[str]
    between: frozenset[frozenset[str]] = frozenset()
    is_start: bool = False

    def after(self, part: frozenset[str]) -> Pump:
        return Pump(self.name, self.chars, self.between | {part}, self.is_start)

    def feeds(self, repeat: frozenset[str]) -> bool:
        both = self.chars & repeat
        return bool(both) and all(part & both for part in self.between)


@dataclass
class Shape:
    """Collects the faults of one pattern."""

    flags: int
    faults: list[str] = field(default_factory=list)

    def walk(self, items: Any, pumps: list[Pump], fails: bool) -> list[Pump]:
        """Walk through items; `fails` means that a later item may not match."""
        items = list(items)
        for number, (op, argument) in enumerate(items):
            rest = items[number + 1 :]
            later = fails or any(
                _least([item]) or item[0] in (kind.AT, kind.ASSERT, kind.ASSERT_NOT) for item in rest
            )
            follows = first(rest, self.flags) if op is kind.AT else frozenset()
            pumps = self._item(op, argument, pumps, later, follows)
            pumps = [pump for pump in dict.fromkeys(pumps) if all(part & pump.chars for part in pump.between)]
        return pumps

    def _item(
        self, op: Any, argument: Any, pumps: list[Pump], fails: bool, follows: frozenset[str]
    ) -> list[Pump]:
        if op in REPEATS:
            return self._repeat(op, argument, pumps, fails)
        if op is kind.SUBPATTERN:
            return self.walk(argument[3], pumps, fails)
        if op is kind.ATOMIC_GROUP:
            names = {pump.name for pump in pumps}
            return [pump for pump in self.walk(argument, pumps, fails) if pump.name in names]
        if op in (kind.BRANCH, kind.GROUPREF_EXISTS):
            return [pump for branch in _inside(op, argument) for pump in self.walk(branch, pumps, fails)]
        if op is kind.AT:
            return [after for pump in pumps if (after := self._at(argument, pump, follows))]
        if op in (kind.ASSERT, kind.ASSERT_NOT):
            direction, inner = argument
            if direction > 0:
                self.walk(inner, [pump for pump in pumps if op is kind.ASSERT], True)
                return pumps
            before = alphabet(list(inner)[-1:], self.flags)
            if op is kind.ASSERT_NOT:
                before = ALPHABET - before if len(inner) == 1 else ALPHABET
            return [pump.after(before) if pump.is_start else pump for pump in pumps]
        if op is kind.GROUPREF:  # which may be empty
            return pumps
        if op is kind.FAILURE:
            return []
        return [pump.after(chars(op, argument, self.flags)) for pump in pumps]

    def _at(self, where: Any, pump: Pump, follows: frozenset[str]) -> Pump | None:
        if where in (kind.AT_BEGINNING, kind.AT_BEGINNING_STRING):
            lines = where is kind.AT_BEGINNING and self.flags & re.MULTILINE
            return pump.after(frozenset("\n")) if lines else None
        if where is kind.AT_BOUNDARY and follows and follows <= WORD:
            return pump.after(ALPHABET - WORD)
        return pump

    def _repeat(self, op: Any, argument: Any, pumps: list[Pump], fails: bool) -> list[Pump]:
        least, most, body = argument
        taken = alphabet(body, self.flags)
        unbounded = most is kind.MAXREPEAT or most > BOUNDED
        if unbounded:
            parts = () if _single(body) else tuple(self._mandatory(body))
            for pump in pumps:
                both = pump.chars & taken
                if pump.feeds(taken) and all(part & both for part in parts) and (fails or not pump.is_start):
                    self.faults.append(f"{pump.name} and then {describe_chars(taken)}{{{least},{most}}}")
        name = f"{describe_chars(taken)}{{{least},{most}}}"
        if most is kind.MAXREPEAT or most > 1:
            inner = self.walk(body, [], True)
            self.walk(body, inner, True)  # the next iteration of the loop
            if unbounded and op is not kind.POSSESSIVE_REPEAT:  # each iteration of which is final
                self._branches(body)
        after = self.walk(body, pumps, True) if not unbounded or not _single(body) else []
        if op is kind.POSSESSIVE_REPEAT:
            names = {pump.name for pump in pumps}
            after = [pump for pump in after if pump.name in names]
        elif unbounded:
            after.append(Pump(name, taken))
        kept = [] if least else pumps
        if least and _single(body):
            kept = [pump.after(taken) for pump in pumps]
        return [*kept, *after]

    def _mandatory(self, items: Any) -> Iterator[frozenset[str]]:
        """Yield the characters of each mandatory part of these items."""
        for op, argument in items:
            if op in (kind.SUBPATTERN, kind.ATOMIC_GROUP):
                yield from self._mandatory(_inside(op, argument)[0])
            elif _least([(op, argument)]):
                yield alphabet([(op, argument)], self.flags)

    def _branches(self, body: Any) -> None:
        for op, argument in body:
            for inner in _inside(op, argument):
                self._branches(inner)
            if op in (kind.BRANCH, kind.GROUPREF_EXISTS):
                seen: frozenset[str] = frozenset()
                for branch in _inside(op, argument):
                    begins = first(branch, self.flags)
                    if begins & seen:
                        self.faults.append(
                            f"two branches of a loop begin with {describe_chars(begins & seen)}"
                        )
                    seen |= begins


def _single(body: Any) -> bool:
    """Return whether a repeat's body is one class of characters."""
    return len(body) == 1 and body[0][0] in (kind.LITERAL, kind.NOT_LITERAL, kind.ANY, kind.IN)


def describe_chars(found: frozenset[str]) -> str:
    return "[" + "".join(sorted(found))[:20] + "]"


def shape(pattern: re.Pattern[Any], *, anchored: bool) -> list[str]:
    """Return the faults that may make a pattern slow; none if it takes linear time."""
    tree = parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG)
    found = Shape(tree.state.flags | pattern.flags)
    found.walk(tree, [] if anchored else [Pump("a start", ALPHABET, is_start=True)], False)
    return found.faults


# Attacks

FACTOR = int(os.environ.get("FUZZ_FACTOR", "0"))
SIZE = 64 * 1024 if FACTOR else 8 * 1024
"""Characters of an attack: a quadratic pattern takes seconds, or a third of one in the suite."""
CPU_SECONDS = 4.0 if FACTOR else 0.2
"""CPU time of one attack, of which a linear pattern needs some milliseconds; more ends the process."""
BY_CHANCE = 5 * max(1, FACTOR)
"""The number of random attacks on one pattern."""


def attacks(pattern: re.Pattern[Any], more: int) -> Iterator[str]:
    """Yield texts that a backtracking pattern is slow to reject; `more` of them are random."""
    tree = parser.parse(pattern.pattern, pattern.flags)
    flags = tree.state.flags | pattern.flags
    pumps: dict[tuple[str, str], None] = {}
    _pumps(list(tree), "", flags, pumps)
    chance, samples = random.Random(pattern.pattern), [sample for _, sample in pumps]
    for _ in range(more if samples else 0):
        prefix_so_far, *repeated = chance.choices(samples, k=chance.randint(2, 4))
        pumps[prefix_so_far, "".join(repeated)] = None
    for prefix, pump in pumps:
        for miss in ("", "\0", "x!"):
            yield prefix + pump * (SIZE // len(pump)) + miss


def _pumps(items: list[Any], before: str, flags: int, found: dict[tuple[str, str], None]) -> str:
    """Collect each repeatable class and prefix; return a shortest match after `before`."""
    prefix_so_far = before
    for op, argument in items:
        if op in REPEATS:
            least, _, body = argument
            sample = _pumps(list(body), prefix_so_far, flags, found)[len(prefix_so_far) :]
            if sample:
                found[prefix_so_far, sample] = None
                if prefix_so_far:
                    found["", prefix_so_far + sample] = None
            prefix_so_far += sample * min(max(least, 0), 64)
        elif op in (kind.BRANCH, kind.GROUPREF_EXISTS):
            ends = [_pumps(list(branch), prefix_so_far, flags, found) for branch in _inside(op, argument)]
            prefix_so_far = min(ends, key=len)
        elif op in (kind.SUBPATTERN, kind.ATOMIC_GROUP):
            prefix_so_far = _pumps(list(_inside(op, argument)[0]), prefix_so_far, flags, found)
        elif op in (kind.LITERAL, kind.NOT_LITERAL, kind.ANY, kind.IN):
            prefix_so_far += _sample(chars(op, argument, flags))
            if prefix_so_far:
                found["", prefix_so_far[-80:]] = None
    return prefix_so_far


def _sample(found: frozenset[str]) -> str:
    likely = [char for char in string.ascii_lowercase + string.digits + " \t" if char in found]
    return likely[0] if likely else min(found)


EXAMPLES: dict[str, list[str]] = {
    "qproxy.config.parsing: key re": [r"^[ \t]*+(\[++[ \t]*+)?[\"']?api_keys[\"']?[ \t]*+[=\].]"],
    "qproxy.telemetry.redaction: known map re": [r"sk\-one|sk\-on|secret"],
    "qproxy.wire.tool_calls.bare_json: opener": [r" {0,3}````*+[ \t]*+\r?\n?\Z"],
    "qproxy.wire.tool_calls.text_calls: others": [r"<(?=[tf/]|\Z)|[✿]", r"<(?=[tf/]|\Z)|[✿A`]"],
    "qproxy.wire.dialects.error_mapping: row": [],  # the module's own patterns include them
    "qproxy.wire.models.name_pattern: piece": [
        piece.pattern
        for group in (*package_catalog()._lines, *package_catalog()._vendors)
        for pattern in group.patterns
        for piece in pattern._pieces
    ],
}
"""Examples of the patterns that calls build from parts, by module and the names in the parts."""


@cache
def all_patterns() -> tuple[PatternUse, ...]:
    """Return every pattern of the package, each use once."""
    found: dict[tuple[re.Pattern[Any], bool], PatternUse] = {}
    for module in modules():
        for used in module_patterns(module, EXAMPLES):
            found.setdefault((used.pattern, used.anchored), used)
    return tuple(found.values())


def attack_all(more: int) -> int:
    """Match every pattern against its attacks, as it is used; return their number.

    The default action of SIGVTALRM ends a process whose attack takes too long, even inside the matcher.
    """
    count = 0
    for used in all_patterns():
        uses = [used.pattern.match, used.pattern.fullmatch] if used.anchored else [used.pattern.search]
        for text in attacks(used.pattern, more):
            for use in uses:
                signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
                use(text if isinstance(used.pattern.pattern, str) else text.encode("utf-8"))
                count += 1
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return count


if __name__ == "__main__":
    print(attack_all(BY_CHANCE))
