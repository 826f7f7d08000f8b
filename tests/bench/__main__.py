"""How fast NOVA is, beside stock Prefect: the same flow and sandboxes under Prefect's `process` worker.

Starts PostgreSQL, Prefect's server and the API as `nova up` does, then workers and servers of E2B's
protocol as the cases need them, all on this machine; prints one table. Takes about 15 minutes, --quick three.
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
from tests.bench.site import Site, site

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
    """Read the command line."""
    cases = "\n".join(f"  {name:<11} {case.__doc__}" for name, case in CASES.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        epilog=f"cases:\n{cases}\n\nBars are those of issue 3; a ratio says how many times better NOVA is.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--cases", default=",".join(CASES), help="which, with commas between them (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer runs of everything: a first impression")
    parser.add_argument("--without-stock", action="store_true", help="measure NOVA alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file as well")
    options = parser.parse_args()
    options.cases = options.cases.split(",")
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no case is called {', '.join(sorted(unknown))}")
    return options


async def measure(options: argparse.Namespace, place: Site, said: Console) -> int:
    """Run the cases and print the table; returns how many cases failed."""
    _end_on_signals(said)
    facts = table.machine()
    rows: list[table.Row] = []
    failures: dict[str, str] = {}
    async with Client(place.api_url, place.prefect_url) as client:
        bench = Bench(place, client, not options.without_stock, options.quick, said.print)
        for name in options.cases:
            said.print(f"[bold]{name}[/bold]: {CASES[name].__doc__}")
            since = time.monotonic()
            try:
                found = await CASES[name](bench)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other cases go on
                said.print_exception()
                failures[name] = f"{type(error).__name__}: {error}"
                continue
            rows += found
            for row in found:
                stock = "" if row.stock is None else f", stock {row.stock:.3g}"
                said.print(f"  {row.what}: {row.nova:.3g} {row.unit}{stock}", highlight=False)
            said.print(f"  took {time.monotonic() - since:.0f} s")
    table.show(facts, rows, failures, Console(width=max(Console().width, 150)))
    if options.json:
        table.save(options.json, facts, rows, failures)
    return len(failures)


def _end_on_signals(said: Console) -> None:
    """Have the first SIGINT or SIGTERM cancel this task; those that follow must not cut the tidying short."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def end() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: None)
        said.print("Stopping everything …")
        if task is not None:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)


def main() -> None:
    """Measure in a folder of its own, which is removed at the end."""
    options = arguments()
    # Without bytecode every new process would compile what it imports, the stock worker's above all.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # tidy up then, too
    parent = "/var/tmp" if Path("/var/tmp").is_dir() else None
    try:
        with tempfile.TemporaryDirectory(prefix="nova-bench-", dir=parent) as name:
            Path(name).chmod(0o755)  # PostgreSQL's own user must reach it
            with site(Path(name)) as place:
                try:
                    failed = asyncio.run(measure(options, place, Console(stderr=True)))
                finally:
                    for number in (signal.SIGINT, signal.SIGTERM):
                        signal.signal(number, signal.SIG_IGN)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
