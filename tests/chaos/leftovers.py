"""Find what is left over after all runs have ended, before and after the stack is stopped."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import httpx
import psycopg2

from deployments.cli.processes import family
from flows.config.settings import Settings
from flows.store.database import LOOKS
from tests.chaos.judging import Verdict
from tests.chaos.stack import MARK, Stack
from tests.servers import wait_until

Count = Callable[[Stack], list[str]]
"""Returns a line for each left-over thing of one kind."""

SETTLING = 60.0
"""Seconds that NOVA may take to clean up: it ends an abandoned task run after 30."""
STRAYS = 10.0
"""Seconds after the last run's end within which the last sandbox must have ended."""


def sweep(stack: Stack) -> None:
    """Run NOVA's cleanup flow now, not in up to five minutes; a worker must be running.

    A worker that is killed while it creates a sandbox leaves one that only the cleanup flow finds.
    """
    url = stack.prefect_url
    found = httpx.get(f"{url}/deployments/name/cleanup/nova", timeout=30)
    found.raise_for_status()
    made = httpx.post(
        f"{url}/deployments/{found.json()['id']}/create_flow_run",
        json={"state": {"type": "SCHEDULED"}},
        timeout=30,
    )
    made.raise_for_status()

    def over() -> bool:
        run = httpx.get(f"{url}/flow_runs/{made.json()['id']}", timeout=30).json()
        return str(run["state_type"]) in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

    wait_until(over, SETTLING, "the cleanup to end")


def judge_sandboxes(stack: Stack, before: Collection[str], verdict: Verdict) -> None:
    """Check the sandboxes that a scenario's runs did not end: still running, or ended by their timeout.

    `before` are the ids of sandboxes from before the scenario. Without kills and failed calls, each run must
    end its own sandbox.
    """
    if verdict.strays is None:
        return
    allowed = verdict.strays

    def strays(stack: Stack) -> list[str]:
        found = _strays(stack, before)
        return found if len(found) > allowed else []

    verdict.faults |= _settled(stack, {"sandboxes that a run did not end": strays}, STRAYS)
    verdict.faults["sandboxes that ended by their timeout"] = [
        f"sandbox {each['id']} ended by its own timeout"
        for each in stack.sandboxes()
        if not allowed and each["id"] not in before and each["ended_by"] == "timeout"
    ]


def in_idle_stack(stack: Stack) -> dict[str, list[str]]:
    """Return what is left over in a running stack without runs: kind → one line for each.

    Counts for up to SETTLING seconds, since Prefect gets the ends a little later.
    """
    kinds: dict[str, Count] = {
        "executions not closed": _open_executions,
        "leases": _leases,
        "flow runs not final in Prefect": _open_flow_runs,
        "task runs not final in Prefect": _open_task_runs,
        "concurrency slots taken": _slots,
        "sandboxes": _sandboxes,
        "processes of sandboxes": _sandbox_processes,
        "transactions left open": _transactions,
    }
    return _settled(stack, kinds)


def in_stopped_stack(stack: Stack) -> dict[str, list[str]]:
    """Stop everything but PostgreSQL, and return what is left over then: kind → one line for each."""
    stack.stop_workers()
    beyond = _settled(stack, {"database connections beyond the API's": _connections_beyond_the_api})
    for part in (stack.api, stack.prefect, stack.e2b, stack.ledger):
        part.stop()
    return beyond | _settled(stack, {"database connections": _connections, "processes": _processes})


def _settled(stack: Stack, kinds: dict[str, Count], seconds: float = SETTLING) -> dict[str, list[str]]:
    """Count each kind until nothing is left of it, for at most so many seconds in all; return the rest."""
    deadline = time.monotonic() + seconds
    left = {}
    for name, count in kinds.items():
        while (found := count(stack)) and time.monotonic() < deadline:
            time.sleep(0.5)
        left[name] = found
    return left


def _open_executions(stack: Stack) -> list[str]:
    rows = stack.rows("SELECT id, status FROM executions WHERE status IN ('pending', 'running')")
    return [f"execution {row['id']} is {row['status']}" for row in rows]


def _leases(stack: Stack) -> list[str]:
    rows = stack.rows("SELECT id, status, lease_until FROM executions WHERE lease_owner IS NOT NULL")
    return [f"execution {row['id']}, {row['status']}, until {row['lease_until']}" for row in rows]


