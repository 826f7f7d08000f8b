"""The long form of the model-based test: `python -m tests.simulation --steps 100000 --seed 1`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.store import migrations
from tests.servers import postgres_server
from tests.simulation.driver import LENGTH, find, simulate
from tests.simulation.healing import HEALS
from tests.simulation.mutations import MUTATIONS, mutated
from tests.simulation.site import Site, site

SHOWN = 400
"""Lines of a trace that are printed."""


SEEDS = (1000, 2000, 3000, 4000, 5000)
"""Of the first simulation of each search for a mutation."""
WITHIN = 10_000
"""Steps in which one must be found."""


def main() -> int:
    """Do what is asked for; return the status of the process."""
    options = _options()
    with _opened() as opened:
        return _find_mutations(opened) if options.mutations else _simulate(opened, options)


def _find_mutations(opened: Site) -> int:
    missed = 0
    for name, mutate in MUTATIONS.items():
        print(f"{name}:")
        for seed in SEEDS:
            with mutated(mutate):
                steps, result = find(opened, seed, WITHIN)
            missed += result is None
            what = "NOT FOUND" if result is None else f"seed {result.seed}: {'; '.join(result.violations)}"
            print(f"  from seed {seed}: {steps} steps, {what}", flush=True)
    return min(1, missed)


def _simulate(opened: Site, options: argparse.Namespace) -> int:
    began, spent = time.perf_counter(), time.process_time()
    steps = runs = worlds = bad = 0
    seed = options.seed
    while steps < options.steps and bad < options.stop_after:
        result = simulate(opened, seed, options.length)
        steps, runs, worlds = steps + result.steps, runs + result.runs, worlds + 1
        if result.violations:
            bad += 1
            print(f"\nseed {seed}, after {result.steps} steps:")
            print("\n".join(_telling(result.trace)))
            print("\n".join(f"VIOLATION: {each}" for each in result.violations), flush=True)
        seed += 1
    seconds, cpu = time.perf_counter() - began, time.process_time() - spent
    print(
        f"{steps} steps, {worlds} simulations, {runs} runs, {bad} violations; "
        f"{seconds:.0f} s, {steps / seconds:.0f} steps a second, {steps / cpu:.0f} per second of CPU"
    )
    return min(1, bad)


def _telling(trace: list[str]) -> list[str]:
    """The last lines of a trace before nothing broke any more, and the first after that."""
    end = next((n for n, line in enumerate(trace) if line.endswith(HEALS)), len(trace))
    return trace[max(0, end - SHOWN) : end + SHOWN // 4]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--steps", type=int, default=100_000, help="steps in all")
    parser.add_argument("--seed", type=int, default=1, help="of the first simulation")
    parser.add_argument("--length", type=int, default=LENGTH, help="choices in each simulation")
    parser.add_argument("--mutations", action="store_true", help="show that faults are found")
    parser.add_argument("--stop-after", type=int, default=1, help="violations")
    return parser.parse_args()


@contextmanager
def _opened() -> Iterator[Site]:
    place = "/var/tmp" if Path("/var/tmp").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="nova-simulation-", dir=place) as name:
        folder = Path(name)
        folder.chmod(0o755)
        with postgres_server(folder) as server:
            server.make_database("nova")
            url = server.url("nova")
            migrations.upgrade(url)
            with site(url) as opened:
                yield opened


if __name__ == "__main__":
    sys.exit(main())
