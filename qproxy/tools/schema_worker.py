"""The program of the process that evaluates schemas: one request, one reply, until it is killed or idle.

A request is two lines: a schema, and arguments or nothing (JSON, or empty: the schema itself is checked).  A reply is
one line, a JSON object: empty where all is well, `schema`, `arguments` (each a path and a message) or `fault`.

What a schema may cost is the kernel's to keep: CPU time per request by a timer whose signal ends the process, in the
middle of a regular expression too, and memory by RLIMIT_AS.  It has no environment of the server's and no files.
Run by path with the limit on CPU in seconds (`schema_process`), with nothing of qproxy imported: it starts in a tenth of a second.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from contextlib import suppress
from typing import Any

MAX_MEMORY = 512 * 1024 * 1024
IDLE_TIMEOUT = 60.0
MAX_MESSAGE = 500
MAX_CACHED = 64
"""Schemas that are kept parsed."""


def evaluate(schema: bytes, arguments: bytes, kept: dict[bytes, Any]) -> dict[str, Any]:
    """Return what is wrong with a schema, or with arguments by it; empty where nothing is."""
    try:
        if not arguments:
            return validate_schema(json.loads(schema))
        if schema not in kept:
            if len(kept) >= MAX_CACHED:
                kept.clear()
            kept[schema] = make_validator(json.loads(schema))
        return validate_arguments(kept[schema], json.loads(arguments))
    except (ValueError, MemoryError, RecursionError) as fault:
        return {"fault": type(fault).__name__}


def validate_arguments(validator: Any, arguments: Any) -> dict[str, Any]:
    """Return what is wrong with arguments; empty where nothing is."""
    import jsonschema

    try:
        error = jsonschema.exceptions.best_match(validator.iter_errors(arguments))
    except Exception as fault:  # a $ref to nowhere, a schema that goes in circles, memory
        return {"fault": type(fault).__name__}
    return {} if error is None else {"arguments": _path_and_message(error)}


def validate_schema(schema: Any) -> dict[str, Any]:
    """Return what is wrong with a schema; empty where nothing is."""
    import jsonschema

    try:
        validator_class(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        return {"schema": _path_and_message(error)}
    except Exception as fault:
        return {"fault": type(fault).__name__}
    return {}


def validator_class(schema: Any) -> Any:
    """Return the class of validators for a schema's dialect."""
    import jsonschema

    return jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)


def make_validator(schema: Any) -> Any:
    """Return a validator that fetches nothing: its registry of its own knows no address."""
    from referencing import Registry

    return validator_class(schema)(schema, registry=Registry())


def _path_and_message(error: Any) -> list[str]:
    return [error.json_path[:MAX_MESSAGE], error.message[:MAX_MESSAGE]]


def limit_process() -> None:
    """Bound this process's memory and files, and let others go first."""
    import resource

    for limit, value in (
        (resource.RLIMIT_AS, MAX_MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ValueError, OSError):  # macOS takes no bound on the address space
            resource.setrlimit(limit, (value, value))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with suppress(OSError):  # a filter of system calls may refuse it
        os.nice(10)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")


def main() -> None:
    """Answer requests on standard input until it ends, or none has come for IDLE_TIMEOUT."""
    import jsonschema  # noqa: F401  # before the limits

    kept: dict[bytes, Any] = {}
    cpu_seconds = float(sys.argv[1])
    limited = hasattr(signal, "setitimer")
    if limited:
        limit_process()
    while not limited or select.select([0], [], [], IDLE_TIMEOUT)[0]:
        schema, arguments = sys.stdin.buffer.readline(), sys.stdin.buffer.readline()
        if not arguments.endswith(b"\n"):
            return
        if limited:
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        found = evaluate(schema, arguments.strip(), kept)
        reply = json.dumps(found)
        if limited:
            signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(f"{reply}\n")
        sys.stdout.flush()
        if found.get("fault") == "MemoryError":  # what else could not be allocated is unknown
            return


if __name__ == "__main__":
    main()
