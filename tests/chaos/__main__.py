"""The full chaos suite: kill NOVA's parts at random moments and count each node's starts in a ledger.

    python -m tests.chaos [--scenario worker_killed …] [--runs 200] [--kills 20] [--seed N] [--shipped]
    python -m tests.chaos --short

Everything runs on this machine, on the loopback interface, with limited numbers and times. Prints a table;
the exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import httpx
import psycopg2
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.chaos import leftovers, scenarios
from tests.chaos.judging import Verdict
from tests.chaos.sizes import SHORT, Size
from tests.chaos.stack import Stack

Result = tuple[Verdict, float]
"""A scenario's verdict and its duration in seconds."""

EXAMPLES = 5
"""Violations printed per bar."""

console = Console(width=110, soft_wrap=True)


def say(line: str) -> None:
    """Print a line of progress."""
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {escape(line)}", highlight=False)


def show(results: dict[str, Result]) -> None:
    """Print one row per scenario, and below it the violations."""
    table = Table("scenario", "seconds", "counted", "bars missed")
    for name, (verdict, seconds) in results.items():
        facts = ", ".join(f"{number} {what}" for what, number in verdict.facts.items())
        missed = ", ".join(f"{len(found)} {bar}" for bar, found in verdict.missed.items())
        table.add_row(name, f"{seconds:.0f}", facts, missed or "none")
    console.print(table)
    for name, (verdict, _) in results.items():
        for line in missed_bars(verdict):
            console.print(f"{name}: {line}", markup=False)


def missed_bars(verdict: Verdict) -> Iterator[str]:
    """Yield a line for each missed bar, and the first violations."""
    for bar, found in verdict.missed.items():
        yield f"{len(found)} {bar}"
        yield from (f"    {sentence}" for sentence in found[:EXAMPLES])


async def run_all(stack: Stack, names: list[str], size: Size, results: dict[str, Result]) -> None:
    """Run scenarios one after the other; a scenario that raises counts as missed."""
    for name in names:
        since = time.monotonic()
        say(f"{name} begins")
        try:
            verdict = await scenarios.run(stack, name, size)
            verdict.faults |= await asyncio.to_thread(scenarios.left_over, stack)
        except (AssertionError, OSError, httpx.HTTPError, psycopg2.Error) as error:
            verdict = Verdict(faults={"scenarios that raised": [f"{type(error).__name__}: {error}"]})
        results[name] = verdict, time.monotonic() - since
        say(f"{name}: {'missed' if verdict.missed else 'held'}")
        for line in missed_bars(verdict):
            say(line)


def main() -> int:
    """Run the chosen scenarios and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--scenario", nargs="*", choices=scenarios.SCENARIOS, default=[], help="default: all")
    parser.add_argument("--short", action="store_true", help="a few runs and kills, as in the tests")
    parser.add_argument("--runs", type=int, default=200, help="runs of six nodes (default 200)")
    parser.add_argument("--kills", type=int, default=20, help="times that a worker is killed (default 20)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="default: a new one")
    parser.add_argument(
        "--shipped",
        action="store_true",
        help="use the default leases and delays: minutes instead of seconds",
    )
    options = parser.parse_args()
    # Without bytecode files every new process compiles its imports.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for number in (signal.SIGINT, signal.SIGTERM):  # in a shell's background job SIGINT is ignored
        signal.signal(number, signal.default_int_handler)
    runs, unrepeatable = options.runs, options.runs // 4
    size = Size(
        runs=runs, unrepeatable=unrepeatable, posts=runs, kills=options.kills, seed=options.seed, say=say
    )
    if options.short:
        size = replace(SHORT, seed=options.seed, say=say)
    say(f"seed {options.seed}")
    results: dict[str, Result] = {}
    try:
        with Stack(options.seed, shipped=options.shipped) as stack:
            names = options.scenario or list(scenarios.SCENARIOS)
            asyncio.run(run_all(stack, names, size, results))
            since = time.monotonic()
            results["at the end"] = (
                Verdict(faults=leftovers.in_stopped_stack(stack)),
                time.monotonic() - since,
            )
    except KeyboardInterrupt:
        say("interrupted; all processes are stopped")
        return 130
    finally:
        show(results)
    return int(any(verdict.missed for verdict, _ in results.values()))


if __name__ == "__main__":
    raise SystemExit(main())