def _open_flow_runs(stack: Stack) -> list[str]:
    types = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"]
    ours = {"name": {"any_": ["execute-workflow"]}}  # the next cleanup runs are always scheduled
    found = _filter(stack, "flow_runs", {"flows": ours, "flow_runs": {"state": {"type": {"any_": types}}}})
    return [f"{run['name']}: {run['state_name']}, {run['state']['message']}" for run in found]


def _open_task_runs(stack: Stack) -> list[str]:
    types = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"]
    found = _filter(stack, "task_runs", {"task_runs": {"state": {"type": {"any_": types}}}})
    return [f"{run['name']} of {run['flow_run_id']}: {run['state_name']}" for run in found]


def _slots(stack: Stack) -> list[str]:
    limits = _filter(stack, "v2/concurrency_limits", {})
    return [f"{limit['name']}: {limit['active_slots']}" for limit in limits if limit["active_slots"]]


def _filter(stack: Stack, what: str, body: dict[str, object]) -> list[dict[str, Any]]:
    answer = httpx.post(f"{stack.prefect_url}/{what}/filter", json={**body, "limit": 200}, timeout=30)
    answer.raise_for_status()
    return list(answer.json())


def _sandboxes(stack: Stack) -> list[str]:
    return [
        f"sandbox {each['id']} is {each['state']}; created for {each['metadata']}"
        for each in stack.sandboxes()
        if each["state"] != "killed"
    ]


def _strays(stack: Stack, before: Collection[str]) -> list[str]:
    """Return the running sandboxes whose run has ended, without those in `before`."""
    over = stack.rows(
        "SELECT flow_run_id::text AS id FROM executions WHERE status IN ('completed', 'failed', 'cancelled')"
    )
    ended = {row["id"] for row in over}
    return [
        f"sandbox {each['id']} of flow run {each['metadata']['flow_run']}"
        for each in stack.sandboxes()
        if each["state"] != "killed" and each["id"] not in before and each["metadata"]["flow_run"] in ended
    ]


def _sandbox_processes(stack: Stack) -> list[str]:
    ours = {each["id"] for each in stack.sandboxes()}
    return [f"{pid}: {name}" for pid, name in _marked("E2B_SANDBOX_ID") if name in ours]


def below_workers(stack: Stack) -> list[str]:
    """Return the workers' child processes; there must be none, since nodes run in E2B."""
    return [str(child) for worker in stack.workers if worker.runs for child in family(worker.pid)]


def _transactions(stack: Stack) -> list[str]:
    rows = stack.rows(
        "SELECT pid, state, query FROM pg_stat_activity a WHERE application_name = 'nova'"
        " AND state LIKE 'idle in transaction%%'"
        # One that sweeps holds its lock by an open transaction.
        " AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'advisory')"
    )
    return [f"{row['pid']}: {row['state']} after {row['query'][:80]}" for row in rows]


def _connections(stack: Stack) -> list[str]:
    try:
        rows = stack.rows("SELECT pid, query FROM pg_stat_activity WHERE application_name = 'nova'")
    except psycopg2.Error as error:
        return [str(error)]
    return [f"{row['pid']}: {row['query'][:80]}" for row in rows]


def _connections_beyond_the_api(stack: Stack) -> list[str]:
    """Return NOVA's database connections if there are more than one process may have."""
    found = _connections(stack)
    return found if len(found) > Settings.model_fields["database_pool_size"].default + LOOKS else []


def _processes(stack: Stack) -> list[str]:
    """Return every process of the stack but PostgreSQL's, which is stopped last."""
    postgres = stack.postgres.pid
    members = {postgres, *(child.pid for child in family(postgres))}
    return [
        f"{pid}: {_command(pid)}" for pid, mark in _marked(MARK) if mark == stack.mark and pid not in members
    ]


def _marked(variable: str) -> list[tuple[int, str]]:
    """Return the processes with a variable in their environment: (process id, its value)."""
    found = []
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                for each in (Path(entry.path) / "environ").read_bytes().split(b"\0"):
                    name, _, value = each.partition(b"=")
                    if name == variable.encode():
                        found.append((int(entry.name), value.decode("utf-8", "replace")))
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
    return "gone"
