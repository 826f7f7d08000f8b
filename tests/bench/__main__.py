"""How long a run takes from POST to done: NOVA's worker beside Prefect's own, in one run on one machine.

    python -m tests.bench [--runs 20] [--burst 60] [--limit 4]

Starts PostgreSQL, Prefect's server and the API, then one worker type after the other over the same workflow
of four trivial nodes in local sandboxes. Everything is on this machine and loopback, and bounded in number.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from flows.credentials.cipher import generate_key
from flows.store import migrations
from tests.builders import action, line
from tests.servers import PrefectServer, ServerProcess, clean_environment, free_port, postgres_server

FINAL = {"SUCCESS", "FAILURE", "REVOKED"}
GRAPH = line(*(action(f"n{i}", f"context['n'] = {i}") for i in range(4)))


@dataclass
class Figures:
    """What was measured of one worker type: seconds, and runs per second."""

    submitted: list[float]
    """POST to its answer."""
    alone: list[float]
    """POST to done, one run at a time."""
    rate: float
    """Runs per second of a burst."""


async def measure(api: httpx.AsyncClient, workflow: int, runs: int, burst: int) -> Figures:
    """Run the workflow `runs` times one by one, after one that warms up, then `burst` times at once."""
    await one(api, workflow)
    pairs = [await one(api, workflow) for _ in range(runs)]
    since = time.perf_counter()
    await asyncio.gather(*(one(api, workflow, pause=0.25) for _ in range(burst)))
    rate = burst / (time.perf_counter() - since)
    return Figures([pair[0] for pair in pairs], [pair[1] for pair in pairs], rate)


async def one(api: httpx.AsyncClient, workflow: int, pause: float = 0.02) -> tuple[float, float]:
    """Return the seconds from POST to its answer and to SUCCESS; anything else ends the benchmark.

    `pause` is the seconds between two polls, which a burst's clients must not make the load themselves with.
    """
    since = time.perf_counter()
    answer = await api.post(f"/workflows/{workflow}/execute", json={})
    answer.raise_for_status()
    submitted = time.perf_counter() - since
    while True:
        task = (await api.get(f"/tasks/{answer.json()['task_id']}")).json()
        if task["status"] in FINAL:
            break
        await asyncio.sleep(pause)
    if task["status"] != "SUCCESS":
        raise SystemExit(f"a run ended as {task}")
    return submitted, time.perf_counter() - since


@contextlib.contextmanager
def nova(folder: Path, kind: str, limit: int, environment: dict[str, str]) -> Iterator[str]:
    """Run the API and one worker of a type; gives the API's address."""
    port = free_port()
    command = [sys.executable, "-m", "deployments.cli"]
    with (
        ServerProcess([*command, "api", "--port", str(port)], environment, folder / f"api-{kind}.log") as api,
        ServerProcess(
            [*command, "worker", "--type", kind, "--limit", str(limit)],
            environment,
            folder / f"worker-{kind}.log",
        ),
    ):
        api.wait_for_http(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"


async def story(url: str, name: str, runs: int, burst: int) -> Figures:
    """Make the workflow over the API and measure it."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as api:
        answer = await api.post("/workflows", json={"name": name, "graph_definition": GRAPH})
        answer.raise_for_status()
        return await measure(api, answer.json()["id"], runs, burst)


def show(figures: dict[str, Figures]) -> None:
    """Print one table; the last column is stock Prefect over NOVA."""
    ours, stock = figures["nova"], figures["process"]
    table = Table("four trivial nodes, local sandbox", "nova", "stock Prefect", "ratio")

    def row(name: str, a: float, b: float, unit: str, ratio: float) -> None:
        table.add_row(name, f"{a:.3f} {unit}", f"{b:.3f} {unit}", f"{ratio:.1f}")

    for name, pick in (("p50", statistics.median), ("p95", _p95)):
        a, b = pick(ours.submitted), pick(stock.submitted)
        row(f"POST to its answer, {name}", a, b, "s", b / a)
    for name, pick in (("p50", statistics.median), ("p95", _p95)):
        a, b = pick(ours.alone), pick(stock.alone)
        row(f"POST to done, one at a time, {name}", a, b, "s", b / a)
    row("burst", ours.rate, stock.rate, "runs/s", ours.rate / stock.rate)
    Console(width=110).print(table)


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[18]


def main() -> None:
    """Measure both worker types and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="runs one at a time (default 20)")
    parser.add_argument("--burst", type=int, default=60, help="runs at once (default 60)")
    parser.add_argument("--limit", type=int, default=4, help="runs that a worker does at once (default 4)")
    options = parser.parse_args()
    # Without bytecode every new process would compile what it imports, the stock worker's above all.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    figures = {}
    place = "/var/tmp" if Path("/var/tmp").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="nova-bench-", dir=place) as name:
        folder = Path(name)
        folder.chmod(0o755)
        with postgres_server(folder) as postgres:
            for database in ("nova", "prefect"):
                postgres.make_database(database)
            migrations.upgrade(postgres.url("nova"))
            with PrefectServer(postgres.url("prefect"), folder) as prefect:
                environment = clean_environment(
                    DATABASE_URL=postgres.url("nova"),
                    NOVA_ENCRYPTION_KEY=generate_key(),
                    PREFECT_API_URL=prefect.api_url,
                    PREFECT_HOME=str(folder),
                )
                ServerProcess(
                    [sys.executable, "-m", "deployments.cli", "deploy"], environment, folder / "deploy.log"
                ).process.wait()
                for kind in ("nova", "process"):
                    # A stock run takes seconds: a third of them says as much.
                    share = 1 if kind == "nova" else 3
                    with nova(folder, kind, options.limit, environment) as url:
                        figures[kind] = asyncio.run(
                            story(url, f"bench {kind}", options.runs // share, options.burst // share)
                        )
    show(figures)


if __name__ == "__main__":
    main()
