"""Changes and states of accounts as `accounts.lua` has them: operations and fields.

`accounts.lua` explains both. Times here are those of this machine's wall clock, there those of the server,
which is `offset` seconds ahead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from qproxy.accounts.condition import LoginState
from qproxy.accounts.cooldowns import Cooldown
from qproxy.accounts.learned_rules import newest
from qproxy.accounts.shared_state import (
    HEARTBEAT,
    SLOT_SECONDS,
    AccountState,
    AccountStateDelta,
    SharedCircuit,
)
from qproxy.backends.redis.connection import Argument

T = TypeVar("T")


def operations_of(delta: AccountStateDelta, offset: float) -> list[Argument]:
    """Return the operations that publish a change."""
    found: list[Argument] = ["set", "name", delta.name, "flight", delta.in_flight]
    for key, cooldown in delta.cooldowns.items():
        found += ["drop", key] if cooldown is None else ["cool", key, cooldown_text(cooldown, offset)]
    for key, at in delta.successes.items():
        found += ["end", key, _time(at + offset)]
    if delta.woken_at is not None:
        found += ["wake", _time(delta.woken_at + offset)]
    if delta.requests:
        found += ["add", "requests", delta.requests, "sent", delta.requests]
    if delta.failures:
        found += ["add", "failures", delta.failures]
    if delta.results:
        found += ["tail", delta.results]
    for key, at_or_none in delta.learned_rules.items():
        field = f"r:{key}"
        found += ["remove", field] if at_or_none is None else ["later", field, _time(at_or_none), ""]
    if delta.quota is not None:
        found += ["set", "quota", delta.quota[0] or ""]
    return found + _latest(delta, offset)


def offers_of(state: AccountState, offset: float) -> list[Argument]:
    """Return the operations by which every process may offer what it knows to a server that has lost it."""
    found: list[Argument] = ["set", "name", state.name]
    for key, cooldown in state.cooldowns.items():
        found += ["cool", key, cooldown_text(cooldown, offset)]
    if state.woken_at is not None:
        found += ["wake", _time(state.woken_at + offset)]
    for key, at in state.successes.items():
        found += ["end", key, _time(at + offset)]
    found += ["least", "requests", state.requests, "least", "failures", state.failures]
    found += ["tailed", state.results]
    for key, at in state.learned_rules.items():
        found += ["later", f"r:{key}", _time(at), ""]
    if state.quota:
        found += ["set", "quota", state.quota]
    return found + _latest(state, offset)


def _latest(item: AccountState | AccountStateDelta, offset: float) -> list[Argument]:
    """Return the operations for fields of which the latest counts."""
    found: list[Argument] = []
    if item.last_error_at is not None:
        text = json.dumps([item.last_error, item.last_message])
        found += ["later", "error", _time(item.last_error_at + offset), text]
    if item.last_fault_at is not None:
        found += ["later", "fault", _time(item.last_fault_at + offset), item.failed_model or ""]
    if item.last_success_at is not None:
        found += ["later", "success", _time(item.last_success_at + offset), ""]
    if item.circuit is not None:
        circuit = item.circuit
        text = f"{_time(circuit.open_until + offset)} {circuit.failures}"
        found += ["later", "circuit", _time(circuit.changed_at + offset), text]
    if item.login is not None:
        login = item.login
        text = json.dumps([login.state, login.message, login.usable, login.expires_at])
        found += ["set", "login", text]
    return found


def cooldown_text(cooldown: Cooldown, offset: float) -> str:
    """Return a cooldown as the server has it."""
    moved = cooldown.with_clock_offset(offset)
    reset = "-" if moved.reset_at is None else _time(moved.reset_at)
    head = f"{_time(moved.until)} {_time(moved.since)} {int(moved.probing)}"
    return f"{head} {moved.failed_probes} {reset} {moved.reason}"


def parse_state(fields: Sequence[bytes], offset: float, wall_clock: float) -> AccountState:
    """Return the state that a reply has. Raises ValueError if another program wrote it."""
    texts = [item.decode(errors="replace") for item in fields]
    found = dict(zip(texts[::2], texts[1::2], strict=True))
    error_at, error = _timed(found, "error", offset)
    last_error, last_message = json.loads(error) if error else (None, None)
    fault_at, failed_model = _timed(found, "fault", offset)
    login = found.get("login")
    learned = _parse_each(found, "r", lambda text: float(text.split(" ")[0]))
    return AccountState(
        name=found.get("name", ""),
        cooldowns=_parse_each(found, "c", lambda text: parse_cooldown(text, offset)),
        requests=int(found.get("requests", 0)),
        failures=int(found.get("failures", 0)),
        last_error=last_error,
        last_error_at=error_at,
        quota=found.get("quota") or None,
        login=LoginState(*json.loads(login)) if login else None,
        slots=_slots(found, offset),
        in_flight=_parse_each(found, "f", lambda text: _in_flight(text, offset)),
        last_message=last_message,
        last_success_at=_timed(found, "success", offset)[0],
        last_fault_at=fault_at,
        failed_model=failed_model or None,
        results=found.get("results", ""),
        successes=_successes(found, offset, wall_clock),
        woken_at=float(found["woken"]) - offset if "woken" in found else None,
        learned_rules=newest(learned, wall_clock),
        circuit=_circuit(found, offset),
    )


def parse_cooldown(text: str, offset: float) -> Cooldown:
    """Return a cooldown that the server has. Raises ValueError."""
    until, since, probing, failed_probes, reset, reason = text.split(" ", 5)
    reset_at = None if reset == "-" else float(reset)
    found = Cooldown(float(until), float(since), reason, reset_at, int(failed_probes), probing == "1")
    return found.with_clock_offset(-offset)


def _successes(found: Mapping[str, str], offset: float, wall_clock: float) -> dict[str, float]:
    times = _parse_each(found, "e", lambda text: float(text) - offset)
    return {key: at for key, at in times.items() if wall_clock - at <= HEARTBEAT}


def _slots(found: Mapping[str, str], offset: float) -> dict[str, int]:
    """Return the requests by time slot of this machine's clock."""
    slots: dict[str, int] = {}
    for slot, count in _parse_each(found, "m", int).items():
        middle = (int(slot) + 0.5) * SLOT_SECONDS - offset
        name = str(int(middle // SLOT_SECONDS))
        slots[name] = slots.get(name, 0) + count
    return slots


def _in_flight(text: str, offset: float) -> tuple[int, float]:
    count, _, reported_at = text.split(" ")
    return int(count), float(reported_at) - offset


def _circuit(found: Mapping[str, str], offset: float) -> SharedCircuit | None:
    changed_at, text = _timed(found, "circuit", offset)
    if changed_at is None:
        return None
    open_until, failures = text.split(" ")
    return SharedCircuit(changed_at, float(open_until) - offset, int(failures))


def _timed(found: Mapping[str, str], name: str, offset: float) -> tuple[float | None, str]:
    """Return the time and the text of a field of which the latest counts."""
    at, _, text = found.get(name, "").partition(" ")
    return (float(at) - offset if at else None), text


def _parse_each(found: Mapping[str, str], kind: str, parse: Callable[[str], T]) -> dict[str, T]:
    """Return the fields of a kind, by what follows it, without damaged ones."""
    parsed = {}
    for field, text in found.items():
        if field.startswith(f"{kind}:"):
            with suppress(ValueError):
                parsed[field[2:]] = parse(text)
    return parsed


def _time(seconds: float) -> str:
    return f"{seconds:.6f}"
