"""One node of a run: its code goes to the sandbox, its row into the Chain of Work."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Failed
from sqlalchemy.orm import Session

from flows.credentials import vault
from flows.credentials.cipher import Cipher
from flows.engine.errors import NodeError, NovaError, SandboxError
from flows.engine.graph import Graph, Node
from flows.engine.traversal import Visit, branch_label
from flows.orchestration.texts import printable
from flows.sandbox import NodeCall, NodeResult, Sandbox
from flows.store import chain, executions
from flows.store.models import utcnow
from flows.store.session import Database

MESSAGE_LIMIT = 2000
"""Characters of an error that are shown in Prefect; the Chain of Work has all of it."""


class NodeRunner:
    """Runs the nodes of one execution and writes their rows.

    Owns neither the sandbox nor the execution's row: the flow opens and closes both. A plain class, since
    Prefect would look for futures inside a dataclass or a model that is handed to a task.
    """

    def __init__(
        self,
        *,
        database: Database,
        execution_id: int,
        attempt: int,
        graph: Graph,
        sandbox: Sandbox,
        cipher: Cipher,
        overlay: vault.Overlay,
    ) -> None:
        self._database = database
        self._execution_id = execution_id
        self._attempt = attempt
        self._graph = graph
        self._sandbox = sandbox
        self._cipher = cipher
        self._overlay = overlay

    async def run(self, node_id: str, step: int) -> Visit:
        """Run an action or a decision as step number `step` (from 0).

        Raises NodeError when the node's code failed and SandboxError when the sandbox did; either way the
        row is written first.
        """
        node = self._graph.node(node_id)
        entry = _Entry(node, step, utcnow())
        try:
            result = await self._sandbox.run(_call(node, step, self._attempt))
        except SandboxError as error:
            await self._record(entry, NodeResult(), failure=error)
            raise
        try:
            visit, target = self._follow(node, result)
        except NodeError as error:
            await self._record(entry, result, failure=error)
            raise
        await self._record(entry, result, visit=visit, target=target)
        return visit

    async def pass_through(self, node: Node, step: int) -> Visit:
        """Write the row of a start or an end, which have no code."""
        ways = self._graph.ways(node.id)
        target = ways[0].target if ways else None
        visit = Visit(node.id)
        await self._record(_Entry(node, step, utcnow()), NodeResult(), visit=visit, target=target)
        return visit

    def _follow(self, node: Node, result: NodeResult) -> tuple[Visit, str]:
        """Where the run goes on from a result; raises NodeError for a failure or an answer without a way."""
        if result.failure is not None:
            message = f"{result.failure.type}: {result.failure.message}".rstrip(": ")
            raise NodeError(
                self._overlay.redact(message),
                node_id=node.id,
                error_type=result.failure.type,
                traceback=self._overlay.redact(result.failure.traceback),
            )
        ways = self._graph.ways(node.id)
        if node.type != "decision":
            return Visit(node.id), ways[0].target
        try:
            label = branch_label(self._graph, node.id, result.branch, result.branch_truth)
        except NodeError as error:
            # The answer stands in the message, and a node may answer with anything, a password too.
            raise NodeError(
                self._overlay.redact(str(error)), node_id=node.id, error_type=error.error_type
            ) from None
        target = next(way.target for way in ways if way.condition == label)
        return Visit(node.id, label), target

    async def _record(
        self,
        entry: _Entry,
        result: NodeResult,
        *,
        visit: Visit | None = None,
        target: str | None = None,
        failure: NovaError | None = None,
    ) -> None:
        """Write the row and where the run stands now, in one transaction."""
        redact = self._overlay.redact

        # One transaction in a thread: hashing, encrypting and compressing 10 MB must not block the loop.
        def write(session: Session) -> None:
            chain.append(
                session,
                self._execution_id,
                chain.Step(
                    step=entry.step,
                    attempt=chain.next_attempt(session, self._execution_id, entry.step),
                    node_id=entry.node.id,
                    node_type=entry.node.type,
                    status="failed" if failure else "success",
                    timestamp=entry.started,
                    execution_time=result.duration,
                    changes={}
                    if failure
                    else vault.store_changes(self._cipher, self._overlay, result.changes),
                    decision_result=visit.branch if visit else None,
                    path_taken=target if entry.node.type == "decision" else None,
                    error_type=_error_type(failure),
                    error_message=str(failure) if failure else None,
                    traceback=failure.traceback if isinstance(failure, NodeError) else None,
                    stdout=redact(result.stdout),
                    stderr=redact(result.stderr),
                ),
            )
            if target is not None:
                executions.set_progress(session, self._execution_id, current_node=target)

        await self._database.run(write)


@dataclass(frozen=True)
class _Entry:
    """What is known of a row before its node has run."""

    node: Node
    step: int
    started: datetime


def _call(node: Node, step: int, attempt: int) -> NodeCall:
    call_id = f"{step}-{attempt}"
    if node.condition is not None and node.code is None:
        return NodeCall(call_id, node.id, "condition", node.condition, node.timeout)
    if node.type == "decision":
        return NodeCall(call_id, node.id, "decision", node.code or "", node.timeout)
    return NodeCall(call_id, node.id, "action", node.code or "", node.timeout)


def _error_type(failure: NovaError | None) -> str | None:
    if failure is None:
        return None
    return failure.error_type if isinstance(failure, NodeError) else type(failure).__name__


@task(name="node", task_run_name="{title}", persist_result=False, cache_policy=NO_CACHE, log_prints=False)
async def run_node(runner: NodeRunner, node_id: str, step: int, title: str) -> Visit | State[Visit]:
    """Run one action or decision as a Prefect task that is named `title`; the flow chains them.

    An expected failure is a Failed state that carries its error: raised, Prefect would log it with a
    traceback of NOVA's own lines, where the node's are of interest.
    """
    try:
        return await runner.run(node_id, step)
    except (NodeError, SandboxError) as error:
        lines = error.traceback if isinstance(error, NodeError) else ""
        get_run_logger().error("%s", printable(lines or str(error)))
        return Failed(message=printable(str(error))[:MESSAGE_LIMIT], data=error)
