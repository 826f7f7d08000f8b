"""The chaos suite in full: NOVA's parts are killed at random moments while an outside ledger keeps count.

    python -m tests.chaos [--scenario worker_killed …] [--runs 200] [--kills 20] [--seed N]

Everything is on this machine and loopback, bounded in number and in time. Prints a table and exits with 1
when a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import time

from rich.console import Console
from rich.table import Table

from tests.chaos import scenarios
from tests.chaos.judging import Verdict
from tests.chaos.sizes import Size
from tests.chaos.stack import Stack

EXAMPLES = 5
"""Violations of one bar that are printed."""

console = Console(width=110, soft_wrap=True)


def say(line: str) -> None:
    """Print a line of progress."""
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {line}", highlight=False)


def show(verdicts: dict[str, Verdict], seconds: dict[str, float]) -> None:
    """Print one row per scenario and, below, what missed a bar."""
    table = Table("scenario", "seconds", "counted", "bars missed")
    for name, verdict in verdicts.items():
        facts = ", ".join(f"{number} {what}" for what, number in verdict.facts.items())
        missed = ", ".join(f"{len(found)} {bar}" for bar, found in verdict.missed.items())
        table.add_row(name, f"{seconds[name]:.0f}", facts, missed or "none")
    console.print(table)
    for name, verdict in verdicts.items():
        for bar, found in verdict.missed.items():
            console.print(f"{name}: {len(found)} {bar}", markup=False)
            for sentence in found[:EXAMPLES]:
                console.print(f"    {sentence}", markup=False)


async def run_all(stack: Stack, names: list[str], size: Size) -> tuple[dict[str, Verdict], dict[str, float]]:
    """Run scenarios one after the other; one that breaks off counts as missed."""
    verdicts, seconds = {}, {}
    for name in names:
        since = time.monotonic()
        say(f"{name} begins")
        try:
            verdicts[name] = await scenarios.run(stack, name, size)
        except (AssertionError, OSError) as error:
            verdicts[name] = Verdict(faults={"broken off": [str(error)]})
        seconds[name] = time.monotonic() - since
        say(f"{name}: {'missed' if verdicts[name].missed else 'held'}")
    return verdicts, seconds


def main() -> int:
    """Run what was asked for; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--scenario", nargs="*", choices=scenarios.SCENARIOS, default=[], help="default: all")
    parser.add_argument("--runs", type=int, default=200, help="runs of six nodes (default 200)")
    parser.add_argument("--kills", type=int, default=20, help="times that a worker is killed (default 20)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="default: a new one")
    options = parser.parse_args()
    # Without bytecode every new process would compile what it imports.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    size = Size(runs=options.runs, guarded=options.runs // 4, kills=options.kills, seed=options.seed, say=say)
    say(f"seed {options.seed}")
    with Stack(options.seed) as stack:
        names = options.scenario or list(scenarios.SCENARIOS)
        verdicts, seconds = asyncio.run(run_all(stack, names, size))
        since = time.monotonic()
        verdicts["at the end"] = scenarios.at_the_end(stack)
        seconds["at the end"] = time.monotonic() - since
    show(verdicts, seconds)
    return int(any(verdict.missed for verdict in verdicts.values()))


if __name__ == "__main__":
    raise SystemExit(main())
