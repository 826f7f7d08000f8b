"""Measure NOVA's speed, and stock Prefect's: the same flow and sandboxes under Prefect's `process` worker.

Starts PostgreSQL, Prefect's server and the API as `nova up` does, then the workers and E2B servers of each
case, all on this machine; prints one table. Takes about 15 minutes, with --quick three.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.bench import table
from tests.bench.cases import Bench, Case, loads, rates, sizes
from tests.bench.client import Client
from tests.bench.site import Site, start_site

CASES: dict[str, Case] = {
    "alone": rates.alone,
    "burst": rates.burst,
    "delays": rates.delays,
    "creations": rates.creations,
    "contexts": sizes.contexts,
    "nested": sizes.nested,
    "graphs": sizes.graphs,
    "at-once": sizes.at_once,
    "memory": sizes.memory,
    "posts": loads.posts,
    "priorities": loads.priorities,
}


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    cases = "\n".join(f"  {name:<11} {case.__doc__}" for name, case in CASES.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        epilog=f"cases:\n{cases}\n\nBars are those of issue 3. A ratio says how many times better NOVA is.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", default=",".join(CASES), help="cases, separated by commas (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer runs per case, for a first impression")
    parser.add_argument("--without-stock", action="store_true", help="measure only NOVA")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    options = parser.parse_args()
    options.cases = options.cases.split(",")
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"unknown cases: {', '.join(sorted(unknown))}")
    return options


async def measure(options: argparse.Namespace, site: Site, console: Console) -> int:
    """Run the cases, print the table and return how many cases failed."""
    _end_on_signals(console)
    facts = table.machine()
    rows: list[table.Row] = []
    failures: dict[str, str] = {}
    async with Client(site.api_url, site.prefect_url) as client:
        bench = Bench(site, client, not options.without_stock, options.quick, console.print)
        for name in options.cases:
            console.print(f"[bold]{name}[/bold]: {CASES[name].__doc__}")
            since = time.monotonic()
            try:
                found = await CASES[name](bench)
            except Exception as error:  # noqa: BLE001 - the other cases go on
                console.print_exception()
                failures[name] = f"{type(error).__name__}: {error}"
                continue
            rows += found
            for row in found:
                stock = "" if row.stock is None else f", stock {row.stock:.3g}"
                console.print(f"  {row.what}: {row.nova:.3g} {row.unit}{stock}", highlight=False)
            console.print(f"  took {time.monotonic() - since:.0f} s")
    table.show(facts, rows, failures, Console(width=max(Console().width, 150)))
    if options.json:
        table.save(options.json, facts, rows, failures)
    return len(failures)


def _end_on_signals(console: Console) -> None:
    """Cancel this task at the first SIGINT or SIGTERM; ignore later ones, so that clean-up ends."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def end() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: None)
        console.print("Stopping everything …")
        if task is not None:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)


def main() -> None:
    """Measure in a temporary folder, which is removed at the end."""
    options = arguments()
    # Without bytecode files every new process compiles its imports, above all the stock worker's.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up on SIGTERM, too
    parent = "/var/tmp" if Path("/var/tmp").is_dir() else None
    try:
        with tempfile.TemporaryDirectory(prefix="nova-bench-", dir=parent) as name:
            Path(name).chmod(0o755)  # PostgreSQL's own user must reach it
            with start_site(Path(name)) as site:
                try:
                    failed = asyncio.run(measure(options, site, Console(stderr=True)))
                finally:
                    for number in (signal.SIGINT, signal.SIGTERM):
                        signal.signal(number, signal.SIG_IGN)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
