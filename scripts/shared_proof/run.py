"""Run the cases and print a table; exit code 0 when all of them hold."""

import argparse
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import trio
from cases import CASES
from installation import Installation, installation
from rows import Row
from traffic import Probes

CASE_SECONDS = 90.0
"""Seconds after which a case has failed, if --seconds is not over before: something hangs."""


def parse_arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="scripts/prove_shared", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="what has not ended by then has failed")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--keep", action="store_true", help="keep the directory with the logs")
    return parser.parse_args()


async def run_case(it: Installation, name: str, end: float) -> list[Row]:
    """Return the rows of a case; a failure or a hang is one."""
    rows: list[Row] = []
    try:
        with trio.fail_at(min(end, trio.current_time() + CASE_SECONDS)):
            async for row in CASES[name](it):
                rows.append(row)
    except Exception as error:
        traceback.print_exc()
        rows.append(Row("an end", f"{type(error).__name__}: {error}"[:200], False))
    return rows


def write(name: str, row: Row) -> None:
    """Print a line of the table."""
    print(f"| {name} | {row.expected} | {row.counted} | {'ok' if row.holds else 'WRONG'} |", flush=True)


async def prove(directory: Path, names: list[str], seconds: float) -> bool:
    """Run all cases; return whether every row holds."""
    print("| case | expected | counted | |\n| --- | --- | --- | --- |", flush=True)
    end, all_rows = trio.current_time() + seconds, []
    async with installation(directory) as it, trio.open_nursery() as nursery:
        probes = Probes(it)
        nursery.start_soon(probes.run)
        for name in names:
            rows = await run_case(it, name, end)
            for row in rows:
                write(name, row)
            all_rows += rows
        failures = dict(probes.failures)
        last = {
            "health": Row(f"of {probes.count} probes failed: {{}}", str(failures), not failures),
            "logs": Row("tracebacks: 0", str(n := sum(home.tracebacks() for home in it.homes)), n == 0),
            "identity": Row("tokens used again: 0", str(n := it.emulator.identity.reused_count), n == 0),
        }
        for name, row in last.items():
            write(name, row)
        nursery.cancel_scope.cancel()
    return all(row.holds for row in [*all_rows, *last.values()])


def main() -> int:
    options = parse_arguments()
    directory = Path(tempfile.mkdtemp(prefix="qproxy-proof-"))
    try:
        return 0 if trio.run(prove, directory, options.only, options.seconds) else 1
    finally:
        if options.keep:
            print(directory)
        else:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
