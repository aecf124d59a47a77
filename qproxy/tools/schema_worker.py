"""The program of the process that evaluates schemas: one reply per request, until it is killed or idle.

A request is two lines: a schema, and arguments (both JSON) or an empty line to check the schema itself. A
reply is one line, a JSON object: empty without an error, or with `schema`, `arguments` (each a path and a
message) or `fault`.

The kernel enforces the limits: CPU time per request by a timer whose signal ends the process, even inside a
regular expression, and memory by RLIMIT_AS. The process has neither the server's environment nor its files.
It is run by path with the CPU limit in seconds (`schema_process`) and imports nothing of qproxy, so it starts
in a tenth of a second.
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
"""Validators that are cached."""


def evaluate(schema: bytes, arguments: bytes, cache: dict[bytes, Any]) -> dict[str, Any]:
    """Return the error of a schema, or of arguments for it; empty if valid."""
    try:
        if not arguments:
            return validate_schema(json.loads(schema))
        if schema not in cache:
            if len(cache) >= MAX_CACHED:
                cache.clear()
            cache[schema] = make_validator(json.loads(schema))
        return validate_arguments(cache[schema], json.loads(arguments))
    except (ValueError, MemoryError, RecursionError) as error:
        return {"fault": type(error).__name__}


def validate_arguments(validator: Any, arguments: Any) -> dict[str, Any]:
    """Return the best error of arguments; empty if valid."""
    import jsonschema

    try:
        error = jsonschema.exceptions.best_match(validator.iter_errors(arguments))
    except Exception as failure:  # an unresolvable $ref, a recursive schema, memory
        return {"fault": type(failure).__name__}
    return {} if error is None else {"arguments": _path_and_message(error)}


def validate_schema(schema: Any) -> dict[str, Any]:
    """Return the error of a schema; empty if valid."""
    import jsonschema

    try:
        validator_class(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        return {"schema": _path_and_message(error)}
    except Exception as failure:
        return {"fault": type(failure).__name__}
    return {}


def validator_class(schema: Any) -> Any:
    """Return the validator class for a schema's dialect."""
    import jsonschema

    return jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)


def make_validator(schema: Any) -> Any:
    """Return a validator that fetches nothing, since its registry is empty."""
    from referencing import Registry

    return validator_class(schema)(schema, registry=Registry())


def _path_and_message(error: Any) -> list[str]:
    return [error.json_path[:MAX_MESSAGE], error.message[:MAX_MESSAGE]]


def limit_process() -> None:
    """Limit this process's memory and files, and lower its priority."""
    import resource

    for limit, value in (
        (resource.RLIMIT_AS, MAX_MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ValueError, OSError):  # macOS does not support RLIMIT_AS
            resource.setrlimit(limit, (value, value))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with suppress(OSError):  # a seccomp filter may deny it
        os.nice(10)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")


def main() -> None:
    """Reply to requests on standard input until its end, or until none arrives for IDLE_TIMEOUT."""
    import jsonschema  # noqa: F401  # before the limits

    cache: dict[bytes, Any] = {}
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
        result = evaluate(schema, arguments.strip(), cache)
        reply = json.dumps(result)
        if limited:
            signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(f"{reply}\n")
        sys.stdout.flush()
        if result.get("fault") == "MemoryError":  # other allocations may have failed too
            return


if __name__ == "__main__":
    main()
