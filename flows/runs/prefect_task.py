"""Runs the nodes of a run as Prefect tasks, one after the other: these are what Prefect's UI shows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import cast

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Crashed, Failed

from flows.graphs.errors import (
    DatabaseRefusedError,
    InterruptedRunError,
    LeaseError,
    LimitError,
    NodeError,
    SandboxError,
)
from flows.graphs.graph import Node
from flows.graphs.traversal import Visit, next_node
from flows.prefect_gateway.text import printable
from flows.runs.lease_keeper import HeldLease
from flows.runs.loading import LoadedRun
from flows.runs.node_executor import NodeExecutor

MESSAGE_LIMIT = 2000
"""Characters of an error that are shown in Prefect; the Chain of Work has all of it."""

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


@task(name="node", task_run_name="{title}", persist_result=False, cache_policy=NO_CACHE, log_prints=False)
async def run_node(runner: NodeExecutor, node_id: str, step: int, title: str) -> Visit | State[Visit]:
    """Run one action or decision as a Prefect task that is named `title`; the flow chains them.

    An expected failure is a Failed state that carries its error: raised, Prefect would log it with a
    traceback of NOVA's own lines, where the node's are of interest.
    """
    try:
        return await runner.run(node_id, step)
    except LeaseError as error:
        return Crashed(message=str(error), data=error)
    except (NodeError, SandboxError, LimitError, InterruptedRunError, DatabaseRefusedError) as error:
        lines = error.traceback if isinstance(error, NodeError) else ""
        get_run_logger().error("%s", printable(lines or str(error)))
        return Failed(message=printable(str(error))[:MESSAGE_LIMIT], data=error)


async def walk(run: LoadedRun, nodes: NodeExecutor, held: HeldLease, log: Log) -> int:
    """Run node after node until an end; return how many steps the whole run has.

    Raises what `NodeExecutor.run` and `next_node` raise, and CancelledError between two nodes where the
    worker stops and asked the run to leave.
    """
    visits = list(run.visits)
    previous: State[Visit] | None = None
    while (node := next_node(run.graph, visits, run.max_steps)) is not None:
        step = len(visits)
        if node.type in ("start", "end"):
            visits.append(await nodes.pass_through(node, step))
            continue
        if held.is_leave_requested:
            raise asyncio.CancelledError
        previous = await _run_task(nodes, node, step, previous)
        visit = await previous.aresult()
        visits.append(visit)
        log.info("Step %d, %s: done%s", step, _shown(node), f" → {visit.branch}" if visit.branch else "")
    return len(visits)


async def _run_task(
    nodes: NodeExecutor, node: Node, step: int, previous: State[Visit] | None
) -> State[Visit]:
    """Run a node as a task named after it; `wait_for` the one before draws the arrow in the UI."""
    wait_for = [previous] if previous is not None else None
    call = run_node(nodes, node.id, step, _shown(node), return_state=True, wait_for=wait_for)
    # Prefect types the call of an async task as if it were a sync one.
    return await cast(Awaitable[State[Visit]], call)


def _shown(node: Node) -> str:
    """The node's name as Prefect's database and its UI take it."""
    return printable(node.title)[:200] or node.id
